"""Bit masks against bools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapruner import masks

SIZES = [1, 7, 8, 9, 64, 65, 8 * 31, masks.PIECE - 1, masks.PIECE, masks.PIECE + 1, 3_000_017]


def flags_of(num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).random(num_samples) < 0.3


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 64, 65])
def test_masks_are_little_endian_bits(num_samples: int) -> None:
    flags = flags_of(num_samples)
    mask = masks.pack(flags)
    assert mask.dtype == torch.uint8
    assert len(mask) == -(-num_samples // 8)
    for i in range(8 * len(mask)):
        assert bool(mask[i // 8] >> (i % 8) & 1) == (i < num_samples and flags[i])


@pytest.mark.parametrize("num_samples", SIZES)
def test_masks_are_bools_of_an_eighth_of_the_size(num_samples: int) -> None:
    flags = flags_of(num_samples)
    mask = masks.pack(flags)
    assert (masks.unpack(mask, num_samples) == flags).all()
    assert masks.count(mask) == flags.sum()
    assert torch.equal(masks.pack_pieces(num_samples, lambda a, b: flags[a:b]), mask)
    for begin, piece in masks.unpack_pieces(mask, num_samples):
        assert (piece == flags[begin : begin + masks.PIECE]).all()
    indices = torch.from_numpy(np.flatnonzero(flags))
    assert torch.equal(masks.indices(mask), indices)
    assert torch.equal(masks.of_indices(indices.flip(0), num_samples), mask)
    assert masks.unpack(masks.full(num_samples), num_samples).all()
    assert masks.count(masks.full(num_samples)) == num_samples
    away = torch.from_numpy(np.flatnonzero(~flags))
    assert not masks.holds_any(mask, away)
    assert masks.holds_any(mask, torch.cat([away, indices[-1:]])) == (len(indices) > 0)


def test_empty_masks() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert masks.count(torch.zeros(0, dtype=torch.uint8)) == 0
    assert torch.equal(masks.indices(torch.zeros(3, dtype=torch.uint8)), nothing)
    assert masks.of_indices(nothing, 9).tolist() == [0, 0]
    assert not masks.holds_any(masks.full(9), nothing)
