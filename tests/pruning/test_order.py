"""The order of an epoch, its batches, and the shares of ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.training_data import generator_states, order_of

from adapruner import ops
from adapruner._util.seeds import epoch_seed
from adapruner.ops import reference
from adapruner.pruning import bitmask
from adapruner.pruning.order import (
    STRETCH,
    batch_count,
    batch_sizes,
    batches,
    epoch_batches,
    share,
)


@pytest.mark.parametrize("num_samples", [1, 2, 17, 1000, 5000])
def test_order_is_that_of_the_operator_and_of_the_epochs_seed(num_samples: int) -> None:
    reads = np.random.default_rng(num_samples).random(num_samples) < 0.7
    key = epoch_seed(3, 4)
    assert order_of(reads, 3, 4).tolist() == reference.masked_order(reads.tolist(), key)


@pytest.mark.parametrize("num_samples", [1, 2, 17, 1000])
def test_pruned_order_is_a_subsequence_of_the_full_one(num_samples: int) -> None:
    random = np.random.default_rng(num_samples)
    for epoch in range(3):
        full = order_of(np.ones(num_samples, dtype=bool), seed=5, epoch=epoch).tolist()
        assert sorted(full) == list(range(num_samples))
        for part in (0.0, 0.3, 0.9):
            reads = random.random(num_samples) < part
            pruned = order_of(reads, seed=5, epoch=epoch).tolist()
            assert sorted(pruned) == np.flatnonzero(reads).tolist()  # every read once
            position = {index: place for place, index in enumerate(full)}
            places = [position[index] for index in pruned]
            assert places == sorted(places)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    reads = np.random.default_rng(0).random(200) < 0.7
    orders = {}
    for seed, epoch in itertools.product((0, 1, 2**70), range(3)):
        order = order_of(reads, seed, epoch)
        assert order.dtype == np.int64
        assert order.tolist() == order_of(reads, seed, epoch).tolist()
        orders[tuple(order.tolist())] = seed, epoch
    assert len(orders) == 9
    assert not any(list(order) == sorted(order) for order in orders)


def test_order_draws_from_no_global_generator() -> None:
    before = generator_states()
    order_of(np.ones(50, dtype=bool), 0, 0)
    assert generator_states() == before


def test_order_is_made_as_it_is_asked_for() -> None:
    mask, asked = bitmask.full(10 * STRETCH), []
    run = ops.masked_order

    def noted(*arguments):
        asked.append(arguments[4])
        return run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "masked_order", noted)
        order = epoch_batches(mask, 10 * STRETCH, 0, 0, 100)
        for _ in range(STRETCH // 100):
            next(order)
    assert asked == [STRETCH]


def test_batch_is_its_own_and_keeps_no_stretch_alive() -> None:
    batch = next(epoch_batches(bitmask.full(1000), 1000, 0, 0, 10))
    assert batch.untyped_storage().nbytes() == 80


# --- batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8])
def test_batches(batch_size: int) -> None:
    for count in range(60):
        order = np.random.default_rng(count).permutation(count)
        cut = batches(order, batch_size)
        assert [index for batch in cut for index in batch] == order.tolist()
        sizes = [len(batch) for batch in cut]
        assert len(sizes) == -(-count // batch_size) == batch_count(count, batch_size)
        if count % batch_size == 1 and count > batch_size > 2:
            # A single sample is left over: the last two batches share evenly.
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
        sizes = list(batch_sizes(count, batch_size, drop_last=True))
        assert sizes == [batch_size] * (count // batch_size)
        assert batch_count(count, batch_size, drop_last=True) == len(sizes)


@pytest.mark.parametrize("batch_size", [1, 5, STRETCH - 1, STRETCH, 2 * STRETCH + 3])
def test_epoch_in_batches_is_its_order(batch_size: int) -> None:
    num_samples = 3 * STRETCH + 100 if batch_size > 5 else 400
    reads = np.random.default_rng(0).random(num_samples) < 0.9
    mask = bitmask.pack(reads)
    key = epoch_seed(1, 2)
    whole = ops.masked_order(mask, num_samples, key, 0, num_samples).indices
    cut = list(epoch_batches(mask, num_samples, 1, 2, batch_size))
    assert torch.equal(torch.cat(cut), whole)
    assert [len(batch) for batch in cut] == list(batch_sizes(len(whole), batch_size))


# --- ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_a_batch_as_evenly_as_it_goes(world_size: int) -> None:
    for size in range(4 * world_size):
        batch = torch.randperm(size, generator=torch.Generator().manual_seed(size))
        shares = [share(batch, rank, world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat(shares), batch)
        sizes = [len(each) for each in shares]
        assert max(sizes) - min(sizes) <= 1
