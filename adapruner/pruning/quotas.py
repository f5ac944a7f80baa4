"""How many samples each class keeps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adapruner.pruning import bitmask

# Losses are summed as whole multiples of 1/2²⁰, so that no order of additions matters.
_SUM_UNIT = 2.0**20


def largest_remainder(total: int, sizes: np.ndarray, available: np.ndarray) -> np.ndarray:
    """``total`` divided in proportion to ``sizes``, with at most ``available`` each; int64.

    Shares are rounded down. The rest goes to the largest remainders; of equal remainders the lower
    index wins. If a share is above ``available``, the excess is divided among the others in the
    same way. Sizes of 0 come last, and share alike.

    >>> largest_remainder(7, np.array([5, 3, 2]), np.array([5, 3, 2]))
    array([4, 2, 1])
    """
    if total > available.sum():
        raise ValueError(
            f"expected at least {total} readable samples, the number to keep; found "
            f"{available.sum()}"
        )
    dealt = np.zeros(len(sizes), dtype=np.int64)
    while (left := total - int(dealt.sum())) > 0:
        open_ = dealt < available
        weight = np.where(open_, sizes, 0) if (open_ & (sizes > 0)).any() else open_
        # Python's integers have any size, so a tie is exact.
        share = [left * int(w) for w in weight]
        whole = sum(int(w) for w in weight)
        gain = np.array([s // whole for s in share], dtype=np.int64)
        remainder = [s % whole for s in share]
        order = sorted(range(len(sizes)), key=lambda j: (-remainder[j], j))
        seats = [j for j in order if open_[j]][: left - int(gain.sum())]
        gain[seats] += 1
        dealt = np.minimum(dealt + gain, available)
    return dealt


def largest_remainder_within(
    total: int, sizes: np.ndarray, least: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """:func:`largest_remainder` with at least ``least`` and at most ``most`` each."""
    raised = np.zeros(len(sizes), dtype=bool)
    while True:
        free = np.where(raised, 0, 1)
        rest = total - int(least[raised].sum())
        dealt = np.where(raised, least, largest_remainder(rest, sizes * free, most * free))
        if (dealt >= least).all():
            return dealt
        raised |= dealt < least


def weights_by_loss(losses: Tensor, unit: float, labels: Tensor) -> np.ndarray:
    """Weights of the classes, in proportion to √(share of the class · mean loss of its samples).

    The square root is between an equal number for each class and a number in proportion to its
    loss. No loss counts as more than ``unit``, so that a few outliers do not decide.

    Args:
        losses: float ``[N]``; a loss that is not finite counts as 0.
        unit: a usual loss of an untrained model.
        labels: the class of each sample, integers ``[N]``, below C.

    Returns:
        Int64 ``[C]``. The same on all devices.
    """
    sums = torch.zeros(int(labels.max()) + 1, dtype=torch.int64, device=losses.device)
    for part, of in zip(losses.split(bitmask.PIECE), labels.split(bitmask.PIECE), strict=True):
        capped = (part.double() / unit).nan_to_num(0.0, 0.0, 0.0).clamp_(0.0, 1.0)
        sums.index_add_(0, of.to(part.device).long(), capped.mul_(_SUM_UNIT).round_().long())
    return np.rint(np.sqrt(sums.cpu().numpy()) * 2**10).astype(np.int64)
