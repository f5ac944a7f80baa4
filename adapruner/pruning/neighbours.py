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
# samples FAR apart. Samples of one bad shard are alike over a longer distance.
ALIKE = 0.2
FAR = 50
# A dataset of fewer samples tells too little: the correlation has a standard error of 1/√N.
_LEAST = 20 * FAR
# Number of samples before and after each one that it is compared with.
REACH = 2
# A log chance counts as far as it is lower by more than this than the mean of its neighbours.
TOLERANCE = 1.0
# Values are summed as whole multiples of 1/1024, so that every device gets the same sums.
_STEPS = 1024


def likeness(gate_logits: Tensor, classes: Tensor | None = None) -> float:
    """Correlation of neighbours minus that of samples :data:`FAR` apart; 0 for N < 1,000.

    Args:
        gate_logits: m, float32 ``[N]``. Pairs with a gate that has never stepped (m = 1) or with an
            excluded sample (−inf) do not count.
        classes: integers ``[N]``, where they are known. Logits then count minus the mean of their
            class, because a folder that is sorted by class has the samples of a class side by side.
    """
    count = len(gate_logits)
    parts = [slice(begin, begin + bitmask.PIECE + FAR) for begin in range(0, count, bitmask.PIECE)]
    scale = max((float(_falls(gate_logits[part]).abs().max()) for part in parts), default=0.0)
    if count < _LEAST or scale == 0:
        return 0.0
    means = None if classes is None else _class_means(gate_logits, classes, scale)
    sums = {distance: torch.zeros(6, dtype=torch.float64, device="cpu") for distance in (1, FAR)}
    for part in parts:
        value, there = _steps(gate_logits[part], scale)
        if classes is not None and means is not None:
            value -= means[classes[part].long()].to(value.device) * there
        for distance, total in sums.items():
            end = min(bitmask.PIECE, len(value) - distance)
            if end > 0:
                total += _moments(value, there, distance, end).cpu()
    return _correlation(sums[1]) - _correlation(sums[FAR])


def _class_means(gate_logits: Tensor, classes: Tensor, scale: float) -> Tensor:
    """The mean of each class, as a whole number of steps, float64 ``[C]`` on the CPU."""
    sums = torch.zeros(2, int(classes.max()) + 1, dtype=torch.int64, device="cpu")
    for begin in range(0, len(gate_logits), bitmask.PIECE):
        part = slice(begin, begin + bitmask.PIECE)
        both = torch.stack(_steps(gate_logits[part], scale)).long().cpu()
        sums.index_add_(1, classes[part].long(), both)
    return (sums[0].double() / sums[1].clamp(min=1)).round_()


def _steps(gate_logits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """1 − m as whole numbers up to 1024, and 1 where it is known, else 0; float64 both."""
    value = _falls(gate_logits)
    there = (value != 0).double()
    return value.div_(scale).mul_(_STEPS).round_().double(), there


def _falls(gate_logits: Tensor) -> Tensor:
    """1 − m; 0 where a gate has never stepped or its sample is excluded."""
    return (1 - gate_logits).masked_fill_(gate_logits == -torch.inf, 0.0)


def _moments(value: Tensor, there: Tensor, distance: int, end: int) -> Tensor:
    """Number of pairs of known samples i and i + ``distance``, i < ``end``, and sums over them.

    The sums are of both values, of their squares and of their products, float64 ``[6]``. They are
    sums of whole numbers up to 2²², so they are exact in any order.
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


def compare(logs: Tensor, unknown: float) -> None:
    """Compare the logarithms of chances with those of neighbours: 0, or how much lower they are.

    Args:
        logs: float32 ``[N]``, changed in place.
        unknown: as in :func:`subtract_local_mean`.
    """
    subtract_local_mean(logs, unknown)
    for part in logs.split(bitmask.PIECE):
        known = part > unknown
        part.add_(known, alpha=TOLERANCE)
        part.clamp_(max=0)


def subtract_local_mean(values: Tensor, unknown: float) -> None:
    """Take from each value the mean of the values within :data:`REACH` of it, itself included.

    Means are rounded to multiples of 1/1024.

    Args:
        values: float32 ``[N]``, changed in place.
        unknown: values up to it have no part in a mean, and stay as they are.
    """
    before = values[:0]  # as they were, of the last piece
    for begin in range(0, len(values), bitmask.PIECE):
        end = min(begin + bitmask.PIECE, len(values))
        around = torch.cat([before, values[begin : end + REACH]])
        known = around > unknown
        whole = (around.masked_fill(~known, 0.0) * _STEPS).round_().long()
        sums, counts = (_cumulated(each) for each in (whole, known.long()))
        place = torch.arange(len(before), len(before) + end - begin, device=values.device)
        start, stop = (place - REACH).clamp_(min=0), (place + REACH + 1).clamp_(max=len(around))
        number = (counts[stop] - counts[start]).clamp_(min=1)
        means = (sums[stop] - sums[start]).double().div_(number).round_().div_(_STEPS)
        before = values[max(end - REACH, begin) : end].clone()
        values[begin:end] -= means.to(values.dtype).masked_fill_(~known[place], 0.0)


def _cumulated(values: Tensor) -> Tensor:
    """Sum of the first n values for every n, int64 ``[len + 1]``."""
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))
