"""first_loss_scale: the first batch of an epoch at the scale of its own mean loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.sample_inputs import FLOATS, UPDATES, native_gates, reference_gates, update_sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapruner import Pruner, ops
from adapruner.pruning.gates import Gates

pytestmark = pytest.mark.usefixtures("device")


def running_gates(name: str, **constants: Any) -> Gates:
    gates = native_gates(reference_gates(name, **constants))
    gates.set_integer("scale_running", 1)
    return gates


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UPDATES)
def test_agrees_with_the_reference_at_the_mean_loss(name: str, dtype: torch.dtype) -> None:
    sample = update_sample(name)
    loss, pressure = sample.sample_loss.to(dtype), sample.pressure.clone()
    gates = running_gates("scale " + name, loss_scale=7.0)
    ops.first_loss_scale(pressure, gates.state, loss)
    seen = loss.isfinite() & ~sample.pressure.isinf()
    if not seen.any():
        assert gates.real("loss_scale") == 7.0
        assert torch.equal(pressure, sample.pressure)
        return
    mean = loss[seen].double().mean().item()
    assert gates.real("loss_scale") == pytest.approx(mean, rel=1e-12)
    expected = reference_gates("scale " + name, loss_scale=mean).pressure(loss)
    torch.testing.assert_close(pressure[seen].double(), expected[seen], rtol=3e-7, atol=3e-7)
    assert pressure[~seen & ~sample.pressure.isinf()].isnan().all()
    ignored = sample.pressure.isinf()
    assert torch.equal(pressure[ignored], sample.pressure[ignored])


@pytest.mark.parametrize("batch", [1, 31, 33, 1023, 1025, 5000])
def test_batches_of_any_size(batch: int) -> None:
    gates = running_gates("sizes")
    random = torch.Generator().manual_seed(batch)
    loss = torch.rand(batch, generator=random, device="cpu").to(gates.state.device) * 900
    pressure = torch.zeros(batch)
    ops.first_loss_scale(pressure, gates.state, loss)
    assert gates.real("loss_scale") == pytest.approx(loss.double().mean().item(), rel=1e-12)
    expected = reference_gates("sizes", loss_scale=loss.double().mean().item()).pressure(loss)
    torch.testing.assert_close(pressure.double(), expected, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("case", ["not running", "not the first", "all zero", "all ignored"])
def test_otherwise_nothing_changes(case: str) -> None:
    gates = running_gates("nothing", loss_scale=3.0)
    loss, pressure = torch.ones(4), torch.tensor([1.0, -2.0, 0.5, 9.0])
    if case == "not running":
        gates.set_integer("scale_running", 0)
    elif case == "not the first":
        gates.set_integer("loss_count", 1)
    elif case == "all zero":
        loss.zero_()
    else:
        pressure.fill_(torch.inf)
    before = gates.state.clone(), pressure.clone()
    ops.first_loss_scale(pressure, gates.state, loss)
    assert torch.equal(gates.state, before[0])
    assert torch.equal(pressure, before[1])


class Count(TorchDispatchMode):
    """Counts the operators called."""

    calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_a_step_calls_one_operator_more() -> None:
    counts = []
    for normalize in (False, True):
        pruner = Pruner(40, epochs=2, warmup_epochs=0, method="published", normalize_loss=normalize)
        x, ids = torch.ones(8, 5, requires_grad=True), torch.arange(8)
        with Count() as count:
            pruner.loss(x, ids % 5, ids)
        counts.append(count.calls)
    assert counts[1] == counts[0] + 1


def errors() -> dict[str, tuple[dict[str, Tensor], type[Exception], str]]:
    return {
        "type": ({"pressure": torch.ones(4).double()}, TypeError, "float32; found Double"),
        "strided": ({"pressure": torch.ones(8)[::2]}, ValueError, "pressure .* contiguous"),
        "dims": ({"pressure": torch.ones(2, 2)}, ValueError, r"shape \[2, 2\]"),
        "loss type": ({"sample_loss": torch.ones(4).long()}, TypeError, "sample_loss.*Long"),
        "loss shape": ({"sample_loss": torch.ones(3)}, ValueError, r"\[4\]; found shape \[3\]"),
        "state": ({"state": torch.zeros(8).long()}, ValueError, r"state must be.*\[8\]"),
    }


@pytest.mark.parametrize("name", errors())
def test_errors(name: str) -> None:
    changes, error, message = errors()[name]
    arguments = {
        "pressure": torch.ones(4),
        "state": running_gates("errors").state,
        "sample_loss": torch.ones(4),
    }
    with pytest.raises(error, match=message):
        ops.first_loss_scale(**(arguments | changes))
