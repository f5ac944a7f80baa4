"""The mean of losses without outliers: a few losses so large that they would make up most of it."""

from __future__ import annotations

from torch import Tensor

from adapruner.pruning import bitmask

# An outlier is more than this many times the mean of the others. So outliers are fewer than one
# in a thousand.
_TIMES = 1000.0


def mean_without_outliers(losses: Tensor, mean: float) -> float:
    """The mean of the losses that are not outliers.

    Args:
        losses: float ``[N]``, at least 0; those that are not finite do not count.
        mean: the mean of the losses. It is returned as it is if there are no outliers, or if all
            other losses are 0.
    """
    outliers = 0
    while True:
        limit, before = _TIMES * mean, outliers
        parts = losses.split(bitmask.PIECE)
        outliers = sum(int(((part > limit) & part.isfinite()).sum()) for part in parts)
        if outliers == before:
            return mean
        total, count = 0.0, 0
        for part in parts:
            # Summed by NumPy, whose order of additions is the same on every machine.
            inside = part[part <= limit].double().cpu().numpy()
            total += float(inside.sum())
            count += len(inside)
        if not total:
            return mean
        mean = total / count  # without the outliers, more losses can be outliers
