"""The order in which an epoch reads its samples, and its batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, repeat
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from adapruner import ops
from adapruner._util.seeds import epoch_seed, splitmix
from adapruner.pruning import bitmask

_Batch = TypeVar("_Batch", Tensor, np.ndarray)

# Samples that one call of the operator returns. The fixed cost of a call is small beside them.
STRETCH = 2**16
# Blocks that a block order mixes at a time.
BLOCKS_MIXED = 16


def epoch_batches(
    mask: Tensor,
    num_samples: int,
    seed: int,
    epoch: int,
    batch_size: int,
    *,
    drop_last: bool = False,
    block_size: int | None = None,
) -> Iterator[Tensor]:
    """The batches of dataset indices that an epoch reads, computed one by one.

    The batches depend only on the arguments. Together they hold each sample of ``mask`` once,
    except a last batch that is dropped. The order is that of :func:`adapruner.ops.masked_order` or
    :func:`block_order`: fewer samples keep the order that they have among all.

    Args:
        mask: bit mask of the samples that the epoch reads, uint8 ``[ceil(N / 8)]``.
        num_samples: N.
        seed: seed of the run.
        epoch: the epoch, from 0.
        batch_size: samples in a batch, of all ranks together.
        drop_last: leave out a last batch that is not full.
        block_size: block size of a :func:`block_order`; where None, all samples are mixed.

    Yields:
        int64 tensors.
    """
    key = epoch_seed(seed, epoch)
    if block_size is None:
        order = plain_order(mask, num_samples, key)
    else:
        order = block_order(mask, num_samples, key, block_size)
    ahead = torch.empty(0, dtype=torch.int64, device="cpu")
    for size in batch_sizes(bitmask.count(mask), batch_size, drop_last):
        while len(ahead) < size:
            ahead = torch.cat([ahead, next(order)])
        batch, ahead = ahead[:size].clone(), ahead[size:]
        yield batch


def share(batch: _Batch, rank: int, world_size: int) -> _Batch:
    """The part of a batch that a rank reads. The parts of two ranks differ by at most one sample.

    >>> batch = torch.arange(8)
    >>> share(batch, 0, 3), share(batch, 1, 3), share(batch, 2, 3)
    (tensor([0, 1]), tensor([2, 3, 4]), tensor([5, 6, 7]))
    """
    size = len(batch)
    return batch[size * rank // world_size : size * (rank + 1) // world_size]


def plain_order(mask: Tensor, num_samples: int, key: int) -> Iterator[Tensor]:
    """The samples of ``mask`` in the order of :func:`adapruner.ops.masked_order`, in pieces."""
    position = 0
    while position < num_samples:
        piece, position = ops.masked_order(mask, num_samples, key, position, STRETCH)
        yield piece


def block_order(mask: Tensor, num_samples: int, key: int, block_size: int) -> Iterator[Tensor]:
    """The samples of ``mask`` in an order that reads neighbouring samples together, in pieces.

    The data are cut into blocks of ``block_size`` samples. The blocks come in random order, and 16
    blocks at a time are mixed at random. So a reader reads in 16 places of the data at a time. A
    batch is a random draw from at most 16·``block_size`` samples, not from all N. If the data are
    sorted by class, choose blocks that are far smaller than a class, and 16·``block_size`` many
    times larger than a batch. As in the plain order, fewer samples keep the order that they have
    among all.

    Args:
        mask: bit mask of the samples to read, uint8 ``[ceil(N / 8)]``.
        num_samples: N.
        key: key of the order, in [0, 2⁶³).
        block_size: samples in a block, at least 1.

    Yields:
        int64 tensors; some may be empty.
    """
    num_blocks = -(-num_samples // block_size)
    blocks = torch.cat(list(plain_order(bitmask.full(num_blocks), num_blocks, key))).numpy()
    for window in range(0, num_blocks, BLOCKS_MIXED):
        read = np.concatenate(
            [
                bitmask.indices_between(mask, begin, min(begin + block_size, num_samples))
                for begin in (blocks[window : window + BLOCKS_MIXED] * block_size).tolist()
            ]
        )
        yield torch.from_numpy(read[np.argsort(splitmix(read.astype(np.uint64), key))])


def batch_sizes(num_reads: int, batch_size: int, drop_last: bool = False) -> Iterator[int]:
    """The sizes of the batches.

    The last batch may be smaller. A batch of one sample would break batch normalisation, so the
    last two batches then share their samples evenly:

    >>> list(batch_sizes(11, 4)), list(batch_sizes(9, 4)), list(batch_sizes(9, 4, drop_last=True))
    ([4, 4, 3], [4, 3, 2], [4, 4])
    """
    full, left = divmod(num_reads, batch_size)
    if drop_last or left == 0:
        yield from repeat(batch_size, full)
    elif full and left == 1 and batch_size > 2:
        yield from repeat(batch_size, full - 1)
        yield (batch_size + left + 1) // 2
        yield (batch_size + left) // 2
    else:
        yield from repeat(batch_size, full)
        yield left


def batch_count(num_reads: int, batch_size: int, drop_last: bool = False) -> int:
    """The number of batches."""
    return num_reads // batch_size if drop_last else -(-num_reads // batch_size)


def batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """``indices`` in their order, cut into batches of :func:`batch_sizes`."""
    sizes = list(batch_sizes(len(indices), batch_size))
    return np.split(indices, list(accumulate(sizes))[:-1]) if sizes else []
