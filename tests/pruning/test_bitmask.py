"""Bit masks against bools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapruner.pruning import bitmask

SIZES = [1, 7, 8, 9, 64, 65, 8 * 31, bitmask.PIECE - 1, bitmask.PIECE, bitmask.PIECE + 1, 3_000_017]


def flags_of(num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).random(num_samples) < 0.3


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 64, 65])
def test_masks_are_little_endian_bits(num_samples: int) -> None:
    flags = flags_of(num_samples)
    mask = bitmask.pack(flags)
    assert mask.dtype == torch.uint8
    assert len(mask) == -(-num_samples // 8)
    for i in range(8 * len(mask)):
        assert bool(mask[i // 8] >> (i % 8) & 1) == (i < num_samples and flags[i])


@pytest.mark.parametrize("num_samples", SIZES)
def test_masks_are_bools_of_an_eighth_of_the_size(num_samples: int) -> None:
    flags = flags_of(num_samples)
    mask = bitmask.pack(flags)
    assert (bitmask.unpack(mask, num_samples) == flags).all()
    assert bitmask.count(mask) == flags.sum()
    assert torch.equal(bitmask.pack_pieces(num_samples, lambda a, b: flags[a:b]), mask)
    for begin, piece in bitmask.unpack_pieces(mask, num_samples):
        assert (piece == flags[begin : begin + bitmask.PIECE]).all()
    indices = torch.from_numpy(np.flatnonzero(flags))
    assert torch.equal(bitmask.indices(mask), indices)
    assert torch.equal(bitmask.of_indices(indices.flip(0), num_samples), mask)
    assert bitmask.unpack(bitmask.full(num_samples), num_samples).all()
    assert bitmask.count(bitmask.full(num_samples)) == num_samples
    away = torch.from_numpy(np.flatnonzero(~flags))
    assert not bitmask.holds_any(mask, away)
    assert bitmask.holds_any(mask, torch.cat([away, indices[-1:]])) == (len(indices) > 0)


def test_empty_masks() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert bitmask.count(torch.zeros(0, dtype=torch.uint8)) == 0
    assert torch.equal(bitmask.indices(torch.zeros(3, dtype=torch.uint8)), nothing)
    assert bitmask.of_indices(nothing, 9).tolist() == [0, 0]
    assert not bitmask.holds_any(bitmask.full(9), nothing)
