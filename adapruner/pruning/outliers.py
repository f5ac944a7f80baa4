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
    before = 0  # outliers of the last pass: without them, more losses can be outliers
    while True:
        total, count, outliers = 0.0, 0, 0
        for part in losses.split(bitmask.PIECE):
            # Summed by NumPy, whose order of additions is the same on every machine.
            finite = part[part.isfinite()].double().cpu().numpy()
            inside = finite[finite <= _TIMES * mean]
            total += float(inside.sum())
            count += len(inside)
            outliers += len(finite) - len(inside)
        if outliers == before or not total:
            return mean
        mean, before = total / count, outliers
