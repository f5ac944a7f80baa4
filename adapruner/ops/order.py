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
    """The next samples of an epoch's order. The order is computed as it goes and never stored.

    ``key`` fixes a permutation of all N samples. The order is this permutation without the samples
    that ``mask`` leaves out. Each sample comes once, and the order of a part is a subsequence of
    the order of all. The order is the same at any number of threads, and however it is cut into
    calls. It is computed on the CPU, where samples are read.

    Args:
        mask: bit mask of the samples to read, uint8 ``[ceil(N / 8)]``, on the CPU.
        num_samples: N.
        key: in [0, 2⁶³).
        position: place in the permutation of all N at which to begin, in [0, N]; 0 at the start.
        count: number of samples to give.

    Returns:
        ``indices``, int64 ``[count]``, fewer at the end of the order, and the ``position`` after
        them.

    Raises:
        TypeError: the mask is not uint8.
        ValueError: the mask is not on the CPU or does not have the shape for N samples, or a number
            is out of range.
    """
    if mask.device.type != "cpu":
        raise ValueError(f"mask must be on the CPU; found {mask.device}")
    indices, after = torch.ops.adapruner.masked_order(mask, num_samples, key, position, count)
    return Order(indices, int(after))
