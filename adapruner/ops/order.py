"""The random order in which an epoch reads its samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Order(NamedTuple):
    """A part of an epoch's order."""

    indices: Tensor  # int64
    position: int  # where the order continues


def masked_order(mask: Tensor, num_samples: int, key: int, position: int, count: int) -> Order:
    """The next samples of an epoch's order. The order is computed as needed and never stored.

    ``key`` fixes a permutation of all N samples. The order is this permutation without the samples
    outside ``mask``, so the order of fewer samples is a subsequence of the order of all. It does
    not depend on the number of threads, nor on the sizes of the calls. It is computed on the CPU,
    where samples are read.

    Args:
        mask: bit mask of the samples to read, uint8 ``[ceil(N / 8)]``, on the CPU.
        num_samples: N.
        key: in [0, 2⁶³).
        position: place in the permutation of all N to start from, in [0, N].
        count: number of samples wanted.

    Returns:
        ``indices``, int64 ``[count]``, fewer at the end of the order; and the next ``position``.

    Raises:
        TypeError: the mask is not uint8.
        ValueError: the mask is not on the CPU or does not have the shape of N samples, or a number
            is out of range.
    """
    if mask.device.type != "cpu":
        raise ValueError(f"mask must be on the CPU; found {mask.device}")
    indices, after = torch.ops.adapruner.masked_order(mask, num_samples, key, position, count)
    return Order(indices, int(after))
