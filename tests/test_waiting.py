"""A step reads nothing back from the device: nothing waits for a GPU, and a graph can hold it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adapruner import Pruner
from adapruner.gates import Gates
from adapruner.losses import Losses
from adapruner.methods import METHODS

aten = torch.ops.aten
WAIT = {  # what needs values on the host: to read them, or for the shape of a result
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
}
CALLS: dict[str, Callable[[Losses, Tensor, Tensor], Any]] = {
    "loss": lambda pruner, x, ids: pruner.loss(x, ids % 5, ids),
    "overwriting": lambda pruner, x, ids: pruner.loss(x * 2, ids % 5, ids, overwrite_logits=True),
    "linear_loss": lambda pruner, x, ids: pruner.linear_loss(x, torch.ones(9, 5), ids % 9, ids),
    "weigh": lambda pruner, x, ids: pruner.weigh(x.square().sum(1), ids),
    "observe": lambda pruner, x, ids: pruner.observe(x.detach().square().sum(1), ids),
}


class Waits(TorchDispatchMode):
    """Lists the operators called that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        by_flags = func.overloadpacket is aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func.overloadpacket in WAIT or by_flags:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_what_is_counted() -> None:
    pruner = Pruner(40, epochs=2)
    with Waits() as waits:
        pruner.gates.integer("population")
        _ = pruner.gates.logits[pruner.gates.logits > 0]
    assert len(waits.found) == 2


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_reads_nothing_back(name: str, normalize: bool, device: str) -> None:
    pruner = Pruner(40, epochs=2, warmup_epochs=0, normalize_loss=normalize)
    x, ids = torch.ones(8, 5, requires_grad=True), torch.arange(8)
    before = pruner.gates.logits.clone()
    with Waits() as waits:
        for _ in range(2):
            CALLS[name](pruner, x, ids)
    assert waits.found == []
    assert (pruner.gates.logits[:8] != before[:8]).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_by_shape_alone_everything_is_on_the_gpu(name: str, normalize: bool) -> None:
    # Tensors without values, of a GPU that need not be there: to read one, or to mix devices, is an
    # error.
    with FakeTensorMode(), torch.device("cuda"):
        losses = Losses(Gates(40, 0.5, METHODS["sampled"], track_losses=True), normalize)
        x, ids = torch.ones(8, 5, requires_grad=True), torch.arange(8)
        for batch in (ids, ids.cpu() if name in ("weigh", "observe") else ids):
            loss = CALLS[name](losses, x, batch)
            assert loss is None or loss.is_cuda
        assert all(tensor.is_cuda for tensor in losses.gates.state_dict().values())


@pytest.mark.cuda
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_whole_step_does_not_wait(name: str, normalize: bool) -> None:
    with torch.device("cuda"):
        pruner = Pruner(40, epochs=2, warmup_epochs=0, normalize_loss=normalize)
        x, ids = torch.ones(8, 5, requires_grad=True), torch.arange(8)
        here = torch.arange(8, device="cpu")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in (ids, here if name in ("weigh", "observe") else ids):
                loss = CALLS[name](pruner, x, batch)
                if loss is not None:
                    loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (pruner.gates.logits[:8] != 1).all()
