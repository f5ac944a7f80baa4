"""Drawing samples by their gates."""

from __future__ import annotations

import math
from dataclasses import replace
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
from adapruner.pruning.methods.sampled import Sampled, mean_last_loss

SAMPLED = find_method("sampled")
assert isinstance(SAMPLED, Sampled)
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


@pytest.mark.parametrize("factor", [1.0, 0.01, 30.0])
@pytest.mark.parametrize("epochs", [2, 12, 60, 300])
def test_a_gate_tells_the_mean_pressure(epochs: int, factor: float) -> None:
    losses = torch.tensor([0.2, 1.0, 0.6, 0.01, 3.19])  # their mean is 1
    pruner = Pruner(5, 1.0, epochs, warmup_epochs=1)
    for _ in range(epochs):
        pruner.weigh(factor * losses, torch.arange(5))
        pruner.step()
    unit = SAMPLED.at(1.0, epochs).logit_per_pressure(pruner.history)
    found = ((1 - pruner.gates.logits) / unit).tolist()
    expected = [min(loss + 0.15 * math.log(loss), 1.0) for loss in losses.tolist()]
    assert found == pytest.approx(expected, rel=0.12, abs=0.01)


def test_the_kept_are_drawn_by_how_far_they_are_from_the_target_range() -> None:
    history = [PRUNE] * 9
    pressures = [-9.0, -0.25, -0.1, 0.34, 0.4, 0.45, 0.9]
    gates = gates_of(pressures, SAMPLED.logit_per_pressure(history))
    gates.age[1] = 9  # has no effect here
    found = first_drawn(gates, history, final=True)
    # Eight epochs after the first one: two thirds of the largest sharpness, 20. Two of seven
    # samples may lie above the range, which ends at 0.4. Distances above it count 1.5 times.
    expected = shares([math.exp(-40 / 3 * far) for far in (0.65, 0.1, 0, 0, 0, 0.075, 0.75)])
    assert found.tolist() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("size", [1, 2, 3, 101, 1000])
