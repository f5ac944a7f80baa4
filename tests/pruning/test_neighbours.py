"""Near-duplicates that lie next to each other in the dataset."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from adapruner import Pruner, PruneResult
from adapruner.errors import PruningWarning
from adapruner.pruning import bitmask, neighbours
from adapruner.results.reasons import reason_counts

COUNT, FRAMES, EPOCHS = 3000, 20, 20


def values_of(size: int, seed: int, alike: float) -> torch.Tensor:
    """A moving average of noise and noise of each sample."""
    generator = np.random.default_rng(seed)
    slow = np.convolve(generator.normal(size=size + 10), np.ones(11) / 11**0.5, "valid")[:size]
    mixed = alike * slow + (1 - alike) * generator.normal(size=size)
    return torch.from_numpy(mixed.astype(np.float32))


@pytest.mark.parametrize("size", [1000, 1001, 1023, 5000])
@pytest.mark.parametrize("piece", [8, 104, 2**18])
@pytest.mark.parametrize(("alike", "scale"), [(0.0, 1.0), (0.5, 1e-3), (1.0, 1e6)])
@pytest.mark.parametrize("count", [None, 1, 7, 300])
def test_likeness_is_a_difference_of_correlations(
    size: int,
    piece: int,
    alike: float,
    scale: float,
    count: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bitmask, "PIECE", piece)
    values = scale * values_of(size, size, alike)
    part = torch.rand(size, generator=torch.Generator().manual_seed(1))
    known = part < 0.9
    logits = (1 - values).masked_fill(~known, 1.0).masked_fill(part > 0.95, -torch.inf)
    values, known = (1 - logits).double(), known & (logits != 1) & (part <= 0.95)  # rounded
    classes = None if count is None else (torch.arange(size) * 13 % size * count // size).short()
    for c in [] if classes is None else classes.unique():
        values[known & (classes == c)] -= values[known & (classes == c)].mean()

    def correlation(distance: int) -> float:
        pairs = [(i, i + distance) for i in range(size - distance)]
        both = [(values[i], values[j]) for i, j in pairs if known[i] and known[j]]
        return float(np.corrcoef(np.array(both, dtype=np.float64).T)[0, 1])

    expected = correlation(1) - correlation(neighbours.FAR)
    assert neighbours.likeness(logits, classes) == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("size", [0, 1, 2, 99, 100, 101, 999, 1000, 1500])
def test_values_that_tell_nothing_are_not_alike(size: int) -> None:
    for logit in (1.0, 0.5, -torch.inf):
        assert neighbours.likeness(torch.full((size,), logit)) == 0


@pytest.mark.parametrize("size", [1, 2, 5, 6, 11, 12, 100, 333])
@pytest.mark.parametrize("piece", [8, 16, 2**18])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_local_mean(
    size: int, piece: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitmask, "PIECE", piece)
    values = values_of(size, size, 0.5)
    known = torch.rand(size, generator=torch.Generator().manual_seed(2)) < share
    found = values.masked_fill(~known, -2000.0)
    neighbours.subtract_local_mean(found, -1000.0)
    for i in range(size):
        near = range(max(i - neighbours.REACH, 0), min(i + neighbours.REACH + 1, size))
        mean = np.mean([float(values[j]) for j in near if known[j]] or [0.0])
        expected = float(values[i]) - mean if known[i] else -2000.0
        assert float(found[i]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("piece", [8, 2**18])
def test_only_samples_that_are_worse_than_their_neighbours_lose_by_it(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitmask, "PIECE", piece)
    values = 4 * values_of(333, 7, 0.5)
    values[50], values[60] = -1000.0, -torch.inf
    means = values.clone()
    neighbours.subtract_local_mean(means, -1000.0)
    found = values.clone()
    neighbours.compare(found, -1000.0)
    for i in range(333):
        unknown = i in (50, 60)
        expected = float(values[i]) if unknown else min(float(means[i]) + 1, 0.0)
        assert float(found[i]) == pytest.approx(expected, abs=1e-4)
    assert (found == 0).sum() > 100


def losses_of_groups(seed: int = 0) -> torch.Tensor:
    """Losses of groups of near-duplicates, float32 ``[COUNT]``: three groups of ten are hard."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(COUNT // FRAMES, generator=generator) < 0.3
    of_group = torch.where(hard, 1.0, 0.02)
    spread = 1 + 0.5 * torch.rand(COUNT, generator=generator)
    return of_group.repeat_interleave(FRAMES) * spread


