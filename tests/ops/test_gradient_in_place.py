"""The backward pass overwrites the gradient of the forward pass if no caller can see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.linear_inputs import linear_sample
from support.sample_inputs import cross_entropy_sample, native_gates
from torch import Tensor

OPERATORS = torch.ops.adapruner
NAMES = ("cross entropy", "float16", "linear")
pytestmark = pytest.mark.usefixtures("device")


def called(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """A leaf, the loss, and the gradient that the operator returns with the loss."""
    if name == "linear":
        sample = linear_sample("tokens")
        leaves = sample.leaves()
        loss, _, _, *gradients = OPERATORS.masked_linear_cross_entropy(
            *sample.arguments(leaves), **sample.options
        )
        return leaves[0], loss, gradients[0]
    dtype = torch.float16 if name == "float16" else torch.float32
    logits = cross_entropy_sample("rows", dtype)
    leaf = logits.logits.clone().requires_grad_()
    _, *rest = logits.arguments(native_gates(logits.gates))
    loss, _, _, gradient = OPERATORS.masked_cross_entropy(leaf, *rest, **logits.options)
    return leaf, loss, gradient


def expected_of(name: str, factor: float) -> Tensor:
    leaf, loss, _ = called(name)
    return torch.autograd.grad(loss, leaf, torch.full_like(loss, factor), retain_graph=True)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_that_is_not_kept_gives_its_own_memory(name: str) -> None:
    expected = expected_of(name, 3.0)
    leaf, loss, gradient = called(name)
    address = gradient.data_ptr()
    del gradient
    (found,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 3.0))
    assert found.data_ptr() == address
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_the_caller_holds_stays(name: str) -> None:
    for held in (lambda x: x, lambda x: x[..., :1], lambda x: x.detach()):
        expected = expected_of(name, 3.0)
        leaf, loss, gradient = called(name)
        kept = held(gradient)
        del gradient
        before = kept.clone()
        (found,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 3.0))
        assert torch.equal(found, expected)
        assert torch.equal(kept, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_graph_gives_the_same_gradient_until_its_last_time(name: str) -> None:
    leaf, loss, _ = called(name)
    for factor, keep in ((3.0, True), (0.5, True), (-2.0, False)):
        upstream = torch.full_like(loss, factor)
        (found,) = torch.autograd.grad(loss, leaf, upstream, retain_graph=keep)
        assert torch.equal(found, expected_of(name, factor))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaf, torch.ones_like(loss))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hook", [lambda x: x, lambda x: x.clone()])
def test_saved_tensor_hooks_see_no_change(name: str, hook: Callable[[Tensor], Tensor]) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def pack(x: Tensor) -> Tensor:
        seen.append((x, x.clone()))
        return hook(x)

    expected = expected_of(name, 3.0)
    with torch.autograd.graph.saved_tensors_hooks(pack, hook):
        leaf, loss, _ = called(name)
    upstream = torch.full_like(loss, 3.0)
    (found,) = torch.autograd.grad(loss, leaf, upstream)
    torch.testing.assert_close(found, expected, rtol=2e-3 if name == "float16" else 1e-6, atol=0)
    assert all(torch.equal(now, before) for now, before in seen)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaf, upstream)


@pytest.mark.parametrize("name", NAMES)
def test_many_upstream_gradients_at_once(name: str) -> None:
    factors = torch.tensor([1.0, 3.0, -2.0])
    leaf, loss, _ = called(name)
    arguments: dict[str, Any] = {"is_grads_batched": True}
    (found,) = torch.autograd.grad(loss, leaf, factors.to(loss.dtype), **arguments)
    for gradient, factor in zip(found, factors.tolist(), strict=True):
        assert torch.equal(gradient, expected_of(name, factor))