@pytest.mark.parametrize("low", [-1.0, 0.3])
@pytest.mark.parametrize(("ratio", "most"), [(0.7, 0.4), (0.3, 0.4), (0.15, 0.7), (1e-6, 1.0)])
def test_the_range_ends_later_where_many_samples_are_hard(
    size: int, low: float, ratio: float, most: float
) -> None:
    history = [PRUNE] * 9
    method = replace(SAMPLED.at(ratio, 20), step_size=SAMPLED.step_size)
    pressures = np.random.default_rng(size).uniform(low, 1.0, size)
    gates = gates_of(pressures.tolist(), SAMPLED.logit_per_pressure(history))
    excluded = torch.arange(0, size // 10)
    gates.exclude(excluded)
    found = method.scores(gates, history).numpy()
    known = np.sort(pressures[len(excluded) :])
    # The largest value with at most this share of the samples above it.
    end = max(0.35, next(x for x in known if (known > x).sum() <= most * len(known)))
    # The largest distance above the range falls from 0.65 to 0.1 while its end moves to 0.55.
    farthest = np.interp(end, [0.35, 0.55], [0.65, 0.1])
    easy = min(1, ratio / 0.3) ** 4
    below, above = easy * (-0.15 - pressures), (pressures - end).clip(0, farthest)
    far = np.maximum(below.clip(0, 0.65), 1.5 * above)
    assert found[len(excluded) :] == pytest.approx(1 - far[len(excluded) :], abs=1e-4)
    assert (found[: len(excluded)] == -np.inf).all()


def test_a_run_without_readable_samples_has_no_scores() -> None:
    gates = gates_of([0.1, 0.9], SAMPLED.logit_per_pressure([PRUNE]))
    gates.exclude(torch.tensor([0, 1]))
    assert SAMPLED.scores(gates, [PRUNE]).tolist() == [-torch.inf] * 2


def test_sharpness_grows_with_the_epochs_that_gates_have_seen() -> None:
    warm = [{"phase": "warm-up", "slope": 1.0}] * 3
    seen = (0, 1, 3, 5, 9, 13, 397)
    found = [SAMPLED.current_sharpness([*warm, *[PRUNE] * epochs]) for epochs in seen]
    # Before the eighth epoch after the first one, the square of the share of eight counts too.
    assert found == pytest.approx([0, 0, 20 / 3 / 16, 10 / 4, 40 / 3, 15, 19.8])


@pytest.mark.parametrize(("epochs", "warmup_epochs"), [(1, 0), (2, 1), (2, 0), (3, 1)])
def test_the_shortest_runs_keep_a_random_set(epochs: int, warmup_epochs: int) -> None:
    losses = torch.linspace(0.01, 5.0, 4000)
    pruner = Pruner(4000, 0.5, epochs, warmup_epochs=warmup_epochs)
    while not pruner.finished:
        for ids in pruner.batches(500):
            pruner.weigh(losses[ids], ids)
        pruner.step()
    # Kept in each quarter, from the easiest to the hardest: 500 by chance, standard deviation 19.
    kept = (pruner.result().indices // 1000).bincount(minlength=4)
    assert (kept - 500).abs().max() < 80
    assert pruner.history[-1].get("chance", 1.0) > 0.999


def test_what_was_hard_and_is_easy_now_is_kept() -> None:
    pruner = Pruner(600, 0.3, epochs=17, warmup_epochs=1)
    group = torch.arange(600) % 3  # fitted early, fitted in the middle of the run, never fitted
    for epoch in range(17):
        now = torch.tensor([0.01, 3.0 if epoch < 7 else 0.01, 5.0])
        for ids in pruner.batches(50):
            pruner.weigh(now[group[ids]], ids)
        pruner.step()
    kept = np.bincount(group[pruner.result().indices], minlength=3)
    # A few of the 200 were last read while they were hard.
    assert kept[1] >= 150
    assert kept[2] <= 10
    assert kept.sum() == 180


def test_epochs_read_in_proportion_to_the_last_loss_and_at_least_a_share() -> None:
    history = [PRUNE] * 8
    gates = gates_of([0.2, 0.2, 0.2, 0.2, 0.9, 0.2], SAMPLED.logit_per_pressure(history))
    assert gates.last_loss is not None
    gates.last_loss.copy_(torch.tensor([8.0, 4.0, 2.0, 0.1, 5.9, torch.nan]))  # their mean is 4
    gates.age[5] = 3  # has no effect here
    found = first_drawn(gates, history, final=False)
    # The fifth is above the target range. The last one has no finite loss and counts as the mean.
    assert found.tolist() == pytest.approx(shares([2.0, 1.0, 0.5, 0.3, 0.3, 1.0]), abs=0.03)


def test_epochs_read_evenly_without_last_losses_or_with_losses_of_zero() -> None:
    for track in (False, True):
        gates = Gates(5, 0.5, SAMPLED, track_losses=track)
        gates.logits.copy_(torch.tensor([0.9, 1.1, 0.8, 1.2, 0.95]))
        if gates.last_loss is not None:
            gates.last_loss.zero_()
        assert SAMPLED.read_scores(gates, [PRUNE]).tolist() == [0.0] * 5
        assert ("fitted" in SAMPLED.figures(gates, [PRUNE])) is track


@pytest.mark.parametrize("size", [1, 7, 65_537])
def test_the_mean_of_last_losses_is_that_of_float64(size: int) -> None:
    gates = Gates(size, 1.0, SAMPLED, track_losses=True)
    assert gates.last_loss is not None
    losses = 3 * torch.rand(size, generator=torch.Generator().manual_seed(size)) ** 4
    gates.last_loss.copy_(losses)
    assert mean_last_loss(gates) == pytest.approx(losses.double().mean().item(), rel=1e-5)
    gates.last_loss[::7] = torch.inf
    gates.exclude(torch.arange(1, size, 7))
    kept = [i for i in range(size) if i % 7 > 1]
    expected = losses[kept].double().mean().item() if kept else 0.0
    assert mean_last_loss(gates) == pytest.approx(expected, rel=1e-5)


def test_figures_tell_the_fitted_share_and_how_much_is_chance() -> None:
    history = [PRUNE] * 13  # sharpness 15
    gates = gates_of([0.1, -0.1, 0.45, 0.55, 0.1], SAMPLED.logit_per_pressure(history))
    gates.exclude(torch.tensor([4]))
    assert gates.last_loss is not None
    gates.last_loss.copy_(torch.tensor([0.19, 0.21, 5.0, 0.01, 0.0]))
    gates.set_real("loss_scale", 2.0)
    chances = np.array(shares([1.0, 1.0, 1.0, math.exp(-15 * 1.5 * 0.1)]))
    entropy = -(chances * np.log(chances)).sum()
    found = SAMPLED.figures(gates, history)
    expected = {"fitted": 0.5, "chance": math.exp(entropy) / 4, "neighbours": 0.0}
    assert found == pytest.approx(expected, abs=6e-4)
    assert SAMPLED.figures(gates, [PRUNE])["chance"] == 1.0  # sharpness 0


def test_a_run_tells_its_figures_in_the_history() -> None:
    losses = torch.cat([torch.full((30,), 0.001), torch.full((70,), 1.0)])
    pruner = Pruner(100, 0.5, 6, warmup_epochs=2)
    while not pruner.finished:
        for ids in pruner.batches(25):
            pruner.weigh(losses[ids], ids)
        pruner.step()
    assert [entry.get("fitted") for entry in pruner.history] == [None, None, 0.3, 0.3, 0.3, 0.3]
    chances = [entry["chance"] for entry in pruner.history[2:]]
    assert chances[0] == 1.0
    assert chances == sorted(chances, reverse=True)


def kept_of(factor: float, seed: int, epochs: int = 10) -> set[int]:
    """The kept set of a run on made-up losses times ``factor``."""
    count = 1501
    base = 4 * torch.rand(count, generator=torch.Generator().manual_seed(seed)) ** 3
    pruner = Pruner(count, 0.45, epochs, seed=seed)
    while not pruner.finished:
        noise = torch.rand(count, generator=torch.Generator().manual_seed(pruner.epoch))
        losses = base * (1 + noise) / (1 + pruner.epoch)
        for ids in pruner.batches(64):
            pruner.weigh(factor * losses[ids], ids)
        pruner.step()
    return set(pruner.result().indices.tolist())


@pytest.mark.parametrize("factor", [2.0**-10, 0.1, 10.0, 4096.0])
def test_the_scale_of_losses_does_not_matter(factor: float) -> None:
    for seed in (0, 1):
        own, others = kept_of(1.0, seed), kept_of(factor, seed)
        # A product with a power of two is exact. Other products round.
        assert len(own & others) >= (675 if math.log2(factor).is_integer() else 670)


def test_what_cannot_be_read_is_not_drawn() -> None:
    gates = gates_of([1.0] * 5, 0.1)
    gates.exclude(torch.tensor([2]))
    for final in (False, True):
        assert SAMPLED.keys(gates, [PRUNE], 0, final)[2] == -torch.inf


def test_small_ratios_pass_over_the_easy_less() -> None:
    assert SAMPLED.at(0.3, 20).share == SAMPLED.at(1.0, 20).share == 1
    small = SAMPLED.at(0.15, 20)
    assert small.share == 0.5
    history = [PRUNE] * 8
    unit = small.logit_per_pressure(history)
    found = small.scores(gates_of([-0.95, 0.55, 0.2], unit, small), history)
    assert found.tolist() == pytest.approx([1 - 0.05, 1 - 1.5 * 0.2, 1.0], abs=1e-5)
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


def test_what_never_had_a_finite_loss_is_kept_last_after_one_epoch_too() -> None:
    losses = torch.rand(100, generator=torch.Generator().manual_seed(0))
    losses[::4] = torch.nan
    pruner = Pruner(100, 0.75, 2, warmup_epochs=1)
    while not pruner.finished:
        for ids in pruner.batches(20):
            pruner.weigh(losses[ids], ids)
        pruner.step()
    assert pruner.result().indices.tolist() == [i for i in range(100) if i % 4]


def test_one_that_was_finite_once_ranks_by_that() -> None:
    pruner = Pruner(4, 0.5, epochs=6, warmup_epochs=0, explore=1.0)
    for epoch in range(6):
        losses = torch.tensor([0.4, 0.4 if epoch == 0 else torch.nan, 6.0, torch.nan])
        pruner.weigh(losses, torch.arange(4))
        pruner.step()
    # The mean of the first epoch is 6.8 / 3. The third sample has the largest pressure, 1.
    scores = pruner.result().gate_logits.tolist()
    assert scores == pytest.approx([1, 1, 1 - 1.5 * (1 - 0.35), -1e3], abs=0.05)


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
        assert 0 < (one & next_one).sum() < 150
