"""Exact selections: the largest gate logits, shared searches, the oldest, and keys for draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adapruner.ops.native import _C

GATE_SUM_ONE = 2**30
KEY_RANGE: tuple[int, int] = (_C.lowest_key, _C.highest_key)
DIGIT_ROUNDS = 3


class TopK(NamedTuple):
    """A selection, and sums over the gates at the given slope, from the same pass.

    ``selected`` is a bit mask, uint8 ``[ceil(N / 8)]``: bit i % 8 of byte i // 8 is sample i.
    ``sums`` is int64 ``[2]``: the sum of the gates σ(slope·m), each rounded to a multiple of 2⁻³⁰
    (:data:`GATE_SUM_ONE` is one gate of 1), and the number of m > 0. It is empty without a slope.
    """

    selected: Tensor
    sums: Tensor


def topk_mask(gate_logits: Tensor, k: int, slope: float | None = None) -> TopK:
    """The k largest gate logits as a bit mask; equal ones go to the lower index. Exact.

    Args:
        gate_logits: m, float32 ``[N]``; +0 and −0 are equal.
        k: how many, in ``[0, N]``.
        slope: slope at which the sums are taken; None: no sums, in less time.

    Raises:
        TypeError: ``gate_logits`` is not float32.
        ValueError: ``k`` is out of range, ``slope`` not finite, or a gate logit is NaN; the message
            names the first.

    Example:
        >>> import torch
        >>> topk_mask(torch.tensor([0.5, 2.0, -1.0, 0.5]), k=2).selected  # 1 and, of equals, 0
        tensor([3], dtype=torch.uint8)
    """
    return TopK(*torch.ops.adapruner.topk_mask(gate_logits, k, slope))


def segmented_topk(
    gate_logits: Tensor, segments: Tensor, quotas: Tensor, slope: float | None = None
) -> TopK:
    """The ``quotas[j]`` largest gate logits of each segment j as a bit mask.

    Args:
        gate_logits: m, float32 ``[N]``.
        segments: ``[N]``, any integer type; −1 is in no segment and never kept. Narrow types are
            faster: there is less to read.
        quotas: ``[S]``, any integer type, each at most the size of its segment.
        slope: slope at which the sums are taken; None: no sums, in less time.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, a segment or quota is out of range, ``slope`` is
            not finite, or a gate logit is NaN; the message names the first.
    """
    return TopK(*torch.ops.adapruner.segmented_topk(gate_logits, segments, quotas, slope))


def digit_histogram(gate_logits: Tensor, key_range: Tensor) -> Tensor:
    """How many values there are by one digit of their keys: a rank's part of a shared top-k.

    Keys are integers in the order of the numbers, −0 and +0 as one, from ``KEY_RANGE[0]`` for −inf
    to ``KEY_RANGE[1]`` for +inf. Ranks that each hold a part of the values add up their histograms,
    16 KB each, and narrow the range with :func:`narrowed_range`; after :data:`DIGIT_ROUNDS` rounds
    it is the threshold's key. Nothing waits for a GPU.

    Args:
        gate_logits: m, float32 ``[N]``; NaN is counted nowhere, so that what the first histogram of
            all ranks lacks tells all of them of one.
        key_range: int64 ``[3]``, on the device of ``gate_logits``: the lowest and the highest key
            that the threshold may have, and its rank (from 1, from the largest) among the values
            with keys in between; at first ``[*KEY_RANGE, k]``.

    Returns:
        int64 ``[2049]``: of the values with keys in the range, by their next digit, the smallest
        first; and last the number of those with larger keys.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, or (CPU) the range is not one of keys.

    Example:
        >>> import torch
        >>> parts = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 0.5, 0.5])
        >>> key_range = torch.tensor([*KEY_RANGE, 2])  # k = 2
        >>> for _ in range(DIGIT_ROUNDS):
        ...     own = [digit_histogram(m, key_range) for m in parts]
        ...     below, key_range = key_range, narrowed_range(key_range, own[0] + own[1])
        >>> digit = int(key_range[0] - below[0])
        >>> [int(histogram[digit + 1 :].sum()) for histogram in own]  # kept: larger ones
        [1, 0]
        >>> [int(histogram[digit]) for histogram in own], int(key_range[2])  # equal; of them kept
        ([1, 2], 1)
    """
    return torch.ops.adapruner.digit_histogram(gate_logits, key_range)


def narrowed_range(key_range: Tensor, histogram: Tensor) -> Tensor:
    """The range of keys of the digit that the rank lies in, and its rank there.

    Args:
        key_range: int64 ``[3]``, that of the histogram.
        histogram: int64 ``[2049]`` from :func:`digit_histogram`, the sum of those of all ranks.

    Returns:
        int64 ``[3]``. Once it is one key, its last number says how many of the values with that key
        are among the k.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, or (CPU) the range is not one of keys, or the
            histogram has fewer values than the rank.
    """
    return torch.ops.adapruner.narrowed_range(key_range, histogram)


def oldest_mask(candidates: Tensor, age: Tensor, count: int, key: int) -> Tensor:
    """Of some samples the ``count`` with the largest age, as a bit mask; all if there are no more.

    Equal ones go in the order of a hash that ``key`` fixes. Exact.

    Args:
        candidates: bit mask of the samples to choose from, uint8 ``[ceil(N / 8)]``.
        age: uint8 ``[N]``.
        count: at least 0.
        key: in [0, 2⁶³).
    """
    return torch.ops.adapruner.oldest_mask(candidates, age, count, key)


def sampling_keys(
    gate_logits: Tensor,
    age: Tensor,
    scale: float,
    turns: float,
    key: int,
    ceiling: float = math.inf,
) -> Tensor:
    """Random keys by whose top-k samples are drawn without replacement.

    The k largest are k draws, one after another, each with chances in proportion to
    exp(``scale``·min(m, ``ceiling``))·max(age, 1)^``turns`` among the samples that are left: the
    Gumbel-top-k trick (Kool, van Hoof and Welling, *Stochastic Beams and Where to Find Them*, ICML
    2019, arXiv 1903.06059). Keys are found in float64 and rounded once; the same bits at any number
    of threads, on every instruction set and device.

    Args:
        gate_logits: m, float32 ``[N]``.
        age: uint8 ``[N]``; :data:`NEVER_VISITED` counts as the 255 that it is.
        scale: factor of m, finite; 0 draws whatever m is.
        turns: power of the age, finite; 0 draws whatever the age is.
        key: in [0, 2⁶³); another one gives other draws. Noise is a function of it and the index.
        ceiling: m above it counts as it; finite, or +inf for none.

    Returns:
        float32 ``[N]``: ``scale``·min(m, ``ceiling``) + ``turns``·log(max(age, 1)) + standard
        Gumbel noise. −inf where m is −inf, whatever ``scale``, so that an excluded sample stays so;
        NaN where m is.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit together, ``scale`` or ``turns`` is not finite,
            ``key`` is negative, or ``ceiling`` is NaN or −inf.

    Example:
        >>> import torch
        >>> m, age = torch.tensor([0.5, -torch.inf, 1.0]), torch.ones(3, dtype=torch.uint8)
        >>> keys = sampling_keys(m, age, scale=2.0, turns=1.0, key=7)
        >>> topk_mask(keys, k=2).selected  # samples 0 and 2; sample 1 is excluded
        tensor([5], dtype=torch.uint8)
    """
    return torch.ops.adapruner.sampling_keys(gate_logits, age, scale, turns, key, ceiling)
