"""How many samples classes keep: exact shares, and floors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training_data import drive, frozen, gates_with

from adapruner import Pruner
from adapruner.pruning import bitmask
from adapruner.pruning.quotas import class_floors, class_numbers, largest_remainder
from adapruner.pruning.selection import Selection, keep_count

N = 300


def classes(seed: int = 0) -> torch.Tensor:
    """A long tail: classes of about 210, 60, 20, 7 and 3 samples."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([210, 60, 20, 7, 3]))
    return labels[torch.randperm(N, generator=generator)]


def run(labels: torch.Tensor | None, balance: str = "class", ratio: float = 0.3) -> Pruner:
    pruner = Pruner(N, ratio, 8, labels=labels, balance=balance, held_out=torch.arange(0, N, 11))
    drive(pruner, frozen(N))
    return pruner


def five_epochs(pruner: Pruner) -> None:
    losses = frozen(N)
    for epoch in range(5):
        for ids in pruner.batches(32):
            pruner.weigh(losses(epoch)[ids], ids)
        pruner.step()


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.floats(0, 1))
@settings(deadline=None)
def test_floors_deal_three_quarters_evenly(sizes: list[int], ratio: float) -> None:
    total = int(ratio * sum(sizes))
    floors = class_floors(np.array(sizes), total)
    assert floors.sum() <= 0.75 * total
    level = floors.max()
    assert floors.tolist() == [min(size, level) for size in sizes]
    more = [min(size, level + 1) for size in sizes]
    assert sum(more) > 0.75 * total or more == floors.tolist()


def test_floors_of_ten_thousand_classes_with_few_samples() -> None:
    assert set(class_floors(np.full(10_000, 4), 20_000).tolist()) == {1}
    assert not class_floors(np.ones(10_000, dtype=int), 5000).any()


def test_any_integers_are_classes() -> None:
    assert class_numbers(np.array([2, 0, 2])).tolist() == [2, 0, 2]
    assert class_numbers(np.array([-1, 7_000_000_000, -1])).tolist() == [0, 1, 0]
    assert class_numbers(np.zeros(0, dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("held_out", [None, torch.arange(0, N, 7)])
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.1, 0.02, 1.0])
@pytest.mark.parametrize("unreadable", [0, 12])
def test_the_last_selection_has_the_floors(
    ratio: float, held_out: torch.Tensor | None, unreadable: int
) -> None:
    labels, generator = classes(), torch.Generator().manual_seed(1)
    gates = gates_with(torch.randn(N, generator=generator), ratio)
    gone = torch.randperm(N, generator=generator)[:unreadable]
    gates.exclude(gone)
    # Keys that never choose the rare classes by themselves.
    keys = torch.rand(N, generator=generator) - 10.0 * (labels > 1)
    keys[gone] = -torch.inf
    selection = Selection(N, ratio, labels=labels, balance="floor", held_out=held_out)
    selection.select(gates, ratio, 1.0, keys)
    plain = selection.kept
    selection.select(gates, ratio, 1.0, keys, floors=True)
    count = min(keep_count(ratio, N), N - unreadable)
    kept = labels[bitmask.indices(selection.kept)].bincount(minlength=5).numpy()
    before = labels[bitmask.indices(plain)].bincount(minlength=5).numpy()
    readable = np.delete(labels.numpy(), gone.numpy())
    floors = class_floors(np.bincount(readable, minlength=5), count)
    assert kept.sum() == before.sum() == count
    assert (kept >= floors).all()
    assert not set(bitmask.indices(selection.kept).tolist()) & set(gone.tolist())
    # Classes that are raised have no more than their floor.
    assert (kept[before < floors] == floors[before < floors]).all()
    for label in range(5):  # a class keeps its largest keys
        of_class = (labels == label).nonzero().flatten().tolist()
        for group in _groups(of_class, held_out):
            chosen = [i for i in group if bitmask.unpack(selection.kept, N)[i]]
            best = sorted(group, key=lambda i: (-keys[i].item(), i))[: len(chosen)]
            assert sorted(best) == chosen


def _groups(of_class: list[int], held_out: torch.Tensor | None) -> list[list[int]]:
    """Held-out samples compete among themselves."""
    apart = set() if held_out is None else set(held_out.tolist())
    return [[i for i in of_class if (i in apart) == inside] for inside in (False, True)]


