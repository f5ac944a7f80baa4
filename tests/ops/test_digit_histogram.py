"""Histograms of digits against plain counts, and a top-k of several ranks with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.topk_cases import KINDS, values_of
from torch import Tensor

from adapruner import ops
from adapruner.ops import reference
from adapruner.pruning import bitmask

pytestmark = pytest.mark.usefixtures("device")

ONE = reference.order_key(1.0)


def keys(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def logits(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(torch.get_default_device())


@pytest.mark.parametrize("kind", ["normal", "infinities", "every magnitude", "zeros of both signs"])
@pytest.mark.parametrize("n", [0, 1, 1000, 100_003])
def test_histogram_is_a_count(kind: str, n: int) -> None:
    m = values_of(kind, n)
    m[: n // 2 : 97] = np.nan
    for low, high in (
        ops.KEY_RANGE,
        (ONE, ONE),
        (ONE, ONE + 1),
        (ONE - 5000, ONE + 70_000),
        (2**31, ops.KEY_RANGE[1]),
    ):
        found = ops.digit_histogram(logits(m), keys(low, high, 1))
        assert found.dtype == torch.int64
        assert found.tolist() == reference.digit_histogram(torch.from_numpy(m), low, high)


def test_histogram_reads_strided_and_misaligned_values() -> None:
    wide = logits(values_of("normal", 3001))
    for m in (wide[1:], wide[::3], wide[2:][::2]):
        whole = keys(*ops.KEY_RANGE, 1)
        assert torch.equal(ops.digit_histogram(m, whole), ops.digit_histogram(m.clone(), whole))


def test_a_nan_is_missed_by_all_ranks() -> None:
    parts = [torch.ones(5), torch.tensor([0.0, float("nan")])]
    whole = keys(*ops.KEY_RANGE, 3)
    assert sum(ops.digit_histogram(m, whole) for m in parts).sum() == 6


def test_range_is_narrowed_to_the_digit_of_the_rank() -> None:
    histogram = torch.zeros(2049, dtype=torch.int64)
    histogram[[5, 7, 2048]] = keys(4, 3, 100)  # the last are above the range
    wide = keys(ONE, ONE + 2**20 - 1, 3)  # 2⁹ keys to a digit
    assert ops.narrowed_range(wide, histogram).tolist() == [ONE + 7 * 512, ONE + 8 * 512 - 1, 3]
    wide[2] = 5
    assert ops.narrowed_range(wide, histogram).tolist() == [ONE + 5 * 512, ONE + 6 * 512 - 1, 2]
    narrow, equal = keys(ONE, ONE, 4), torch.zeros(2049, dtype=torch.int64)
    equal[[0, 2048]] = keys(6, 50)
    assert ops.narrowed_range(narrow, equal).tolist() == [ONE, ONE, 4]


class Ranks:
    """Simulated processes, each with a part of the values."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts

    @staticmethod
    def all_reduce(own: list[Tensor]) -> Tensor:
        assert all(part.numel() * part.element_size() < 20_000 for part in own)
        return torch.stack(own).sum(0)

    def topk_masks(self, k: int) -> list[Tensor]:
        """The mask of each rank's part. Together the masks hold the k largest of all values."""
        if k == 0:
            return [ops.topk_mask(m, 0).selected for m in self.parts]
        key_range = keys(*ops.KEY_RANGE, k)
        for _ in range(ops.DIGIT_ROUNDS):
            own = [ops.digit_histogram(m, key_range) for m in self.parts]
            before, key_range = key_range, ops.narrowed_range(key_range, self.all_reduce(own))
        assert key_range[0] == key_range[1]
        digit = int(key_range[0] - before[0])
        larger = [int(histogram[digit + 1 :].sum()) for histogram in own]
        equal, left = [int(histogram[digit]) for histogram in own], int(key_range[2])
        kept = []
        for rank, m in enumerate(self.parts):
            ties = min(equal[rank], max(left - sum(equal[:rank]), 0))
            kept.append(ops.topk_mask(m, larger[rank] + ties).selected)
        return kept


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_select_what_one_would(kind: str) -> None:
    n = 20_000
    m = logits(values_of(kind, n))
    for sizes in ([n], [8000, 12_000], [1, 0, 9999, 7000, 3000]):
        ranks = Ranks(list(m.split(sizes)))
        for k in (0, 1, n // 3, 14_001, n):
            together = torch.cat(
                [
                    torch.from_numpy(bitmask.unpack(mask.cpu(), size))
                    for mask, size in zip(ranks.topk_masks(k), sizes, strict=True)
                ]
            )
            alone = ops.topk_mask(m, k).selected.cpu()
            assert torch.equal(together, torch.from_numpy(bitmask.unpack(alone, n)))


def test_shapes_and_dtypes_that_are_refused() -> None:
    whole, histogram = keys(*ops.KEY_RANGE, 1), torch.zeros(2049, dtype=torch.int64)
    with pytest.raises(TypeError, match="gate_logits must be float32"):
        ops.digit_histogram(torch.ones(3).double(), whole)
    with pytest.raises(TypeError, match="key_range must be int64; found Float"):
        ops.digit_histogram(torch.ones(3), whole.float())
    with pytest.raises(ValueError, match=r"key_range must have shape \[3\].*found shape \[2\]"):
        ops.digit_histogram(torch.ones(3), whole[:2])
    with pytest.raises(TypeError, match="histogram must be int64; found Int"):
        ops.narrowed_range(whole, histogram.int())
    with pytest.raises(ValueError, match=r"histogram must have shape \[2049\].*found.*\[2048\]"):
        ops.narrowed_range(whole, histogram[1:])


def test_ranges_and_ranks_that_the_cpu_refuses(device: str) -> None:
    histogram = torch.zeros(2049, dtype=torch.int64)
    histogram[3] = 2
    low, high = ops.KEY_RANGE
    for bad in (keys(low - 1, high, 1), keys(low, high + 1, 1), keys(ONE, ONE - 1, 1)):
        if device == "cpu":
            with pytest.raises(ValueError, match=r"two ascending keys in .*; found"):
                ops.digit_histogram(torch.ones(3), bad)
        else:
            assert ops.digit_histogram(torch.ones(3), bad).sum() <= 3
    for rank in (-1, 0, 3):
        if device == "cpu":
            with pytest.raises(ValueError, match=rf"must be in \[1, 2\].*found {rank}"):
                ops.narrowed_range(keys(low, high, rank), histogram)
        else:
            wide = keys(low, high, rank)
            assert torch.equal(ops.narrowed_range(wide, histogram), wide)
