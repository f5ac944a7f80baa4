"""Steps of the optimiser, only for finite losses, with and without waiting for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
    steps = Steps(layer, made, layer.weight.device)
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
    made = OPTIMIZERS["AdamW"](layer.parameters(), fused)
    steps = Steps(layer, made, layer.weight.device)
    before = layer.weight.detach().clone()
    for inputs in (torch.ones(2, 3), [torch.arange(2), "text"], torch.ones(2, 3, dtype=torch.int)):
        steps.take(layer.weight.sum() * INF, inputs, torch.tensor([5, 6]))
    assert steps.look() == [LeftOut([]), LeftOut([]), LeftOut([])]
    assert torch.equal(layer.weight, before)
    assert steps.finite == 0


def test_a_fused_optimizer_is_asked_after_its_first_step_and_then_seldom() -> None:
    layer = nn.Linear(3, 1)
    made = OPTIMIZERS["SGD"](layer.parameters(), True)
    steps = Steps(layer, made, layer.weight.device)
    asked = []
    for number, (inputs, ids) in enumerate(batches(2 * LOOK_EVERY + 2, {0: NAN})):
        steps.take(layer(inputs).sum(), inputs, ids)
        if steps.full:
            asked.append(number)
            steps.look()
    # The first batch is bad, so the host decides about the second.
    assert asked == [0, LOOK_EVERY + 1, 2 * LOOK_EVERY + 1]


@pytest.mark.parametrize("fused", [False, True])
def test_a_finite_loss_with_gradients_that_are_not_finite_takes_no_step(fused: bool) -> None:
    layer = nn.Linear(3, 1, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    steps = Steps(layer, OPTIMIZERS["AdamW"](layer.parameters(), fused), layer.weight.device)
    good, ids = torch.ones(2, 3), torch.tensor([5, 6])
    steps.take(layer(good).sum(), good, ids)
    before = layer.weight.detach().clone()
    # The root of 0 is 0, and its slope is infinite.
    loss = (layer(torch.zeros(2, 3))).abs().sqrt().sum() + (layer.weight - before).sum().sqrt()
    assert loss.isfinite()
    steps.take(loss, good, ids)
    assert steps.look() == [LeftOut([])]
    assert torch.equal(layer.weight, before)
    assert steps.finite == 1


def test_large_finite_gradients_take_their_step() -> None:
    layer = nn.Linear(3, 1, bias=False)
    before = layer.weight.detach().clone()
    steps = Steps(layer, OPTIMIZERS["SGD"](layer.parameters(), False), layer.weight.device)
    # The sum of their squares is not finite.
    steps.take(layer.weight.sum() * 1e30, torch.ones(2, 3), torch.tensor([5, 6]))
    assert steps.look() == []
    assert (layer.weight < before).all()


def test_sparse_gradients_are_looked_at() -> None:
    table = nn.Embedding(4, 2, sparse=True, device="cpu")
    before = table.weight.detach().clone()
    steps = Steps(table, torch.optim.SGD(table.parameters(), lr=0.1), table.weight.device)
    picked = torch.tensor([1, 1], device="cpu")
    steps.take(table(picked).sum() * 0 + (table(picked) - before[1]).sum().sqrt(), picked, picked)
    assert steps.look() == [LeftOut([])]
    assert torch.equal(table.weight, before)
    steps.take(table(picked).sum(), picked, picked)
    assert steps.look() == []
    torch.testing.assert_close(
        table.weight - before, torch.tensor([[0, 0], [-0.2, -0.2], [0, 0], [0, 0]], device="cpu")
    )


def normed(
    fused: bool, data: list[tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], list[LeftOut]]:
    """The final state of a model with several norms, and the batches left out."""
    model = nn.Sequential(
        nn.BatchNorm1d(3),
        nn.Linear(3, 4),
        nn.BatchNorm1d(4, affine=False, dtype=torch.float64).float(),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.Linear(4, 1),
    )
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.3)
    steps = Steps(model, OPTIMIZERS["SGD"](model.parameters(), fused), model[1].weight.device)
    steps.begin()
    left_out: list[LeftOut] = []
    for inputs, ids in data:
        steps.take(model(inputs).square().mean(), inputs, ids)
        if steps.full:
            left_out += steps.look()
    state = {name: value for name, value in model.state_dict().items() if "batches" not in name}
    return state, left_out + steps.look()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [{0: NAN}, {1: INF, 2: NAN, 5: -INF}])
def test_batch_norms_forget_a_batch_that_is_left_out(fused: bool, bad: dict[int, float]) -> None:
    data = batches(7, bad)
    expected, _ = normed(False, [batch for number, batch in enumerate(data) if number not in bad])
    state, left_out = normed(fused, data)
    assert len(left_out) == len(bad)
    for name, value in expected.items():
        assert value.isfinite().all()
        torch.testing.assert_close(state[name], value, rtol=1e-4 if fused else 0, atol=1e-6)


def test_running_statistics_that_overflow_are_not_taken_over() -> None:
    """Loss and gradients of such a batch are finite, so its step is taken."""
    norm = nn.BatchNorm1d(3)
    steps = Steps(norm, OPTIMIZERS["SGD"](norm.parameters(), False), norm.weight.device)
    steps.begin()
    inputs = torch.tensor([[3e38, 0, 0], [0, 1, 0], [0, 0, 1]])
    steps.take(norm(inputs).square().mean(), inputs, torch.arange(3))
    assert steps.finite == 1
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert norm.running_var.tolist() == [1, 1, 1]


def test_batch_norms_of_a_loaded_model_keep_what_was_loaded() -> None:
    norm = nn.BatchNorm1d(3)
    steps = Steps(norm, OPTIMIZERS["SGD"](norm.parameters(), False), norm.weight.device)
    norm.running_mean.fill_(5)  # as by load_state_dict, after the steps were made
    steps.begin()
    inputs = torch.full((4, 3), NAN)
    steps.take(norm(inputs).sum(), inputs, torch.arange(4))
    assert norm.running_mean.tolist() == [5, 5, 5]
