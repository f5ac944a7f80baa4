"""masked_loss against adapruner.ops.reference in float64, its derivatives and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.sample_inputs import (
    FLOATS,
    INTEGERS,
    LOSSES,
    LossSample,
    loss_sample,
    native_gates,
    reference_gates,
)
from torch import Tensor

from adapruner import ops
from adapruner.ops import reference

# Tolerances relative to the result. Sums are float64, rounded once to the dtype of the loss.
GRADIENT = {torch.float32: 2e-7, torch.float64: 1e-13, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def found_of(sample: LossSample) -> tuple[ops.MaskedLoss, Tensor]:
    gates = native_gates(sample.gates)
    x = sample.sample_loss.clone().requires_grad_()
    losses = ops.masked_loss(x, sample.ids, gates.logits, gates.state)
    (gradient,) = torch.autograd.grad(losses.loss, x)
    return losses, gradient


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    sample = loss_sample(name, dtype)
    found, gradient = found_of(sample)
    x = sample.sample_loss.double().requires_grad_()
    expected = reference.masked_loss(sample.gates, x, sample.ids)
    (expected_gradient,) = torch.autograd.grad(expected, x)
    assert found.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.pressure.dtype == torch.float32
    assert gradient.dtype == dtype
    assert found.loss.item() == pytest.approx(expected.item(), rel=2e-7)
    assert torch.equal(found.sample_loss, sample.sample_loss)
    assert not found.sample_loss.requires_grad
    assert not found.pressure.requires_grad
    pressure = sample.gates.pressure(sample.sample_loss)
    assert torch.allclose(found.pressure.double(), pressure, rtol=2e-7, atol=2e-7)
    assert torch.allclose(gradient.double(), expected_gradient, rtol=GRADIENT[dtype], atol=6e-8)


@pytest.mark.usefixtures("device")
def test_first_and_second_derivatives() -> None:
    for name in ("plain", "repeats", "empty", "warm-up"):
        sample = loss_sample(name, torch.float64)
        gates = native_gates(sample.gates)

        def loss(x: Tensor, ids: Tensor = sample.ids, gates: Any = gates) -> Tensor:
            # Squared, so that there is a second derivative; and above 0, the smallest loss.
            return ops.masked_loss((x + 0.1).square(), ids, gates.logits, gates.state).loss

        x = sample.sample_loss.clone().clamp(max=5.0).requires_grad_()
        assert torch.autograd.gradcheck(loss, x)
        assert torch.autograd.gradgradcheck(loss, x)


def test_the_gradient_of_a_model_behind_the_losses() -> None:
    sample = loss_sample("plain")
    gates = native_gates(sample.gates)
    w = torch.randn(3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    found = ops.masked_loss((x @ w).abs(), sample.ids, gates.logits, gates.state).loss
    expected = reference.masked_loss(sample.gates, (x @ w).abs(), sample.ids)
    (found * 3).backward()
    (gradient,) = torch.autograd.grad(expected * 3, w)
    assert w.grad is not None
    assert torch.allclose(w.grad, gradient, rtol=1e-5)


@pytest.mark.usefixtures("device")
def test_a_kept_graph_gives_the_same_gradient_every_time() -> None:
    sample = loss_sample("plain")
    gates = native_gates(sample.gates)
    x = sample.sample_loss.clone().requires_grad_()
    loss = ops.masked_loss(x, sample.ids, gates.logits, gates.state).loss
    _, expected = found_of(sample)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        assert x.grad is not None
        assert torch.allclose(x.grad, times * expected)


@pytest.mark.usefixtures("device")
def test_constants_are_no_part_of_the_graph() -> None:
    sample = loss_sample("plain")
    gates = native_gates(sample.gates)
    x = sample.sample_loss.clone().requires_grad_()
    losses = ops.masked_loss(x, sample.ids, gates.logits, gates.state)
    gates.visit(sample.ids, losses)  # a step between forward and backward changes no gradient
    (gradient,) = torch.autograd.grad(losses.loss, x)
    assert torch.equal(gradient, found_of(sample)[1])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_type_of_ids(dtype: torch.dtype) -> None:
    sample = loss_sample("plain")
    found, _ = found_of(LossSample(sample.sample_loss, sample.ids.to(dtype), sample.gates))
    expected, _ = found_of(sample)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("device")
def test_layout_changes_nothing() -> None:
    sample = loss_sample("plain")
    wide = torch.stack([sample.sample_loss, sample.sample_loss + 1], 1)
    ids = torch.stack([sample.ids, sample.ids + 1], 1)
    found, _ = found_of(LossSample(wide[:, 0], ids[:, 0], sample.gates))
    expected, _ = found_of(sample)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.pressure, expected.pressure)
    same = LossSample(wide[:1, 0].expand(4), ids[:1, 0].expand(4), sample.gates)
    assert len(set(found_of(same)[0].pressure.tolist())) == 1


@pytest.mark.parametrize("name", ["warm-up", "plain mean"])
def test_weights_are_exactly_one(name: str) -> None:
    sample = loss_sample(name, torch.float64)
    found, gradient = found_of(sample)
    assert found.loss.item() == pytest.approx(sample.sample_loss.mean().item(), rel=1e-15)
    assert (gradient == 1 / 16).all()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_loss_that_is_not_finite(bad: float, dtype: torch.dtype) -> None:
    sample = loss_sample("plain", dtype)
    sample.sample_loss[3] = bad
    found, gradient = found_of(sample)
    assert not found.loss.isfinite()
    assert found.pressure.isnan().nonzero().flatten().tolist() == [3]
    others = torch.arange(16) != 3
    expected = sample.gates.pressure(sample.sample_loss)
    assert torch.allclose(found.pressure[others].double(), expected[others], atol=2e-7)
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("device")
def test_zero_is_a_loss_and_negative_zero_too() -> None:
    gates = native_gates(reference_gates("zero"))
    found = ops.masked_loss(
        torch.tensor([0.0, -0.0]), torch.tensor([1, 1]), gates.logits, gates.state
    )
    assert found.loss == 0
    assert found.pressure[0] == found.pressure[1]
    assert found.pressure.isfinite().all()


def change(**changes: Any) -> dict[str, Any]:
    return changes


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "negative": (
        change(sample_loss=torch.tensor([0.5, 2.0, -0.25, -1.0])),
        ValueError,
        r"sample_loss\[2\] \(dataset index 7\) must be at least 0; found -0.25",
    ),
    "minus infinity": (
        change(sample_loss=torch.tensor([0.5, -torch.inf, 0.0, 1.0])),
        ValueError,
        r"sample_loss\[1\] \(dataset index 5\) must be at least 0; found -inf",
    ),
    "integers": (change(sample_loss=torch.ones(4).long()), TypeError, "sample_loss must be.*Long"),
    "reduced": (change(sample_loss=torch.ones(())), ValueError, r"reduction=\"none\".*\[\]"),
    "rows": (change(sample_loss=torch.ones(4, 3)), ValueError, r"rows of a sample.*\[4, 3\]"),
    "ids shape": (change(ids=torch.arange(3)), ValueError, r"ids must have shape \[4\].*\[3\]"),
    "float ids": (change(ids=torch.ones(4)), TypeError, "ids must hold integers.*Float"),
    "id too large": (
        change(ids=torch.tensor([1, 2, 3, 50])),
        IndexError,
        r"ids\[3\].*50\); found 50",
    ),
    "id negative": (change(ids=torch.tensor([-1, 2, 3, 4])), IndexError, r"ids\[0\] .* found -1"),
    "gates": (change(gate_logits=torch.ones(50).half()), TypeError, "float32; found Half"),
    "no gates": (change(gate_logits=torch.ones(0)), IndexError, r"ids\[0\] .*\[0, 0\); found 3"),
    "state": (change(state=torch.zeros(3).long()), ValueError, r"state must be.*\[3\]"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    changes, error, message = ERRORS[name]
    gates = native_gates(reference_gates("errors"))
    arguments = {
        "sample_loss": torch.ones(4),
        "ids": torch.tensor([3, 5, 7, 9]),
        "gate_logits": gates.logits,
        "state": gates.state,
    }
    with pytest.raises(error, match=message):
        ops.masked_loss(**(arguments | changes))
    assert ops.masked_loss(**arguments).loss.isfinite()


# The largest magnitude of a negative loss that rounding explains, and the next larger number.
ROUNDING = {
    torch.float64: (1e-6, 1.0001e-6),
    torch.float32: (0.999e-6, 1.001e-6),
    torch.float16: (2**-7, 2**-7 * 1.01),
    torch.bfloat16: (2**-4, 2**-4 * 1.01),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_loss_that_rounding_made_negative_counts_as_zero(dtype: torch.dtype) -> None:
    rounded, real = ROUNDING[dtype]
    gates = native_gates(reference_gates("rounding"))
    ids = torch.arange(4)
    given = torch.tensor([0.5, -rounded, -1e-9, 2.0], dtype=dtype, requires_grad=True)
    plain = given.detach().clamp(min=0).requires_grad_()
    found, expected = (
        ops.masked_loss(losses, ids, gates.logits, gates.state) for losses in (given, plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    found.loss.backward()
    expected.loss.backward()
    assert torch.equal(given.grad, plain.grad)

    def call_and_check() -> None:
        losses = torch.tensor([0.5, -real, 1.0, 2.0], dtype=dtype)
        ops.masked_loss(losses, ids, gates.logits, gates.state)
        gates.check_errors()  # a kernel of a GPU cannot raise

    with pytest.raises(ValueError, match=r"sample_loss\[1\]"):
        call_and_check()


def test_divergences_that_are_zero_end_no_run() -> None:
    logits = torch.randn(2000, 30, generator=torch.Generator().manual_seed(0))
    same = torch.log_softmax(logits, 1)
    divergence = torch.nn.functional.kl_div(
        same, torch.log_softmax(logits + 3, 1), reduction="none", log_target=True
    ).sum(1)
    assert (divergence < 0).any()
    gates = native_gates(reference_gates("rounding"))
    loss = ops.masked_loss(divergence, torch.arange(2000) % 5, gates.logits, gates.state)
    assert loss.loss >= 0
    assert (loss.sample_loss >= 0).all()
