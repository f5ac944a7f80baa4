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
ALIKE = 0.2
FAR = 50
# A dataset of fewer samples tells too little: the correlation has a standard error of 1/√N.
_LEAST = 20 * FAR
# Number of samples before and after each one that it is compared with.
REACH = 2
# Values are summed as whole multiples of 1/1024, so that every device gets the same sums.
_STEPS = 1024


def likeness(values: Tensor, known: Tensor) -> float:
    """Correlation of neighbours minus that of samples :data:`FAR` apart; 0 for N < 1,000.

    Args:
        values: float32 ``[N]``, on any scale.
        known: bool ``[N]``. Pairs with another sample do not count.
    """
    if len(values) < _LEAST or not known.any():
        return 0.0
    scale = values[known].abs().max()
    if scale == 0:
        return 0.0
    sums = {distance: torch.zeros(6, dtype=torch.float64, device="cpu") for distance in (1, FAR)}
    for begin in range(0, len(values), bitmask.PIECE):
        part = slice(begin, begin + bitmask.PIECE + FAR)
        there = known[part].double()
        value = values[part].masked_fill(~known[part], 0.0).div_(scale)
        value = value.mul_(_STEPS).round_().double()
        for distance, total in sums.items():
            end = min(bitmask.PIECE, len(value) - distance)
            if end > 0:
                total += _moments(value, there, distance, end).cpu()
    return _correlation(sums[1]) - _correlation(sums[FAR])


def _moments(value: Tensor, there: Tensor, distance: int, end: int) -> Tensor:
    """Number of pairs of known samples i and i + ``distance``, i < ``end``, and sums over them.

    The sums are of both values, of their squares and of their products, float64 ``[6]``. They are
    sums of whole numbers up to 2²⁰, so they are exact in any order.
    """
    one, other = slice(end), slice(distance, distance + end)
    squares = value * value
    sums = (
        there[one] @ there[other],
        value[one] @ there[other],
        there[one] @ value[other],
        squares[one] @ there[other],
        there[one] @ squares[other],
        value[one] @ value[other],
    )
    return torch.stack(sums)


def _correlation(moments: Tensor) -> float:
    count, first, second, squares, other_squares, products = (int(x) for x in moments.tolist())
    # n²·variances and n²·covariance; Python's integers have any size.
    spread = (count * squares - first**2) * (count * other_squares - second**2)
    return (count * products - first * second) / math.sqrt(spread) if spread > 0 else 0.0


def local_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the known values within :data:`REACH` of each sample, itself included.

    Float32 ``[N]``, rounded to multiples of 1/1024; 0 where none is known.

    Args:
        values: float32 ``[N]``.
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
