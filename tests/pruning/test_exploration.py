"""The pruned samples that an epoch reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training_data import gates_with, random_logits

from adapruner.pruning import bitmask
from adapruner.pruning.gates import Gates
from adapruner.pruning.selection import Selection


def pruned_at(ratio: float, num_samples: int, **arguments: object) -> tuple[Gates, Selection]:
    gates = gates_with(random_logits(num_samples), ratio)
    selection = Selection(num_samples, ratio, **arguments)
    selection.select(gates, ratio, 1.0)
    gates.age.zero_()
    return gates, selection


@pytest.mark.parametrize("num_samples", [10, 49, 50, 99, 149, 1000])
def test_exploration_reads_at_most_a_fiftieth_of_the_pruned(num_samples: int) -> None:
    gates, selection = pruned_at(0.5, num_samples)
    kept = bitmask.indices(selection.kept).tolist()
    for epoch in range(4):
        selection.explore_pruned(gates, epoch)
        explored = bitmask.indices(selection.explored()).tolist()
        assert len(explored) == num_samples // 50
        assert explored == sorted(set(explored))
        assert not set(explored) & set(kept)
        assert np.flatnonzero(
            bitmask.unpack(selection.read, selection.num_samples)
        ).tolist() == sorted(kept + explored)


def test_longest_unvisited_come_first() -> None:
    gates, selection = pruned_at(0.5, 1000)
    pruned = np.setdiff1d(np.arange(1000), bitmask.indices(selection.kept))
    ages = np.random.default_rng(0).permutation(len(pruned)) % 250
    gates.age[torch.from_numpy(pruned)] = torch.from_numpy(ages).to(torch.uint8)
    gates.age[int(pruned[3])] = 255  # never visited: older than all others
    selection.explore_pruned(gates, 0)
    explored = gates.age[bitmask.indices(selection.explored())].tolist()
    rest = np.setdiff1d(pruned, bitmask.indices(selection.explored()))
    assert len(explored) == 20
    assert max(gates.age[torch.from_numpy(rest)].tolist()) <= min(explored)
    assert int(pruned[3]) in bitmask.indices(selection.explored()).tolist()


def test_those_that_waited_equally_long_go_in_a_seeded_order() -> None:
    seen = set()
    for seed in range(3):
        gates, selection = pruned_at(0.5, 1000, seed=seed)
        pruned = np.setdiff1d(np.arange(1000), bitmask.indices(selection.kept))
        for epoch in range(3):
            selection.explore_pruned(gates, epoch)
            explored = bitmask.indices(selection.explored()).tolist()
            # Not the lowest indices, which a stable sort would give.
            assert explored != pruned[:20].tolist()
            # From everywhere in the dataset.
            assert min(explored) < 300 < 700 < max(explored)
            seen.add(tuple(explored))
            selection.explore_pruned(gates, epoch)
            assert bitmask.indices(selection.explored()).tolist() == explored
    assert len(seen) == 9  # another seed or epoch gives another choice


def test_every_pruned_sample_is_explored_in_its_turn() -> None:
    gates, selection = pruned_at(0.5, 500)
    pruned = np.setdiff1d(np.arange(500), bitmask.indices(selection.kept))
    turns = np.zeros(500, dtype=int)
    for epoch in range(25):  # 10 of 250 in each
        selection.explore_pruned(gates, epoch)
        turns[bitmask.indices(selection.explored()).numpy()] += 1
        gates.age += 1
        gates.age[
            torch.from_numpy(np.flatnonzero(bitmask.unpack(selection.read, selection.num_samples)))
        ] = 0
    assert turns[pruned].tolist() == [1] * 250


def test_neither_held_out_nor_unreadable_samples_are_explored() -> None:
    logits = random_logits(1000)
    held_out = torch.arange(0, 1000, 3)
    logits[1::3] = -torch.inf
    gates = gates_with(logits, 0.3)
    selection = Selection(1000, 0.3, held_out=held_out, explore=1.0)
    selection.select(gates, 0.3, 1.0)
    selection.explore_pruned(gates, 0)
    kept = bitmask.indices(selection.kept)
    expected = [i for i in range(2, 1000, 3) if i not in set(kept.tolist())]
    assert bitmask.indices(selection.explored()).tolist() == expected


def test_no_exploration() -> None:
    gates, selection = pruned_at(0.5, 1000, explore=0.0)
    selection.explore_pruned(gates, 0)
    assert bitmask.indices(selection.explored()).tolist() == []
    assert bitmask.indices(selection.explored()).dtype == torch.int64
