"""Bit masks of samples: uint8 ``[ceil(N / 8)]``. Sample i is bit i % 8 of byte i / 8.

Unused bits are 0. A selection is stored only as a mask. Code that needs flags of all N samples
unpacks them in pieces. Masks are on the CPU, whatever torch's default device is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

PIECE = 2**18  # samples at a time: whole bytes of a mask, few enough to stay in cache


def full(num_samples: int) -> Tensor:
    """The mask of all samples."""
    mask = torch.full(((num_samples + 7) // 8,), 255, dtype=torch.uint8, device="cpu")
    if num_samples % 8:
        mask[-1] = 2 ** (num_samples % 8) - 1
    return mask


def pack(flags: np.ndarray) -> Tensor:
    """Bools ``[N]`` as a mask."""
    return torch.from_numpy(np.packbits(flags, bitorder="little"))


def unpack(mask: Tensor, num_samples: int) -> np.ndarray:
    """A mask as bools ``[N]``."""
    return np.unpackbits(mask.cpu().numpy(), count=num_samples, bitorder="little").view(bool)


def unpack_pieces(mask: Tensor, num_samples: int) -> Iterator[tuple[int, np.ndarray]]:
    """:func:`unpack` in pieces. Yields the first sample of each piece and the piece's bools."""
    for begin in range(0, num_samples, PIECE):
        end = min(begin + PIECE, num_samples)
        yield begin, unpack(mask[begin // 8 : (end + 7) // 8], end - begin)


def pack_pieces(num_samples: int, flags: Callable[[int, int], np.ndarray]) -> Tensor:
    """The mask of N samples from ``flags(begin, end)``, which gives bools ``[end - begin]``."""
    mask = torch.empty((num_samples + 7) // 8, dtype=torch.uint8, device="cpu")
    for begin in range(0, num_samples, PIECE):
        end = min(begin + PIECE, num_samples)
        mask[begin // 8 : (end + 7) // 8] = pack(flags(begin, end))
    return mask


def of_indices(indices: Tensor, num_samples: int) -> Tensor:
    """The mask of distinct dataset indices, int64."""
    mask = np.zeros((num_samples + 7) // 8, dtype=np.uint8)
    index = indices.numpy()
    np.bitwise_or.at(mask, index // 8, np.left_shift(1, index % 8).astype(np.uint8))
    return torch.from_numpy(mask)


def count(mask: Tensor) -> int:
    """Number of samples in a mask."""
    pieces = unpack_pieces(mask, 8 * len(mask))
    return sum(int(np.count_nonzero(flags)) for _, flags in pieces)


def indices(mask: Tensor) -> Tensor:
    """The samples in a mask, int64, ascending."""
    found = torch.empty(count(mask), dtype=torch.int64, device="cpu")
    end = 0
    for begin, flags in unpack_pieces(mask, 8 * len(mask)):
        held = np.flatnonzero(flags)
        found[end : end + len(held)] = torch.from_numpy(held + begin)
        end += len(held)
    return found


def indices_between(mask: Tensor, begin: int, end: int) -> np.ndarray:
    """The samples in a mask with indices in [begin, end), int64, ascending."""
    first = begin // 8
    flags = np.unpackbits(mask[first : (end + 7) // 8].numpy(), bitorder="little")
    return np.flatnonzero(flags[begin - 8 * first : end - 8 * first]) + begin


def holds_any(mask: Tensor, indices: Tensor) -> bool:
    """Whether a mask holds any of the ``indices``, int64."""
    return bool((mask[indices // 8] >> (indices % 8) & 1).any())
