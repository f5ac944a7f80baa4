"""The order of an epoch, and how it is cut into batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from training_data import generator_states

from adapruner.data.order import batches, epoch_order, epoch_seed


@pytest.mark.parametrize("num_samples", [1, 2, 17, 1000])
def test_pruned_order_is_a_subsequence_of_the_full_one(num_samples: int) -> None:
    random = np.random.default_rng(num_samples)
    for epoch in range(3):
        full = epoch_order(np.ones(num_samples, dtype=bool), seed=5, epoch=epoch).tolist()
        assert sorted(full) == list(range(num_samples))
        for share in (0.0, 0.3, 0.9):
            reads = random.random(num_samples) < share
            pruned = epoch_order(reads, seed=5, epoch=epoch).tolist()
            assert sorted(pruned) == np.flatnonzero(reads).tolist()  # every read once
            position = {index: place for place, index in enumerate(full)}
            places = [position[index] for index in pruned]
            assert places == sorted(places)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    reads = np.random.default_rng(0).random(200) < 0.7
    orders = {}
    for seed, epoch in itertools.product((0, 1, 2**70), range(3)):
        order = epoch_order(reads, seed, epoch)
        assert order.dtype == np.int64
        assert order.tolist() == epoch_order(reads, seed, epoch).tolist()
        orders[tuple(order.tolist())] = seed, epoch
    assert len(orders) == 9
    assert not any(list(order) == sorted(order) for order in orders)


def test_order_draws_from_no_global_generator() -> None:
    before = generator_states()
    epoch_order(np.ones(50, dtype=bool), 0, 0)
    assert generator_states() == before


def test_positions_are_even() -> None:
    # Each of 6 places has each of 6 samples about as often: 200 ± 5 standard deviations.
    counts = np.zeros((6, 6))
    for epoch in range(1200):
        counts[np.arange(6), epoch_order(np.ones(6, dtype=bool), 0, epoch)] += 1
    assert np.abs(counts - 200).max() < 5 * np.sqrt(1200 * (1 / 6) * (5 / 6))


def test_seeds_depend_on_every_argument() -> None:
    arguments = [
        *itertools.product(range(6), repeat=2),
        *itertools.product(range(6), repeat=3),
        (0, 0, 0, 0),
    ]
    seeds = [epoch_seed(*each) for each in arguments]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # (0, 0) and (0, 0, 0) are the same seed sequence to NumPy.
    distinct = {tuple(each) + (0,) * (4 - len(each)) for each in arguments}
    assert len(set(seeds)) == len(distinct)


def test_order_augmentation_and_dropout_share_no_seed() -> None:
    order, dropout = epoch_seed(5, 2), epoch_seed(5, 2, 0, 1)
    samples = {epoch_seed(5, 2, index + 1) for index in range(1000)}
    assert len({order, dropout} | samples) == 1002


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8])
def test_batches(batch_size: int) -> None:
    for count in range(60):
        order = np.random.default_rng(count).permutation(count)
        cut = batches(order, batch_size)
        assert [index for batch in cut for index in batch] == order.tolist()
        sizes = [len(batch) for batch in cut]
        assert len(sizes) == -(-count // batch_size)
        if count % batch_size == 1 and count > batch_size > 2:
            # A single sample left over: the last two batches share evenly, the larger one first.
            assert sizes[:-2] == [batch_size] * (len(sizes) - 2)
            larger, smaller = sizes[-2:]
            assert larger + smaller == batch_size + 1
            assert 0 <= larger - smaller <= 1
            assert smaller >= 2
        elif count:
            assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
            assert sizes[-1] == (count % batch_size or batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8])
def test_batches_without_the_last(batch_size: int) -> None:
    for count in range(30):
        cut = batches(np.arange(count), batch_size, drop_last=True)
        assert [len(batch) for batch in cut] == [batch_size] * (count // batch_size)
        assert [index for batch in cut for index in batch] == list(
            range(count // batch_size * batch_size)
        )
