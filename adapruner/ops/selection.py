"""Exact selections: largest gate logits, oldest samples, keys for draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

GATE_SUM_ONE = 2**30


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
        NaN where m is NaN, or +inf with a ``scale`` of 0 and no ``ceiling``.

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
