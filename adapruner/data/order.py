"""The order in which an epoch reads its samples, and how it is cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, repeat

import numpy as np
import torch
from torch import Tensor

from adapruner import masks, ops

# Samples that are asked for at a time: enough for what a call costs to be lost among them.
STRETCH = 2**16


def epoch_seed(seed: int, epoch: int, *more: int) -> int:
    """A 63-bit seed that depends on every argument, each at least 0."""
    state = np.random.SeedSequence([seed, epoch, *more]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def epoch_batches(
    mask: Tensor,
    num_samples: int,
    seed: int,
    epoch: int,
    batch_size: int,
    *,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Tensor]:
    """The batches of dataset indices that an epoch reads, made as they are asked for.

    A pure function of its arguments. Every sample of ``mask`` comes once in the batches of all
    ranks together (but for a last batch that is dropped), in the order of
    :func:`adapruner.ops.masked_order`, so that a part of the samples has the order that it has
    among all. Ranks have the same number of batches, and share each global batch as evenly as it
    goes; a rank that has nothing of it has an empty batch.

    Args:
        mask: bit mask of what the epoch reads, uint8 ``[ceil(N / 8)]``.
        num_samples: N.
        seed: of the run.
        epoch: from 0.
        batch_size: of one rank.
        drop_last: leave out a last global batch that is not full.
        rank: whose batches, in [0, world_size).
        world_size: number of ranks.

    Returns:
        int64 tensors.
    """
    key = epoch_seed(seed, epoch)
    position, ahead = 0, torch.empty(0, dtype=torch.int64)
    for size in batch_sizes(masks.count(mask), batch_size, drop_last, world_size):
        if len(ahead) < size:
            wanted = max(size, STRETCH)
            more, position = ops.masked_order(mask, num_samples, key, position, wanted)
            ahead = torch.cat([ahead, more])
        share = slice(size * rank // world_size, size * (rank + 1) // world_size)
        batch, ahead = ahead[:size][share].clone(), ahead[size:]
        yield batch


def batch_sizes(
    num_reads: int, batch_size: int, drop_last: bool = False, world_size: int = 1
) -> Iterator[int]:
    """The sizes of the global batches, of all ranks together.

    The last one may be smaller. A single sample left over would break batch normalisation, so where
    a rank had fewer than two of the last one, the last two share their samples evenly:

    >>> list(batch_sizes(11, 4)), list(batch_sizes(9, 4)), list(batch_sizes(9, 4, drop_last=True))
    ([4, 4, 3], [4, 3, 2], [4, 4])
    """
    size = batch_size * world_size
    full, left = divmod(num_reads, size)
    if drop_last or left == 0:
        yield from repeat(size, full)
    elif full and left < 2 * world_size and batch_size > 2:
        yield from repeat(size, full - 1)
        yield (size + left + 1) // 2
        yield (size + left) // 2
    else:
        yield from repeat(size, full)
        yield left


def batch_count(
    num_reads: int, batch_size: int, drop_last: bool = False, world_size: int = 1
) -> int:
    """The number of batches."""
    size = batch_size * world_size
    return num_reads // size if drop_last else -(-num_reads // size)


def batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """``indices`` in their order, cut into batches of :func:`batch_sizes`."""
    sizes = list(batch_sizes(len(indices), batch_size))
    return np.split(indices, list(accumulate(sizes))[:-1]) if sizes else []
