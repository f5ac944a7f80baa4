"""The default optimiser's learning rate over a run."""

from __future__ import annotations

import math

from torch.optim import Optimizer

LEARNING_RATE = 2e-3  # the highest
WEIGHT_DECAY = 0.01


def set_learning_rate(
    optimizer: Optimizer, highest: float, done: float, warm: float = 0.15
) -> None:
    """One cycle: up in a line over the share ``warm`` of the run, down in a cosine."""
    falling = 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))
    factor = done / warm if done < warm else falling
    for group in optimizer.param_groups:
        group["lr"] = highest * max(factor, 0.01)
