"""The order in which an epoch reads its samples."""

from __future__ import annotations

import numpy as np
import torch


def epoch_seed(seed: int, epoch: int, *more: int) -> int:
    """A 63-bit seed that depends on every argument, each at least 0."""
    state = np.random.SeedSequence([seed, epoch, *more]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def epoch_order(reads: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The dataset indices that an epoch reads, in its order.

    A pure function of its arguments; the order of a part of the samples is a subsequence of the
    order of all of them.

    Args:
        reads: bools ``[N]``, True for what the epoch reads.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64, every index that ``reads`` marks once.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    order = torch.randperm(len(reads), generator=generator).numpy()
    return order[reads[order]]


def batches(order: np.ndarray, batch_size: int, drop_last: bool = False) -> list[np.ndarray]:
    """``order`` cut into batches.

    The last one may be smaller. A single sample left over would break batch normalisation, so the
    last two batches then share their samples evenly:

    >>> [batch.tolist() for batch in batches(np.arange(9), 4)]
    [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    """
    cuts = list(range(batch_size, len(order), batch_size))
    if drop_last:
        order = order[: len(order) // batch_size * batch_size]
        cuts = [cut for cut in cuts if cut < len(order)]
    elif cuts and len(order) - cuts[-1] == 1 and batch_size > 2:
        cuts[-1] -= (batch_size - 1) // 2
    return np.split(order, cuts) if len(order) else []