@pytest.mark.parametrize("held_out", [None, torch.arange(0, N, 7)])
def test_classes_above_their_floors_change_nothing(held_out: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(N) % 5
    gates = gates_with(torch.randn(N, generator=generator), 0.5)
    keys = torch.rand(N, generator=generator)
    kept = []
    for known in (None, labels):
        selection = Selection(N, 0.5, labels=known, balance="floor", held_out=held_out)
        selection.select(gates, 0.5, 1.0, keys, floors=True)
        kept.append(selection.kept)
    assert torch.equal(*kept)


@pytest.mark.parametrize("ratio", [0.7, 0.3, 0.05])
def test_only_the_kept_set_has_the_floors(ratio: float) -> None:
    labels = classes()
    plain, ours = run(None, ratio=ratio), run(labels, "floor", ratio)
    for name in ("samples_read", "kept", "training_loss", "mean_gate"):
        found = [[entry[name] for entry in pruner.history] for pruner in (plain, ours)]
        assert found[0] == found[1]
    assert torch.equal(ours.gates.logits, plain.gates.logits)
    result = ours.result()
    kept = labels[result.indices].bincount(minlength=5).numpy()
    # Held-out samples have no losses here, so they raise no class.
    seen = np.delete(labels.numpy(), np.arange(0, N, 11))
    assert (kept >= class_floors(np.bincount(seen), keep_count(ratio, N))).all()
    assert ours.settings["balance"] == result.config["balance"] == "floor"
    assert torch.equal(result.quota_labels.long(), labels)


def test_a_loader_whose_dataset_knows_its_targets_gives_classes_floors() -> None:
    labels, losses = classes(), frozen(N)

    def kept(pruner: Pruner, known: bool) -> list[int]:
        data = torch.zeros(N, 1), labels if known else labels.double()
        pruner.loader(data)
        drive(pruner, losses)
        assert pruner.result().config["balance"] == ("floor" if known else None)
        return pruner.result().indices.tolist()

    given = Pruner(N, 0.3, 8, labels=labels, balance="floor")
    drive(given, losses)
    assert kept(Pruner(N, 0.3, 8), known=True) == given.result().indices.tolist()
    unknown = Pruner(N, 0.3, 8)
    drive(unknown, losses)
    assert kept(Pruner(N, 0.3, 8), known=False) == unknown.result().indices.tolist()
    # The published method has none, and labels with exact shares go first.
    published = Pruner(N, 0.3, 8, method="published")
    published.loader((torch.zeros(N, 1), labels))
    assert published.selection.balance is None
    exact = Pruner(N, 0.3, 8, labels=torch.arange(N) % 2)
    exact.loader((torch.zeros(N, 1), labels))
    assert exact.selection.balance == "class"
    assert int(exact.selection.labels.max()) == 1


def test_a_state_of_before_the_loader_is_loaded_after_it() -> None:
    labels, losses = classes(), frozen(N)
    whole, first, second = (Pruner(N, 0.3, 8) for _ in range(3))
    for pruner in (whole, first):
        pruner.loader((torch.zeros(N, 1), labels))
    drive(whole, losses)
    five_epochs(first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.loader((torch.zeros(N, 1), labels))
    drive(second, losses)
    assert torch.equal(whole.result().indices, second.result().indices)


def test_a_resumed_run_keeps_the_same_samples() -> None:
    labels, losses = classes(), frozen(N)

    def started() -> Pruner:
        return Pruner(N, 0.3, 8, labels=labels, balance="floor")

    whole, first, second = started(), started(), started()
    drive(whole, losses)
    five_epochs(first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    drive(second, losses)
    assert torch.equal(whole.result().indices, second.result().indices)
    with pytest.raises(ValueError, match="expected balance='class', found balance='floor'"):
        Pruner(N, 0.3, 8, labels=labels).load_state_dict(first.state_dict())


def test_a_run_that_ends_early_has_the_floors() -> None:
    labels = classes()
    pruner = Pruner(N, 0.3, 8, labels=labels, balance="floor")
    five_epochs(pruner)
    with pytest.warns(match="partial"):
        result = pruner.result()
    kept = labels[result.indices].bincount(minlength=5).numpy()
    assert (kept >= class_floors(labels.bincount().numpy(), keep_count(0.3, N))).all()


@pytest.mark.parametrize("ratio", [0.6, 0.31, 0.29, 0.1, 0.03])
def test_another_ratio_has_the_floors_too(ratio: float) -> None:
    labels = classes()
    result = run(labels, "floor").result()
    other = result.at(ratio)
    small, large = sorted((result, other), key=lambda one: len(one.indices))
    assert set(small.indices.tolist()) <= set(large.indices.tolist())
    found = labels[other.indices].bincount(minlength=5).numpy()
    count = keep_count(ratio, N)
    assert found.sum() == count
    assert (found >= class_floors(labels.bincount().numpy(), min(count, 90))).all()
    assert torch.equal(result.at(0.3).indices, result.indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"balance": "size"}, 'balance must be "class" or "floor"; found \'size\''),
        ({"balance": "floor"}, 'balance="floor" needs the classes of all samples'),
        (
            {"balance": "floor", "labels": [0] * N, "method": "published"},
            'balance="floor" needs the method "sampled"',
        ),
    ],
)
def test_what_is_missing_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruner(N, 0.5, 4, **arguments)  # type: ignore[arg-type]


def test_sizes_of_zero_come_last() -> None:
    assert largest_remainder(5, np.array([0, 2, 0]), np.array([4, 3, 4])).tolist() == [1, 3, 1]
    assert largest_remainder(4, np.zeros(2, int), np.array([9, 9])).tolist() == [2, 2]
