"""masked_linear_cross_entropy within autograd, compiled, and as a Pruner's loss."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from support.linear_inputs import LINEAR, found_of, linear_sample, losses_of
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adapruner import Pruner, ops

OPERATOR = torch.ops.adapruner.masked_linear_cross_entropy


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("name", ["odd", "tokens"])
def test_only_the_gradients_that_are_needed(name: str, wanted: tuple[bool, ...]) -> None:
    sample = dataclasses.replace(linear_sample(name), linear_bias=torch.randn(LINEAR[name].classes))
    losses, gradients = found_of(sample)
    leaves = [
        leaf.detach().requires_grad_(needed)
        for leaf, needed in zip(sample.leaves(), wanted, strict=True)
    ]
    found = losses_of(sample, leaves)
    assert torch.equal(found.loss, losses.loss)
    assert torch.equal(found.sample_loss, losses.sample_loss)
    assert torch.equal(found.pressure, losses.pressure)
    assert found.loss.requires_grad is any(wanted)
    if any(wanted):
        found.loss.backward()
    for leaf, gradient, needed in zip(leaves, gradients, wanted, strict=True):
        assert torch.equal(leaf.grad, gradient) if needed else leaf.grad is None
    _, _, _, *raw = OPERATOR(*sample.arguments(leaves), None, -100, 0.0, *wanted)
    for gradient, leaf, needed in zip(raw, leaves, wanted, strict=True):
        assert gradient.shape == (leaf.shape if needed else (0,))


def test_without_gradients_none_are_formed() -> None:
    sample = linear_sample("odd")
    expected = found_of(sample)[0]
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            found = losses_of(sample, sample.leaves())
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
            assert not ours.requires_grad


def test_a_gradient_that_was_not_computed_is_not_given() -> None:
    sample = linear_sample("odd")
    leaves = sample.leaves()
    loss, *_ = OPERATOR(*sample.arguments(leaves), compute_weight_gradient=False)
    torch.autograd.grad(loss, leaves[0], retain_graph=True)
    with pytest.raises(RuntimeError, match=r"weight,bias}_gradient=True .*; found False"):
        loss.backward()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("factor", [3.0, 65536.0, 0.0, -1.0])
def test_upstream_gradient(factor: float) -> None:
    sample = linear_sample("everything")
    leaves = sample.leaves()
    (losses_of(sample, leaves).loss * factor).backward()
    for leaf, gradient in zip(leaves, found_of(sample)[1], strict=True):
        assert torch.allclose(leaf.grad, factor * gradient, rtol=1e-6, atol=0)


def test_upstream_gradient_of_one_makes_no_copy() -> None:
    sample = linear_sample("odd")
    leaves = sample.leaves()
    loss, _, _, *gradients = OPERATOR(*sample.arguments(leaves))
    addresses = [gradient.data_ptr() for gradient in gradients]
    del gradients, _
    loss.backward()
    assert [leaf.grad.data_ptr() for leaf in leaves] == addresses


def test_a_kept_graph_gives_the_same_gradient_every_time() -> None:
    sample = linear_sample("odd")
    leaves, expected = sample.leaves(), found_of(sample)[1]
    loss = losses_of(sample, leaves).loss
    for times in (1, 2):
        loss.backward(retain_graph=True)
        for leaf, gradient in zip(leaves, expected, strict=True):
            assert torch.allclose(leaf.grad, times * gradient, rtol=1e-6)
    for leaf in leaves:
        leaf.grad.zero_()  # must not change the tensors that the graph keeps
    loss.backward()
    assert all(
        torch.equal(leaf.grad, gradient) for leaf, gradient in zip(leaves, expected, strict=True)
    )
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_second_derivative_is_refused() -> None:
    sample = linear_sample("odd")
    leaves = sample.leaves()
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph=True"):
        torch.autograd.grad(losses_of(sample, leaves).loss, leaves, create_graph=True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["odd", "tokens"])
def test_compiles_whole(name: str, autocast: bool) -> None:
    sample = linear_sample(name)

    def step(*leaves: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            losses = ops.masked_linear_cross_entropy(*leaves, *rest, **sample.options)
        return losses.loss * 2 + losses.sample_loss.sum() * 0

    results = []
    for call in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = sample.leaves()
        *first, target, ids, m, state = sample.arguments(leaves)
        rest = (target, ids, m, state)
        if first[2] is None:
            rest = (None, *rest)
        loss = call(*leaves)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-5, atol=1e-7)


def test_compiles_with_inductor() -> None:
    sample = linear_sample("everything")
    leaves = sample.leaves()
    call = torch.compile(losses_of_plain, fullgraph=True, dynamic=True)
    losses = call(sample.arguments(leaves), sample.options)
    gradients = torch.autograd.grad(losses.loss, leaves)
    expected, expected_gradients = found_of(sample)
    for ours, theirs in zip(losses, expected, strict=True):
        assert torch.allclose(ours, theirs)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def losses_of_plain(arguments: tuple[Any, ...], options: dict[str, Any]) -> ops.MaskedLoss:
    return ops.masked_linear_cross_entropy(*arguments, **options)


def language_model(**settings: Any) -> tuple[Pruner, list[Tensor], Tensor, Tensor]:
    """Pruner, leaves (input, weight, bias), target, ids."""
    sample = linear_sample("all counted")
    pruner = Pruner(50, epochs=3, warmup_epochs=0, track_losses=True, **settings)
    pruner.gates.set_slope(5.0)
    return pruner, sample.leaves(), sample.target, sample.ids


def test_gates_step_as_those_of_the_unfused_loss() -> None:
    fused, (x, w, b), target, ids = language_model()
    plain, _, _, _ = language_model()
    for _ in range(3):
        loss = fused.linear_loss(x, w, target, ids, linear_bias=b, label_smoothing=0.1)
        logits = functional.linear(x, w, b).movedim(-1, 1)
        expected = plain.loss(logits, target, ids, label_smoothing=0.1)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert fused.gates.integer("loss_count") == 3 * len(ids)
    for ours, theirs in zip(
        fused.gates.state_dict().values(), plain.gates.state_dict().values(), strict=True
    ):
        if ours.is_floating_point():
            assert torch.allclose(ours, theirs, rtol=1e-5, equal_nan=True)
    assert torch.equal(fused.gates.age, plain.gates.age)
    with torch.no_grad():
        fused.linear_loss(x, w, target, ids, linear_bias=b)
    assert fused.gates.integer("loss_count") == 3 * len(ids)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    results = []
    for call in (
        lambda f, x: f(x),
        lambda f, x: checkpoint(f, x, use_reentrant=reentrant),
    ):
        pruner, (x, w, b), target, ids = language_model(normalize_loss=True)

        def loss(x: Tensor, at: Any = (pruner, w, target, ids, b)) -> Tensor:
            pruner, w, target, ids, b = at
            hidden = torch.tanh(x * 2).exp()  # a forward pass to repeat
            return pruner.linear_loss(hidden, w, target, ids, linear_bias=b)

        call(loss, x).backward()
        assert pruner.gates.integer("loss_count") == len(ids)
        results.append([x.grad, w.grad, b.grad, pruner.gates.logits])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)
