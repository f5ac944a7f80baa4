"""Losses and gradients at the ends of what a dtype holds, and arguments that are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adapruner import ops
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

LARGEST = 3e38


def gates_of(logit: float = 1.0, method: str = "sampled") -> Gates:
    gates = Gates(64, 0.7, find_method(method))
    gates.logits.fill_(logit)
    if method == "published":
        gates.set_slope(5.0)
    gates.set_integer("resting", 0)
    return gates


def cross_entropy(x: Tensor, target: Tensor, gates: Gates | None = None, **options: Any) -> Any:
    gates = gates or gates_of()
    ids = torch.arange(len(x))
    return ops.masked_cross_entropy(x, target, ids, gates.logits, gates.state, **options)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3, 9, 40])
def test_label_smoothing_of_the_largest_logits(
    classes: int, dtype: torch.dtype, weighted: bool, layout: str
) -> None:
    # Losses are within the range of float32, and what they are summed from may not be.
    rows = torch.zeros(4, classes)
    rows[0, 1] = -LARGEST  # the target
    rows[1, 0] = -LARGEST  # another class
    rows[2] = LARGEST  # all alike
    rows[3, 1] = LARGEST  # the target
    x, target = rows.to(dtype), torch.ones(4, dtype=torch.int64)
    weight = torch.linspace(0.1, 0.9, classes) if weighted else None
    expected = functional.cross_entropy(
        x.double(),
        target,
        None if weight is None else weight.double(),
        label_smoothing=0.1,
        reduction="none",
    )
    assert expected.abs().max() < torch.finfo(torch.float32).max
    if layout == "columns":
        x, target = x[:, :, None], target[:, None]
    found = cross_entropy(x, target, weight=weight, label_smoothing=0.1).sample_loss
    assert torch.allclose(found.double(), expected, rtol=1e-5)


def test_float16_gradients_of_a_linear_layer_are_rounded_after_the_loss_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 16, 64, generator=generator).half()
    layer = (torch.randn(500, 64, generator=generator) * 0.02).half()
    bias = torch.zeros(500).half()
    target = torch.randint(0, 500, (8, 16), generator=generator)
    gates = gates_of(-1.0, "published")  # weights of 0.007
    scale, weights = 2.0**16, torch.sigmoid(torch.tensor(-5.0, dtype=torch.float64))

    def gradients(dtype: torch.dtype, loss: Any) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in (hidden, layer, bias)]
        return torch.autograd.grad(loss(*leaves) * scale, leaves)

    def ours(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ids = torch.arange(8)
        return ops.masked_linear_cross_entropy(h, w, b, target, ids, gates.logits, gates.state).loss

    def reference(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        logits = functional.linear(h, w, b).flatten(0, 1)
        return weights * functional.cross_entropy(logits, target.flatten())

    pairs = zip(gradients(torch.float16, ours), gradients(torch.float64, reference), strict=True)
    for found, expected in pairs:
        assert found.dtype == torch.float16
        assert (found.double() - expected).norm() < 2e-3 * expected.norm()
        assert (found == 0).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_given_losses_are_rounded_after_the_loss_scale(dtype: torch.dtype) -> None:
    gates = gates_of(-2.0, "published")  # weights of 5e-5
    losses = torch.rand(4096).to(dtype).requires_grad_()
    ids = torch.zeros(4096, dtype=torch.int64)
    (ops.masked_loss(losses, ids, gates.logits, gates.state).loss * 2.0**16).backward()
    expected = 2.0**16 / 4096 / (1 + math.exp(10))
    assert losses.grad is not None
    assert losses.grad.dtype == dtype
    assert losses.grad.double() == pytest.approx(
        torch.full((4096,), expected, dtype=torch.float64), rel=4e-3
    )


def test_a_gate_that_is_nan_is_the_same_in_each_layout() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 3, generator=generator)
    target = torch.randint(0, 5, (2, 3), generator=generator)
    gates = gates_of(1.0, "published")
    gates.logits[0] = math.nan
    columns = cross_entropy(x.contiguous(), target, gates)
    rows = cross_entropy(x.movedim(1, -1).contiguous().movedim(-1, 1), target, gates)
    expected = functional.cross_entropy(x, target, reduction="none").mean(1)
    assert torch.allclose(columns.sample_loss, expected)
    assert torch.allclose(rows.sample_loss, expected)
    assert torch.allclose(columns.pressure, rows.pressure, equal_nan=True)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_class_weights_below_0_are_refused(value: float) -> None:
    weight, gates = torch.tensor([1.0, value, 1.0]), gates_of()
    target, ids = torch.tensor([0, 1]), torch.arange(2)
    with pytest.raises(ValueError, match="weight must be at least 0; found"):
        cross_entropy(torch.zeros(2, 3), target, weight=weight)
    with pytest.raises(ValueError, match="weight must be at least 0; found"):
        ops.masked_linear_cross_entropy(
            torch.zeros(2, 4), torch.zeros(3, 4), None, target, ids, gates.logits, gates.state,
            weight=weight,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["target", "ids", "gate_logits", "state"])
def test_a_tensor_without_values_among_others_is_refused(name: str) -> None:
    gates = gates_of()
    given = {
        "logits": torch.zeros(2, 3),
        "target": torch.tensor([0, 1]),
        "ids": torch.arange(2),
        "gate_logits": gates.logits,
        "state": gates.state,
    }
    given[name] = given[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} must be on cpu"):
        ops.masked_cross_entropy(*given.values())
    given["logits"] = torch.zeros(2)
    del given["target"]
    if name in given:
        with pytest.raises(ValueError, match=f"{name} must be on cpu"):
            ops.masked_loss(*given.values())


def test_keys_below_0_are_refused() -> None:
    mask, age = torch.tensor([7], dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"key must be in \[0, 2\*\*63\); found -1"):
        ops.masked_order(mask, 3, -1, 0, 3)
    with pytest.raises(ValueError, match=r"key must be in \[0, 2\*\*63\); found -1"):
        ops.oldest_mask(mask, age, 1, -1)


@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_a_pressure_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    gates, pressure = gates_of(), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"pressure must have one dimension \[B\]; found shape"):
        ops.gate_update(
            gates.logits, gates.age, gates.state, None, torch.arange(4), pressure, torch.zeros(4)
        )


def test_the_mean_weight_of_no_samples_is_nan() -> None:
    for shape in ((0,), (0, 5)):
        target = torch.zeros(shape, dtype=torch.int64)
        assert ops.mean_weight(target, torch.ones(3)).isnan()
