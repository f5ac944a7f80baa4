"""How many samples each class keeps."""

from __future__ import annotations

import numpy as np

# Part of the kept set that classes with floors share evenly. The draw decides on the rest.
DEALT_EVENLY = 0.75


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


def class_floors(sizes: np.ndarray, total: int) -> np.ndarray:
    """The least number of samples that each class keeps, int64 ``[C]``.

    :data:`DEALT_EVENLY` of the kept set is dealt evenly: each class gets the same number, or all it
    has. So where classes are of equal size, no class keeps less than this part of its share.

    Args:
        sizes: samples of each class, int64 ``[C]``.
        total: number of samples to keep.

    >>> class_floors(np.array([900, 90, 10]), 400)
    array([200,  90,  10])
    """
    places = int(DEALT_EVENLY * total)
    # Each class has the largest number with which these places suffice, found by bisection.
    least, most = 0, int(sizes.max(initial=0))
    while least < most:
        number = (least + most + 1) // 2
        if np.minimum(sizes, number).sum() <= places:
            least = number
        else:
            most = number - 1
    return np.minimum(sizes, least)


def class_numbers(targets: np.ndarray) -> np.ndarray:
    """Classes numbered from 0, below N; integers ``[N]``. Any integers ``[N]`` are classes."""
    if len(targets) and targets.min() >= 0 and targets.max() < len(targets):
        return targets
    return np.unique(targets, return_inverse=True)[1]