def drive(pruner: Pruner, losses: torch.Tensor, epochs: int | None = None) -> Pruner:
    """Epochs whose losses never change, to the end or so many of them."""
    while not pruner.finished and (epochs is None or pruner.epoch < epochs):
        ids = torch.from_numpy(np.flatnonzero(pruner.reads()))
        pruner.weigh(losses[ids], ids)
        pruner.step()
    return pruner


def shares_kept(result: PruneResult) -> torch.Tensor:
    """The share that each group keeps."""
    return result.kept.view(-1, FRAMES).float().mean(1)


@pytest.mark.parametrize("floors", [False, True])
def test_groups_of_alike_neighbours_keep_about_their_share(floors: bool) -> None:
    known = {"labels": torch.arange(COUNT) // FRAMES % 3, "balance": "floor"} if floors else {}
    pruner = Pruner(COUNT, 0.5, EPOCHS, **known)
    drive(pruner, losses_of_groups())
    with pytest.warns(PruningWarning, match="neighbours in the dataset"):
        result = pruner.result()
    assert result.history[-1]["neighbours"] > 0.8
    assert result.config["balance"] == "neighbours"
    assert result.quota_labels is None
    assert any("neighbours" in text for text in result.warnings)
    shares, hard = shares_kept(result), losses_of_groups()[::FRAMES] >= 1
    assert len(result.indices) == COUNT // 2
    assert shares.min() >= 0.15
    assert shares[hard].mean() == pytest.approx(0.5, abs=0.2)
    assert shares[~hard].mean() == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("within", [False, True])
def test_a_result_before_the_end_warns_of_alike_neighbours(within: bool) -> None:
    pruner, losses = Pruner(COUNT, 0.5, EPOCHS), losses_of_groups()
    drive(pruner, losses, EPOCHS - 2)
    if within:  # a part of one more epoch
        ids = torch.from_numpy(np.flatnonzero(pruner.reads())[: COUNT // 4])
        pruner.weigh(losses[ids], ids)
    with pytest.warns(PruningWarning, match="neighbours in the dataset"):
        result = pruner.result()
    assert result.partial
    assert result.config["balance"] == "neighbours"
    assert any("neighbours" in text for text in result.warnings)


def test_in_another_order_the_losses_decide() -> None:
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    losses = losses_of_groups()
    shuffled = drive(Pruner(COUNT, 0.5, EPOCHS), losses[order]).result()
    assert abs(shuffled.history[-1]["neighbours"]) < 0.2
    assert shuffled.config["balance"] is None
    kept = torch.zeros(COUNT, dtype=torch.bool)
    kept[order[shuffled.indices]] = True
    hard = losses >= 1
    assert kept[hard].float().mean() < 0.1


@pytest.mark.parametrize("known", [False, True])
def test_small_classes_in_order_are_not_alike_neighbours(known: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    classes = torch.arange(150).repeat_interleave(COUNT // 150)
    of_class = 0.02 + torch.rand(150, generator=generator)
    losses = of_class[classes] * (0.8 + 0.4 * torch.rand(COUNT, generator=generator))
    more = {"labels": classes, "balance": "floor"} if known else {}
    pruner = Pruner(COUNT, 0.5, EPOCHS, **more)
    result = drive(pruner, losses).result()
    assert (result.history[-1]["neighbours"] >= neighbours.ALIKE) is not known
    assert result.config["balance"] == ("floor" if known else "neighbours")


def test_a_state_without_the_figure_has_no_alike_neighbours() -> None:
    losses = losses_of_groups()
    state = drive(Pruner(COUNT, 0.5, EPOCHS), losses, EPOCHS - 2).state_dict()
    for entry in state["history"]:
        entry.pop("neighbours", None)
    pruner = Pruner(COUNT, 0.5, EPOCHS)
    pruner.load_state_dict(state)
    assert pruner.result().config["balance"] is None
    assert drive(pruner, losses).result().config["balance"] == "neighbours"


@pytest.mark.parametrize("way", ["classes in order", "one bad part"])
def test_parts_over_a_long_distance_are_not_alike_neighbours(way: str) -> None:
    losses = 0.02 * (1 + torch.rand(COUNT, generator=torch.Generator().manual_seed(4)))
    if way == "classes in order":
        losses *= torch.linspace(1, 30, 5).repeat_interleave(COUNT // 5)
    else:
        losses[COUNT // 3 : COUNT // 2] = 1.0
    result = drive(Pruner(COUNT, 0.5, EPOCHS), losses).result()
    assert result.history[-1]["neighbours"] < neighbours.ALIKE
    assert result.config["balance"] is None
    if way == "one bad part":
        assert not result.kept[COUNT // 3 : COUNT // 2].any()


def test_a_wrong_label_among_alike_neighbours_is_left_out() -> None:
    losses = losses_of_groups()
    easy = losses < 0.5
    wrong = easy & (torch.rand(COUNT, generator=torch.Generator().manual_seed(5)) < 0.05)
    losses[wrong] = 2.0
    pruner = Pruner(COUNT, 0.7, EPOCHS)
    drive(pruner, losses)
    assert pruner.result().kept[wrong].float().mean() < 0.02


def test_shares_that_are_asked_for_stay() -> None:
    labels = torch.arange(COUNT) % 4
    result = drive(Pruner(COUNT, 0.5, EPOCHS, labels=labels), losses_of_groups()).result()
    assert result.config["balance"] == "class"
    assert not any("neighbours" in text for text in result.warnings)
    assert labels[result.indices].bincount().tolist() == [COUNT // 8] * 4


def test_the_published_method_compares_nothing() -> None:
    pruner = drive(Pruner(COUNT, 0.5, EPOCHS, method="published"), losses_of_groups())
    assert pruner.result().config["balance"] is None
    assert "neighbours" not in pruner.history[-1]


@pytest.mark.filterwarnings("ignore:neighbours in the dataset")
def test_a_resumed_run_and_a_loaded_end_give_the_same_result() -> None:
    losses = losses_of_groups()
    whole, first = (drive(Pruner(COUNT, 0.4, EPOCHS), losses, n) for n in (None, 9))
    expected = whole.result()
    for state, name in ((first, "resumed"), (whole, "loaded")):
        again = Pruner(COUNT, 0.4, EPOCHS)
        again.load_state_dict(copy.deepcopy(state.state_dict()))
        result = drive(again, losses).result()
        assert torch.equal(result.indices, expected.indices), name
        assert result.config == expected.config, name


@pytest.mark.filterwarnings("ignore:neighbours in the dataset")
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.8])
def test_another_ratio_keeps_parts_of_all_groups(ratio: float) -> None:
    result = drive(Pruner(COUNT, 0.4, EPOCHS), losses_of_groups()).result()
    other = result.at(ratio)
    assert len(other.indices) == round(ratio * COUNT)
    small, large = sorted((result, other), key=lambda one: len(one.indices))
    assert set(small.indices.tolist()) <= set(large.indices.tolist())
    assert abs(shares_kept(other).mean() - ratio) < 1e-6
    assert shares_kept(other).std() < 0.17


def test_a_run_that_ends_early_compares_neighbours_too() -> None:
    pruner = drive(Pruner(COUNT, 0.5, EPOCHS), losses_of_groups(), 14)
    with pytest.warns(match="partial"):
        result = pruner.result()
    assert result.config["balance"] == "neighbours"
    assert shares_kept(result).min() >= 0.15


@pytest.mark.filterwarnings("ignore:neighbours in the dataset")
def test_unreadable_and_unseen_samples_have_no_part() -> None:
    losses = losses_of_groups()
    losses[::17] = torch.nan
    pruner = Pruner(COUNT, 0.4, EPOCHS)
    gone = torch.arange(0, COUNT, 13)
    pruner.exclude([(int(i), "no file") for i in gone])
    drive(pruner, losses)
    result = pruner.result()
    assert result.config["balance"] == "neighbours"
    assert not result.kept[gone].any()
    assert not result.kept[::17].any()
    assert shares_kept(result).min() >= 0.05


@pytest.mark.filterwarnings("ignore:neighbours in the dataset")
def test_the_default_device_does_not_matter() -> None:
    losses = losses_of_groups()
    expected = drive(Pruner(COUNT, 0.5, EPOCHS, device="cpu"), losses).result()
    pruner = Pruner(COUNT, 0.5, EPOCHS, device="cpu")
    with torch.device("meta"):  # reading a value of this device is an error
        found = drive(pruner, losses).result()
        assert reason_counts(found) == reason_counts(expected)
    assert torch.equal(found.indices, expected.indices)
    assert found.config == expected.config


def test_a_long_run_that_has_just_begun_finds_them_too() -> None:
    pruner = drive(Pruner(COUNT, 0.5, 400, warmup_epochs=1), losses_of_groups(), 3)
    assert pruner.history[-1]["neighbours"] > 0.8
