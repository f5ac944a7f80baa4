"""Class weights: the loss as a plain mean, and as torch's weighted mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adapruner import Pruner, ops

pytestmark = pytest.mark.usefixtures("device", "seeded")


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 3), (2, 4, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_weighted_mean_is_torchs(shape: tuple[int, ...], smoothing: float) -> None:
    classes = 6
    logits = torch.randn(shape[0], classes, *shape[1:], requires_grad=True)
    target, weight = torch.randint(0, classes, shape), torch.rand(classes) + 0.1
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing}
    loss = Pruner(50).loss(logits, target, torch.arange(shape[0]), weighted_mean=True, **options)
    expected = F.cross_entropy(logits, target, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


def test_the_weighted_mean_of_a_linear_layer_is_torchs() -> None:
    hidden, layer = torch.randn(4, 5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    target, weight = torch.randint(0, 7, (4, 5)), torch.rand(7) + 0.1
    loss = Pruner(50).linear_loss(
        hidden, layer, target, torch.arange(4), weight=weight, weighted_mean=True
    )
    expected = F.cross_entropy((hidden @ layer.T).flatten(0, 1), target.flatten(), weight)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, layer), gradient(expected, layer))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("target", "weight"), [([-100, -100], [1.0, 1.0, 1.0]), ([0, 0], [0.0, 1.0, 1.0])]
)
def test_a_batch_that_weighs_nothing_changes_no_weight_of_the_model(
    target: list[int], weight: list[float], fused: bool
) -> None:
    pruner, layer, x = Pruner(10, epochs=4), torch.nn.Linear(4, 3), torch.randn(2, 4)
    options = {"weight": torch.tensor(weight), "weighted_mean": True}
    rest = (torch.tensor(target), torch.tensor([0, 1]))
    if fused:
        loss = pruner.linear_loss(x, layer.weight, *rest, linear_bias=layer.bias, **options)
    else:
        loss = pruner.loss(layer(x), *rest, **options)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in layer.parameters())


def test_gates_do_not_see_which_mean_is_taken() -> None:
    logits, target, weight = torch.randn(8, 3), torch.randint(0, 3, (8,)), torch.rand(3)
    pruners = [Pruner(8, epochs=2, warmup_epochs=0) for _ in range(2)]
    for pruner, weighted in zip(pruners, (False, True), strict=True):
        pruner.loss(logits, target, torch.arange(8), weight=weight, weighted_mean=weighted)
    first, second = (pruner.gates.logits for pruner in pruners)
    assert not torch.equal(first, torch.ones(8))
    assert torch.equal(first, second)


def test_without_weights_both_means_are_the_same() -> None:
    logits, target = torch.randn(8, 3), torch.randint(0, 3, (8,))
    plain, weighted = (
        Pruner(8).loss(logits, target, torch.arange(8), weighted_mean=mean)
        for mean in (False, True)
    )
    assert torch.equal(plain, weighted)


def test_the_mean_weight_leaves_out_ignored_rows() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0])
    target = torch.tensor([[0, -100], [2, 1], [-100, -100]])
    # Samples of weight 1, (4 + 2) / 2 and 0.
    assert ops.mean_weight(target, weight).item() == pytest.approx(4 / 3)
    assert ops.mean_weight(target.to(torch.int8), weight).item() == pytest.approx(4 / 3)
    assert ops.mean_weight(torch.tensor([7, 1]), weight, ignore_index=7).item() == 1
