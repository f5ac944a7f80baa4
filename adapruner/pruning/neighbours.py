"""Samples that lie next to each other in the dataset: whether they are alike, and their mean.

Frames of a video and slices of a scan are near-duplicates. They usually lie next to each other in
a dataset, and have about the same losses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adapruner.pruning import bitmask

# Neighbours are alike if the correlation of their gate logits is larger by this than that of
# samples FAR apart. Samples of one class or of one bad shard are alike over a longer distance.
ALIKE = 0.3
FAR = 100
# A dataset of fewer samples tells too little: the correlation has a standard error of 1/√N.
_LEAST = 10 * FAR
# Number of samples before and after each one that it is compared with.
REACH = 2
# Values are summed as whole multiples of 1/1024, so that every device gets the same sums.
_STEPS = 1024


def likeness(values: Tensor, known: Tensor) -> float:
    """Correlation of neighbours minus that of samples :data:`FAR` apart; 0 for N < 1,000.

    Args:
        values: float32 ``[N]``, in [−1000, 1000] where known.
        known: bool ``[N]``. Pairs with another sample do not count.
    """
    if len(values) < _LEAST:
        return 0.0
    return _correlation(values, known, 1) - _correlation(values, known, FAR)


def _correlation(values: Tensor, known: Tensor, distance: int) -> float:
    """Correlation of the values of samples i and i + ``distance``, over all i."""
    count, sums = 0, torch.zeros(5, dtype=torch.int64)
    for begin in range(0, len(values) - distance, bitmask.PIECE):
        part = slice(begin, begin + bitmask.PIECE + distance)
        whole = (values[part].masked_fill(~known[part], 0.0) * _STEPS).round_().long()
        pairs = known[part][:-distance] & known[part][distance:]
        one, other = whole[:-distance][pairs], whole[distance:][pairs]
        count += len(one)
        products = one, other, one * one, other * other, one * other
        sums += torch.stack([product.sum() for product in products]).cpu()
    first, second, squares, other_squares, product = sums.tolist()
    # n²·variances and n²·covariance; Python's integers have any size.
    spread = (count * squares - first**2) * (count * other_squares - second**2)
    return (count * product - first * second) / math.sqrt(spread) if spread > 0 else 0.0


def local_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the known values within :data:`REACH` of each sample, itself included.

    Float32 ``[N]``, rounded to multiples of 1/1024; 0 where none is known.

    Args:
        values: float32 ``[N]``, in [−1000, 1000] where known.
        known: bool ``[N]``.
    """
    means = torch.zeros_like(values)
    for begin in range(0, len(values), bitmask.PIECE):
        end = min(begin + bitmask.PIECE, len(values))
        low, high = max(begin - REACH, 0), min(end + REACH, len(values))
        part = known[low:high]
        whole = (values[low:high].masked_fill(~part, 0.0) * _STEPS).round_().long()
        place = torch.arange(begin, end, device=values.device)
        start = (place - REACH).clamp_(min=low) - low
        stop = (place + REACH + 1).clamp_(max=high) - low
        sums, counts = (_cumulated(each) for each in (whole, part.long()))
        total = (sums[stop] - sums[start]).double()
        number = (counts[stop] - counts[start]).clamp_(min=1)
        means[begin:end] = total.div_(number).round_().div_(_STEPS)
    return means


def _cumulated(values: Tensor) -> Tensor:
    """Sum of the first n values for every n, int64 ``[len + 1]``."""
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))
