"""Exact selections: largest gate logits, oldest samples, shared searches, keys for draws."""

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
    """A selection, and sums over all gates from the same pass.

    Attributes:
        selected: bit mask, uint8 ``[ceil(N / 8)]``, bit i % 8 of byte i // 8.
        sums: int64 ``[2]``: the sum of the gates σ(slope·m), each rounded to a multiple of 2⁻³⁰
            (:data:`GATE_SUM_ONE` stands for a gate of 1), and the number of m > 0. Empty where no
            slope was given.
    """

    selected: Tensor
    sums: Tensor


def topk_mask(gate_logits: Tensor, k: int, slope: float | None = None) -> TopK:
    """The exactly k largest gate logits, as a bit mask. Of equal values the lower index wins.

    Args:
        gate_logits: m, float32 ``[N]``; +0 and −0 are equal.
        k: number of samples, in ``[0, N]``.
        slope: slope of the gates in the sums. Without it there are no sums, which takes less time.

    Raises:
        TypeError: ``gate_logits`` is not float32.
        ValueError: ``k`` is out of range, ``slope`` is not finite, or a gate logit is NaN. The
            message names the first NaN.

    Example:
        >>> import torch
        >>> topk_mask(torch.tensor([0.5, 2.0, -1.0, 0.5]), k=2).selected  # samples 0 and 1
        tensor([3], dtype=torch.uint8)
    """
    return TopK(*torch.ops.adapruner.topk_mask(gate_logits, k, slope))


def segmented_topk(
    gate_logits: Tensor, segments: Tensor, quotas: Tensor, slope: float | None = None
) -> TopK:
    """The ``quotas[j]`` largest gate logits of each segment j, as a bit mask.

    Args:
        gate_logits: m, float32 ``[N]``.
        segments: segment of each sample, ``[N]``, any integer type. A sample with −1 is in no
            segment and never kept. Narrow types are faster, since less is read.
        quotas: ``[S]``, any integer type; each is at most the size of its segment.
        slope: slope of the gates in the sums. Without it there are no sums, which takes less time.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, a segment or a quota is out of range, ``slope`` is
            not finite, or a gate logit is NaN. The message names the first.
    """
    return TopK(*torch.ops.adapruner.segmented_topk(gate_logits, segments, quotas, slope))


def digit_histogram(gate_logits: Tensor, key_range: Tensor) -> Tensor:
    """Counts of values by the next digit of their keys: one rank's part of a shared top-k.

    A key is an integer that orders float32 values: −0 and +0 have the same key, −inf has
    ``KEY_RANGE[0]`` and +inf ``KEY_RANGE[1]``. Each rank holds a part of the values. The ranks add
    up their histograms (16 KB each) and narrow the range with :func:`narrowed_range`. After
    :data:`DIGIT_ROUNDS` rounds the range is the key of the threshold. The host does not wait for a
    GPU.

    Args:
        gate_logits: m, float32 ``[N]``. NaN is not counted, so the total of the first histograms
            shows all ranks whether one holds a NaN.
        key_range: int64 ``[3]``, on the device of ``gate_logits``: the lowest and the highest key
            that the threshold may have, and the rank of the threshold among the values with keys
            in this range, counted from 1 for the largest. Start with ``[*KEY_RANGE, k]``.

    Returns:
        int64 ``[2049]``: counts of the values with keys in the range, by their next digit, smallest
        digit first. The last entry counts the values with larger keys.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, or (on a CPU) the range does not hold keys.

    Example:
        >>> import torch
        >>> parts = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 0.5, 0.5])
        >>> key_range = torch.tensor([*KEY_RANGE, 2])  # k = 2
        >>> for _ in range(DIGIT_ROUNDS):
        ...     own = [digit_histogram(m, key_range) for m in parts]
        ...     below, key_range = key_range, narrowed_range(key_range, own[0] + own[1])
        >>> digit = int(key_range[0] - below[0])
        >>> [int(histogram[digit + 1 :].sum()) for histogram in own]  # above the threshold: kept
        [1, 0]
        >>> # counts of values equal to the threshold, and how many of them are kept
        >>> [int(histogram[digit]) for histogram in own], int(key_range[2])
        ([1, 2], 1)
    """
    return torch.ops.adapruner.digit_histogram(gate_logits, key_range)


def narrowed_range(key_range: Tensor, histogram: Tensor) -> Tensor:
    """The part of ``key_range`` that holds the threshold, and the threshold's rank in it.

    Args:
        key_range: int64 ``[3]``, the range of the histogram.
        histogram: int64 ``[2049]``, the sum of the :func:`digit_histogram` of all ranks.

    Returns:
        int64 ``[3]``. When the range is a single key, the last number says how many of the values
        with this key are among the k largest.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit; or (on a CPU) the range does not hold keys, or the
            histogram counts fewer values than the rank.
    """
    return torch.ops.adapruner.narrowed_range(key_range, histogram)


def oldest_mask(candidates: Tensor, age: Tensor, count: int, key: int) -> Tensor:
    """The ``count`` candidates with the largest age, as a bit mask. Exact.

    A hash of the index and ``key`` orders candidates of equal age. If there are at most ``count``
    candidates, all are chosen.

    Args:
        candidates: bit mask, uint8 ``[ceil(N / 8)]``.
        age: uint8 ``[N]``.
        count: number of samples, at least 0.
        key: in [0, 2⁶³).

    Returns:
        uint8 ``[ceil(N / 8)]``.
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
    """Random keys. The samples with the k largest keys are a draw without replacement.

    The draw takes samples one after another. Each of the samples left has a chance in proportion to
    exp(``scale``·min(m, ``ceiling``))·max(age, 1)^``turns``. Source: the Gumbel-top-k trick (Kool,
    van Hoof and Welling, *Stochastic Beams and Where to Find Them*, ICML 2019, arXiv 1903.06059).
    Keys are computed in float64 and rounded once. They have the same bits for any number of
    threads, on every instruction set and device.

    Args:
        gate_logits: m, float32 ``[N]``.
        age: uint8 ``[N]``; :data:`NEVER_VISITED` counts as 255.
        scale: factor of m, finite; with 0 the draw ignores m.
        turns: power of the age, finite; with 0 the draw ignores the age.
        key: in [0, 2⁶³). The noise depends on the key and the index alone.
        ceiling: m above this value counts as this value; finite, or +inf for no ceiling.

    Returns:
        float32 ``[N]``: ``scale``·min(m, ``ceiling``) + ``turns``·log(max(age, 1)) + standard
        Gumbel noise. −inf where m is −inf, for any ``scale``, so an excluded sample stays excluded.
        NaN where m is NaN.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit together, ``scale`` or ``turns`` is not finite,
            ``key`` is negative, or ``ceiling`` is NaN or −inf.

    Example:
        >>> import torch
        >>> m, age = torch.tensor([0.5, -torch.inf, 1.0]), torch.ones(3, dtype=torch.uint8)
        >>> keys = sampling_keys(m, age, scale=2.0, turns=1.0, key=7)
        >>> topk_mask(keys, k=2).selected  # samples 0 and 2, never the excluded one
        tensor([5], dtype=torch.uint8)
    """
    return torch.ops.adapruner.sampling_keys(gate_logits, age, scale, turns, key, ceiling)
