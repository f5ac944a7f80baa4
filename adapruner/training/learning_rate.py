"""The learning rate schedule of the default optimiser."""

from __future__ import annotations

import math

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
