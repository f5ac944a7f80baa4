"""The order in which an epoch reads its samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Order(NamedTuple):
    """A stretch of an epoch's order."""

    indices: Tensor  # int64
    position: int  # where the order goes on


def masked_order(mask: Tensor, num_samples: int, key: int, position: int, count: int) -> Order:
    """The next samples of an epoch's order, which is computed as it goes and stored nowhere.

    A permutation of all N samples that ``key`` fixes, without those that ``mask`` leaves out: each
    sample comes once, and the order of a part is a subsequence of that of all. The same at any
    number of threads, and however it is cut into calls.

    Args:
        mask: bit mask of the samples to come, uint8 ``[ceil(N / 8)]``.
        num_samples: N.
        key: in [0, 2⁶³).
        position: place to go on from in the permutation of all N, in [0, N]; 0 at the start.
        count: how many samples are wanted.

    Returns:
        ``indices``, int64 ``[count]`` or fewer at the order's end, and the ``position`` after them.

    Raises:
        ValueError: the mask has not the shape of N samples, or a number is out of range.
    """
    indices, after = torch.ops.adapruner.masked_order(mask, num_samples, key, position, count)
    return Order(indices, int(after))
