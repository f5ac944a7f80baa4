"""Selections and orders on a GPU: the CPU's own, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.sample_inputs import INTEGERS
from support.topk_cases import KINDS, quotas_of, sampled_indices, values_of
from torch import Tensor

from adapruner import ops
from adapruner.pruning import bitmask

pytestmark = pytest.mark.cuda

# Around words, tiles of 8192, and where sampling begins; many blocks.
SIZES = [0, 1, 7, 31, 33, 8191, 8192, 8193, 16_385, 1_000_003]


def logits(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)


def same(found: ops.TopK, expected: ops.TopK) -> None:
    assert torch.equal(found.selected.cpu(), expected.selected)
    assert torch.equal(found.sums.cpu(), expected.sums)


def check_topk(m: Tensor, k: int, slope: float | None = 1.7) -> None:
    same(ops.topk_mask(m.cuda(), k, slope), ops.topk_mask(m, k, slope))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_topk(kind: str, n: int) -> None:
    m = logits(values_of(kind, n))
    for k in {0, min(n, 1), n // 3, int(0.7 * n), n}:
        check_topk(m, k)
    check_topk(m, n // 2, None)


@pytest.mark.parametrize("slope", [0.1, -3.0, 1e-30, 1e30])
def test_sums_at_any_slope(slope: float) -> None:
    m = logits(values_of("infinities", 100_003))
    check_topk(m, 50_000, slope)


@pytest.mark.parametrize("ratio", [0.1, 0.7])
def test_topk_where_the_sample_misleads(ratio: float) -> None:
    n = 1_000_003
    random = np.random.default_rng(3)
    sampled = sampled_indices(n)
    for others in (2.0, -2.0, random.uniform(2, 3, n), random.uniform(-3, -2, n)):
        m = np.broadcast_to(others, n).astype(np.float32)
        m[sampled] = random.random(len(sampled)).astype(np.float32)
        check_topk(logits(m), int(ratio * n))


def test_values_that_are_strided_or_misaligned() -> None:
    wide = logits(values_of("normal", 300_001)).cuda()
    for m in (wide[1:], wide[3:70_000], wide[::3]):
        dense = m.cpu().contiguous()
        same(ops.topk_mask(m, 20_000, 1.0), ops.topk_mask(dense, 20_000, 1.0))


def test_other_streams_and_many_times_the_same() -> None:
    m = logits(values_of("few values", 3_000_001))
    expected = ops.topk_mask(m, 2_000_000, 1.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        copy = m.cuda()
        for _ in range(20):
            same(ops.topk_mask(copy, 2_000_000, 1.0), expected)


@pytest.mark.parametrize("place", [0, 40_000, 99_999])
def test_the_first_nan_is_named(place: int) -> None:
    m = logits(values_of("normal", 100_000))
    m[place] = m[-1] = float("nan")
    segments, quotas = torch.zeros(100_000, dtype=torch.int16), torch.tensor([10])
    for k in (0, 70_000, 100_000):
        with pytest.raises(ValueError, match=rf"gate_logits\[{place}\] must be .* found NaN"):
            ops.topk_mask(m.cuda(), k)
    with pytest.raises(ValueError, match=rf"gate_logits\[{place}\] must be .* found NaN"):
        ops.segmented_topk(m.cuda(), segments.cuda(), quotas.cuda())


@pytest.mark.parametrize("count", [1, 2, 20, 1000, 50_000])
@pytest.mark.parametrize("kind", KINDS)
def test_segmented_topk(kind: str, count: int) -> None:
    for n in (0, 1, 8193, 300_001):
        m = logits(values_of(kind, n))
        segments = np.random.default_rng(2).integers(-1, count, n)
        for groups in (segments, np.sort(segments)):
            quotas = torch.from_numpy(quotas_of("random", groups, count))
            arguments = m, torch.from_numpy(groups.astype(np.int32)), quotas
            on_gpu = [argument.cuda() for argument in arguments]
            same(ops.segmented_topk(*on_gpu, 2.0), ops.segmented_topk(*arguments, 2.0))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_segments_and_quotas_of_any_integer_type(dtype: torch.dtype) -> None:
    segments = np.random.default_rng(2).integers(0, 100, 20_001)
    quotas = torch.from_numpy(quotas_of(0.6, segments, 100))
    m, groups = logits(values_of("normal", 20_001)), torch.from_numpy(segments).to(dtype)
    for of in (groups.cuda(), groups.cuda()[1:], groups.cuda()[::2]):
        mine = m[: len(of)]
        least = torch.minimum(quotas, torch.bincount(of.cpu().long(), minlength=100))
        expected = ops.segmented_topk(mine, of.cpu().long(), least)
        for given in (least, least.cuda(), least.cuda().to(torch.uint32)):
            same(ops.segmented_topk(mine.cuda(), of, given), expected)


def test_segments_and_quotas_out_of_range_are_named() -> None:
    m, segments = torch.zeros(5).cuda(), torch.tensor([0, 1, 1, -1, 1]).cuda()
    with pytest.raises(ValueError, match=r"quotas\[1\] must be in \[0, 3\].* segment 1; found 4"):
        ops.segmented_topk(m, segments, torch.tensor([1, 4]).cuda())
    with pytest.raises(ValueError, match=r"quotas\[0\] must be in .*; found -1"):
        ops.segmented_topk(m, segments, torch.tensor([-1, 4]).cuda())
    with pytest.raises(ValueError, match=r"segments\[1\] must be a segment in \[0, 1\).*; found 1"):
        ops.segmented_topk(m, segments, torch.tensor([1]).cuda())
    with pytest.raises(ValueError, match=r"quotas must be on cpu.*; found cuda:0"):
        ops.segmented_topk(m.cpu(), segments.cpu(), torch.tensor([1, 2]).cuda())


@pytest.mark.parametrize("ages", [1, 3, 256])
@pytest.mark.parametrize("num_samples", [0, 1, 17, 4097, 1_000_003])
def test_oldest_mask(num_samples: int, ages: int) -> None:
    random = np.random.default_rng(5)
    age = torch.from_numpy(random.integers(0, ages, num_samples).astype(np.uint8))
    candidates = bitmask.pack(random.random(num_samples) < 0.7)
    for count in {0, 1, num_samples // 5, num_samples}:
        expected = ops.oldest_mask(candidates, age, count, 7)
        assert torch.equal(ops.oldest_mask(candidates.cuda(), age.cuda(), count, 7).cpu(), expected)


@pytest.mark.parametrize(
    ("scale", "ceiling"), [(1.7, 0.3), (1.7, torch.inf), (0.0, torch.inf), (-2.0, -1.0)]
)
@pytest.mark.parametrize("num_samples", [0, 1, 255, 257, 1_000_003])
def test_sampling_keys(num_samples: int, scale: float, ceiling: float) -> None:
    random = np.random.default_rng(6)
    m = logits(random.normal(0, 3, num_samples).astype(np.float32))
    m[::7], m[::11], m[::13] = -torch.inf, torch.nan, torch.inf
    age = torch.from_numpy(random.integers(0, 256, num_samples).astype(np.uint8))
    for key in (0, 2**63 - 1):
        expected = ops.sampling_keys(m, age, scale, 0.5, key, ceiling)
        found = ops.sampling_keys(m.cuda(), age.cuda(), scale, 0.5, key, ceiling)
        assert torch.equal(found.cpu().view(torch.int32), expected.view(torch.int32))
    strided = ops.sampling_keys(m.cuda()[1::3], age.cuda()[1::3], scale, 0.5, 5)
    expected = ops.sampling_keys(m[1::3], age[1::3], scale, 0.5, 5)
    assert torch.equal(strided.cpu().view(torch.int32), expected.view(torch.int32))
    with pytest.raises(ValueError, match=r"age must be on cuda:0.*; found cpu"):
        ops.sampling_keys(m.cuda(), age, scale, 0.5, 5)


@pytest.mark.parametrize("n", [2**31 + 11, 2**32 + 77])
def test_more_values_than_32_bits_count(n: int) -> None:
    if torch.cuda.mem_get_info()[0] < 6 * n:
        pytest.skip("too little memory on the GPU")
    m = torch.zeros(n, device="cuda")
    m[-3:] = torch.tensor([2.0, 0.0, 1.0])
    m[5] = -1.0
    mask, sums = ops.topk_mask(m, 4, 1.0)  # the first two of the zeros
    places = mask.nonzero().flatten().tolist()
    kept = [8 * place + bit for place in places for bit in range(8) if int(mask[place]) >> bit & 1]
    assert kept == [0, 1, n - 3, n - 1]
    assert int(sums[1]) == 2
    mask = ops.topk_mask(m, n - 2).selected  # all but the last zero and the −1
    assert mask[0] == 0b11011111
    assert mask[1:-1].min() == 255
    dropped = [i for i in range(n - 16, n) if not int(mask[i // 8]) >> (i % 8) & 1]
    assert dropped == [n - 2]
