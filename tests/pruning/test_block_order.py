"""The block order, which reads neighbouring samples together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.training_data import Counted, Followed, all_ids, generator_states, loader_of

from adapruner._util.seeds import epoch_seed
from adapruner.pruning import bitmask
from adapruner.pruning.order import BLOCKS_MIXED, block_order, epoch_batches


def order_of(reads: np.ndarray, key: int, block_size: int) -> list[int]:
    pieces = list(block_order(bitmask.pack(reads), len(reads), key, block_size))
    return torch.cat(pieces).tolist()


@pytest.mark.parametrize("num_samples", [1, 2, 17, 1000, 5003])
@pytest.mark.parametrize("block_size", [1, 3, 8, 100, 10**6])
def test_every_sample_once_and_a_part_as_it_is_among_all(num_samples: int, block_size: int) -> None:
    random = np.random.default_rng(num_samples)
    full = order_of(np.ones(num_samples, dtype=bool), 5, block_size)
    assert sorted(full) == list(range(num_samples))
    for share in (0.0, 0.1, 0.7):
        reads = random.random(num_samples) < share
        assert order_of(reads, 5, block_size) == [index for index in full if reads[index]]


def test_a_stretch_of_it_comes_from_few_blocks() -> None:
    order = np.array(order_of(np.ones(48_000, dtype=bool), 3, 100))
    windows = order.reshape(-1, 100 * BLOCKS_MIXED)
    for window in windows:
        blocks, counts = np.unique(window // 100, return_counts=True)
        assert len(blocks) == BLOCKS_MIXED
        assert (counts == 100).all()
        # From everywhere in the data and mixed: neighbours in the order are seldom from one block.
        assert np.ptp(blocks) > 100
        together = (np.diff(window // 100) == 0).mean()
        assert together < 2 / BLOCKS_MIXED


def test_blocks_and_what_is_in_them_come_anew_in_each_epoch() -> None:
    everything = np.ones(4000, dtype=bool)
    orders = {}
    for seed, epoch in itertools.product(range(3), range(3)):
        order = order_of(everything, epoch_seed(seed, epoch), 50)
        assert order == order_of(everything, epoch_seed(seed, epoch), 50)
        orders[tuple(order)] = seed, epoch
    assert len(orders) == 9
    # The place of a sample in the order depends neither on its index nor on its place in its block.
    places = np.array([np.argsort(order) for order in orders])
    assert abs(np.corrcoef(places[0], np.arange(4000))[0, 1]) < 0.25
    assert abs(np.corrcoef(places[0], np.arange(4000) % 50)[0, 1]) < 0.1


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_cut_as_those_of_the_plain_order(drop_last: bool) -> None:
    reads = np.random.default_rng(0).random(1000) < 0.4
    mask = bitmask.pack(reads)
    plain, blocks = (
        list(epoch_batches(mask, 1000, 1, 2, 16, drop_last=drop_last, block_size=block_size))
        for block_size in (None, 20)
    )
    assert [len(batch) for batch in plain] == [len(batch) for batch in blocks]
    read = torch.cat(blocks).tolist()
    assert len(set(read)) == len(read)
    assert set(read) <= set(np.flatnonzero(reads).tolist())
    if not drop_last:
        assert len(read) == reads.sum()


def test_draws_from_no_global_generator() -> None:
    before = generator_states()
    order_of(np.ones(50, dtype=bool), 0, 4)
    assert generator_states() == before


def test_loader_reads_in_blocks() -> None:
    followed = Followed(300)
    met = all_ids(loader_of(Counted(300), followed, block_size=10))
    assert met == order_of(np.ones(300, dtype=bool), epoch_seed(followed.seed, 0), 10)
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        loader_of(Counted(300), followed, block_size=0)
