"""The learning rate schedule of the default optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer

LEARNING_RATE = 2e-3  # the highest
WEIGHT_DECAY = 0.01


def set_learning_rate(
    optimizer: Optimizer, highest: float, done: float, warm: float = 0.15
) -> None:
    """Set a one-cycle learning rate: it rises in a line, then falls in a cosine.

    Args:
        optimizer: its learning rate is set.
        highest: the highest learning rate.
        done: share of the run that is done, in [0, 1].
        warm: share of the run in which the learning rate rises.
    """
    falling = 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))
    factor = done / warm if done < warm else falling
    for group in optimizer.param_groups:
        group["lr"] = highest * max(factor, 0.01)


def share_done(planned_reads: Sequence[int], epoch: int, of_epoch: float) -> float:
    """Share of a run's reads that are done, in [0, 1]. Epochs read different numbers of samples.

    >>> share_done([100, 80, 20], 1, 0.5)
    0.7

    Args:
        planned_reads: samples that each epoch reads.
        epoch: the current epoch, from 0.
        of_epoch: share of the current epoch that is done.
    """
    done = sum(planned_reads[:epoch]) + of_epoch * planned_reads[epoch]
    return done / max(sum(planned_reads), 1)
