"""Quotas by loss: how many samples of each class are kept, by what the class still costs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adapruner import Pruner
from adapruner.pruning.methods.sampled import METHOD
from adapruner.pruning.selection import keep_count, largest_remainder

LEAST = 5  # samples of a class, if it has so many


def class_sizes(count: int, labels: Tensor, losses: Tensor) -> np.ndarray:
    """Samples to keep of each class, int64 ``[C]``, ``count`` in all.

    In proportion to √(share of the class · mean loss of its samples), but at least :data:`LEAST`,
    and at most what the class has.

    Args:
        count: samples to keep.
        labels: int64 ``[N]``.
        losses: ``[N]``, at most 1: losses over the mean loss of the first epoch.
    """
    available = labels.bincount().numpy()
    sums = labels.bincount(weights=losses.double()).numpy()  # share · mean, times N
    least = np.minimum(available, LEAST)
    # Whole numbers, as the largest remainder takes them.
    wanted = np.rint(2**20 * np.sqrt(sums / len(labels))).astype(np.int64)
    return least + largest_remainder(count - int(least.sum()), wanted, available - least)


def kept_by_loss(pruner: Pruner, labels: Tensor) -> Tensor:
    """The kept indices of a finished run, sorted: those with the largest keys of each class."""
    gates, capped = pruner.gates, METHOD.pressure_cap
    losses = (gates.last_loss / gates.real("loss_scale")).nan_to_num(0.0).clamp(0.0, capped)
    sizes = class_sizes(keep_count(pruner.keep_ratio, len(labels)), labels, losses)
    keys = pruner.method.keys(gates, pruner.history, pruner.seed, final=True)
    kept = []
    for label, size in enumerate(sizes):
        of_class = (labels == label).nonzero().flatten()
        kept.append(of_class[keys[of_class].topk(int(size)).indices])
    return torch.cat(kept).sort().values
