"""Drawing samples by their gates."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from adapruner import Pruner
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method
from adapruner.pruning.methods.base import Method

SAMPLED = find_method("sampled")
PRUNE = {"phase": "prune", "slope": 1.0}
DRAWS = 4000


def gates_of(pressures: list[float], unit: float, method: Method = SAMPLED) -> Gates:
    """Gates with given mean pressures, visited in the last epoch."""
    gates = Gates(len(pressures), 0.5, method, track_losses=True)
    gates.logits.copy_(1 - unit * torch.tensor(pressures))
    gates.age.fill_(1)
    return gates


def first_drawn(gates: Gates, history: list[dict], final: bool) -> np.ndarray:
    """Number of draws in which each sample comes first."""
    firsts = [SAMPLED.keys(gates, history, seed, final).argmax().item() for seed in range(DRAWS)]
    return np.bincount(firsts, minlength=len(gates.logits)) / DRAWS


def shares(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def test_the_unit_is_what_a_pressure_of_one_does() -> None:
    assert SAMPLED.logit_per_pressure([{"phase": "warm-up", "slope": 1.0}]) == 0
    step = 0.05 * (s := 1 / (1 + math.exp(-1))) * (1 - s)
    assert SAMPLED.logit_per_pressure([PRUNE]) == pytest.approx(step, rel=1e-12)
    s = 1 / (1 + math.exp(-(1 - step)))
    assert SAMPLED.logit_per_pressure([PRUNE, PRUNE]) == pytest.approx(step + 0.05 * s * (1 - s))


@pytest.mark.parametrize("epochs", [2, 12, 60, 300])
def test_a_gate_tells_the_mean_pressure(epochs: int) -> None:
    losses = torch.tensor([0.4, 1.0, 2.0, 0.02, 6.0])
    pruner = Pruner(5, 1.0, epochs, warmup_epochs=1)
    for _ in range(epochs):
        pruner.weigh(losses, torch.arange(5))
        pruner.step()
    unit = SAMPLED.at(1.0, epochs).logit_per_pressure(pruner.history)
    found = ((1 - pruner.gates.logits) / unit).tolist()
    expected = [min(loss + 0.4 * math.log(loss), 3.0) for loss in losses.tolist()]
    assert found == pytest.approx(expected, rel=0.12, abs=0.01)


def test_the_kept_are_drawn_by_how_far_they_are_from_the_reach() -> None:
    history = [PRUNE] * 8
    gates = gates_of([-9.0, -0.2, 0.1, 1.3, 1.5, 1.8, 2.9], SAMPLED.logit_per_pressure(history))
    gates.age[1] = 9  # has no effect here
    found = first_drawn(gates, history, final=True)
    # The target range is 0 to 1.4, and the largest distance is 1.4.
    expected = shares([math.exp(-6 * far) for far in (1.4, 0.2, 0.0, 0.0, 0.1, 0.4, 1.4)])
    assert found.tolist() == pytest.approx(expected, abs=0.03)


def test_what_was_hard_and_is_easy_now_is_kept() -> None:
    pruner = Pruner(600, 0.3, epochs=13, warmup_epochs=1)
    group = torch.arange(600) % 3  # fitted early, fitted in the middle of the run, never fitted
    for epoch in range(13):
        now = torch.tensor([0.01, 3.0 if epoch < 7 else 0.01, 5.0])
        for ids in pruner.batches(50):
            pruner.weigh(now[group[ids]], ids)
        pruner.step()
    kept = np.bincount(group[pruner.result().indices], minlength=3)
    # The others have chances of e^−8.4. A few of the 200 were last read while they were hard.
    assert kept[1] >= 170
    assert kept.sum() == 180


def test_epochs_read_evenly_what_is_in_reach_and_by_turns() -> None:
    history = [PRUNE] * 8
    gates = gates_of([0.8, 2.5, 3.0, -1.1, -2.0, 0.8], SAMPLED.logit_per_pressure(history))
    gates.age[5] = 3
    found = first_drawn(gates, history, final=False)
    # Distances below 1.2 count as 1.2. An age of three epochs makes the chance three times larger.
    expected = shares([1.0, 1.0, math.exp(-6 * 0.2), 1.0, math.exp(-6 * 0.2), 3.0])
    assert found.tolist() == pytest.approx(expected, abs=0.03)


def test_what_cannot_be_read_is_not_drawn() -> None:
    gates = gates_of([1.0] * 5, 0.1)
    gates.exclude(torch.tensor([2]))
    for final in (False, True):
        assert SAMPLED.keys(gates, [PRUNE], 0, final)[2] == -torch.inf


def test_small_ratios_pass_over_the_easy_less() -> None:
    assert SAMPLED.at(0.3, 20) == SAMPLED
    small = SAMPLED.at(0.15, 20)
    assert small.easy_side_weight == pytest.approx(1 / 16)
    history = [PRUNE] * 8
    unit = small.logit_per_pressure(history)
    found = small.scores(gates_of([-0.8, 1.6, 0.5], unit, small), history)
    assert found.tolist() == pytest.approx([1 - unit * 0.05, 1 - unit * 0.2, 1.0], abs=1e-6)
    assert find_method("published").at(0.01, 500) is find_method("published")


def test_the_training_loss_is_the_plain_mean_while_gates_step() -> None:
    x, y = torch.randn(32, 5), torch.randint(0, 3, (32,))
    model = nn.Linear(5, 3)
    pruner = Pruner(32, 0.5, epochs=4, warmup_epochs=0)
    ids = torch.arange(32)
    loss = pruner.loss(model(x), y, ids)
    plain = functional.cross_entropy(model(x), y)
    torch.testing.assert_close(loss, plain)
    got, want = (torch.autograd.grad(each, model.weight)[0] for each in (loss, plain))
    torch.testing.assert_close(got, want)
    assert (pruner.gates.logits != 1).all()


@pytest.mark.parametrize("method", ["sampled", "published"])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_never_had_a_finite_loss_is_kept_last(method: str, broken: float) -> None:
    losses = torch.full((1000,), 8.0)  # the worst sample
    losses[::50] = broken
    pruner = Pruner(1000, 0.98, epochs=8, method=method)
    while not pruner.finished:
        for ids in pruner.batches(100):
            pruner.weigh(losses[ids], ids)
        pruner.step()
    result = pruner.result()
    assert result.indices.tolist() == [i for i in range(1000) if i % 50]
    assert result.gate_logits[::50].max() < result.gate_logits[1::50].min()


def test_one_that_was_finite_once_ranks_by_that() -> None:
    pruner = Pruner(4, 0.5, epochs=6, warmup_epochs=0, explore=1.0)
    for epoch in range(6):
        losses = torch.tensor([0.4, 0.4 if epoch == 0 else torch.nan, 6.0, torch.nan])
        pruner.weigh(losses, torch.arange(4))
        pruner.step()
    hard = 1 - 1.4 * SAMPLED.at(0.5, 6).logit_per_pressure(pruner.history)
    assert pruner.result().gate_logits.tolist() == pytest.approx([1, 1, hard, -1e3])
    assert pruner.result().indices.tolist() == [0, 1]


def test_gates_that_never_stepped_are_drawn_by_chance_too() -> None:
    gates = Gates(1000, 0.5, SAMPLED)
    gates.age.fill_(1)
    first, second = (
        SAMPLED.keys(gates, [PRUNE] * 3, seed, True).topk(500).indices for seed in (0, 1)
    )
    assert 180 < torch.isin(first, second).sum() < 320


def losses_of(seed: int, count: int) -> torch.Tensor:
    return 4 * torch.rand(count, generator=torch.Generator().manual_seed(seed)) ** 2


def run(seed: int, count: int = 400, keep_ratio: float = 0.3, epochs: int = 8) -> Pruner:
    losses = losses_of(0, count)
    pruner = Pruner(count, keep_ratio, epochs, seed=seed)
    while not pruner.finished:
        for ids in pruner.batches(64):
            pruner.weigh(losses[ids], ids)
        pruner.step(1.0)
    return pruner


def test_a_seed_draws_one_set_and_another_one_another() -> None:
    first, again, other = (run(seed).result().indices.tolist() for seed in (0, 0, 1))
    assert len(first) == len(other) == 120
    assert first == again
    common = len(set(first) & set(other))
    assert 40 < common < 119  # equal losses, but another draw


def test_the_result_is_the_last_draw_whatever_the_held_out_losses() -> None:
    result = run(0).result()
    assert result.selected_epoch is None
    assert not result.forced


def test_each_epoch_reads_another_draw_of_the_same_size() -> None:
    losses = losses_of(0, 300)
    pruner = Pruner(300, 0.5, 12, explore=0.0)
    reads = []
    while not pruner.finished:
        reads.append(pruner.reads())
        for ids in pruner.batches(64):
            pruner.weigh(losses[ids], ids)
        pruner.step()
    at_target = [read for read in reads if read.sum() == 150]
    assert len(at_target) >= 4
    for one, next_one in pairwise(at_target):
        # Samples take turns: two epochs share fewer samples than chance (75).
        assert (one & next_one).sum() < 75
