"""Steps of the optimiser, only for finite losses, with and without waiting for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapruner.pruning.distributed import Ranks
from adapruner.training.steps import LOOK_EVERY, LeftOut, Steps

pytestmark = pytest.mark.usefixtures("device")
INF, NAN = math.inf, math.nan
OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda p, fused: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=fused),
    "SGD": lambda p, fused: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=fused),
}


def batches(count: int, bad: dict[int, float]) -> list[tuple[Tensor, Tensor]]:
    """Inputs and ids of batches. Batches in ``bad`` have the value in their second row."""
    random = torch.Generator().manual_seed(5)
    made = []
    for number in range(count):
        inputs = torch.randn(4, 3, generator=random, device="cpu").to(torch.get_default_device())
        if number in bad:
            inputs[1, 2] = bad[number]
        made.append((inputs, torch.arange(4) + 4 * number))
    return made


def train(
    optimizer: str, fused: bool, data: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[LeftOut], int]:
    """The final weights, the batches left out, and the number of finite batches."""
    layer = nn.Linear(3, 1)
    nn.init.constant_(layer.weight, 0.2)
    nn.init.zeros_(layer.bias)
    made = OPTIMIZERS[optimizer](layer.parameters(), fused)
    steps = Steps(made, layer.weight.device, Ranks())
    left_out: list[LeftOut] = []
    for inputs, ids in data:
        steps.take(layer(inputs).square().mean(), [inputs, {"same": inputs}], ids)
        if steps.full:
            left_out += steps.look()
    left_out += steps.look()
    assert steps.look() == []
    return torch.cat([layer.weight.flatten(), layer.bias]).detach(), left_out, steps.finite


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "bad", [{}, {0: NAN}, {2: INF, 3: -INF}, {LOOK_EVERY - 1: NAN, LOOK_EVERY: NAN}]
)
def test_bad_batches_are_as_if_they_had_not_been(
    optimizer: str, fused: bool, bad: dict[int, float]
) -> None:
    data = batches(LOOK_EVERY + 3, bad)
    good = [batch for number, batch in enumerate(data) if number not in bad]
    expected, none, count = train(optimizer, False, good)
    weights, left_out, finite = train(optimizer, fused, data)
    # A fused optimiser rounds otherwise.
    torch.testing.assert_close(weights, expected, rtol=1e-4 if fused else 0, atol=1e-6)
    assert none == []
    assert count == finite == len(good)
    assert [batch.ids for batch in left_out] == [[4 * number + 1] for number in sorted(bad)]


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_that_is_not_finite_of_inputs_that_are(fused: bool) -> None:
    layer = nn.Linear(3, 1)
    steps = Steps(OPTIMIZERS["AdamW"](layer.parameters(), fused), layer.weight.device, Ranks())
    before = layer.weight.detach().clone()
    for inputs in (torch.ones(2, 3), [torch.arange(2), "text"], torch.ones(2, 3, dtype=torch.int)):
        steps.take(layer.weight.sum() * INF, inputs, torch.tensor([5, 6]))
    assert steps.look() == [LeftOut([]), LeftOut([]), LeftOut([])]
    assert torch.equal(layer.weight, before)
    assert steps.finite == 0


def test_a_fused_optimizer_is_asked_after_its_first_step_and_then_seldom() -> None:
    layer = nn.Linear(3, 1)
    steps = Steps(OPTIMIZERS["SGD"](layer.parameters(), True), layer.weight.device, Ranks())
    asked = []
    for number, (inputs, ids) in enumerate(batches(2 * LOOK_EVERY + 2, {0: NAN})):
        steps.take(layer(inputs).sum(), inputs, ids)
        if steps.full:
            asked.append(number)
            steps.look()
    # The first batch is bad, so the host decides about the second.
    assert asked == [0, LOOK_EVERY + 1, 2 * LOOK_EVERY + 1]
