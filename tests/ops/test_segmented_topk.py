"""The exact top-k with a quota per segment against a stable sort in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.topk_cases import INF, KINDS, THREADS, expected_segmented, packed, quotas_of, values_of

import adapruner.ops  # noqa: F401  (registers torch.ops.adapruner)


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check_segmented(
    m: np.ndarray,
    segments: np.ndarray,
    quotas: np.ndarray,
    threads: tuple[int, ...] = THREADS,
) -> None:
    expected = packed(expected_segmented(m, segments, quotas))
    for count in threads:
        torch.set_num_threads(count)
        mask, _ = torch.ops.adapruner.segmented_topk(
            torch.from_numpy(m), torch.from_numpy(segments), torch.from_numpy(quotas), 2.0
        )
        assert mask.numpy().tobytes() == expected


@pytest.mark.parametrize("count", [1, 3, 100, 5000])
@pytest.mark.parametrize("n", [0, 1, 65, 4097, 100_003])
def test_segmented_is_a_stable_sort_within_segments(n, count):
    segments = np.random.default_rng(2).integers(-1, count, n)
    for kind in KINDS:
        m = values_of(kind, n)
        for share in (0, 0.3, "random", 1):
            check_segmented(m, segments, quotas_of(share, segments, count), (1, 3))


@pytest.mark.parametrize("order", ["sorted", "skewed", "shifted"])
def test_segmented_of_half_a_million(order):
    n, count = 500_001, 1000
    rng = np.random.default_rng(3)
    segments = rng.integers(0, count, n)
    m = values_of("normal", n)
    if order == "sorted":
        segments = np.sort(segments)
    elif order == "skewed":
        segments = (count * rng.random(n) ** 8).astype(np.int64)
    else:  # thresholds far apart
        m = (m * 1e-3 + segments).astype(np.float32)
    for share in (0.7, "random"):
        check_segmented(m, segments, quotas_of(share, segments, count))


def test_segmented_with_more_segments_than_values():
    segments = np.random.default_rng(4).integers(0, 200_000, 50_000)
    m = values_of("few values", len(segments))
    check_segmented(m, segments, quotas_of("random", segments, 200_000))


def test_one_segment_is_the_plain_topk():
    m = values_of("normal", 300_000)
    segments = np.zeros(len(m), dtype=np.int64)
    for k in (0, 1, 210_000, len(m)):
        check_segmented(m, segments, np.array([k]), (2,))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_segmented_of_special_values(data):
    n = data.draw(st.integers(0, 100))
    count = data.draw(st.integers(0, 5))
    pool = st.sampled_from([0.0, -0.0, 1.0, INF, -INF, 1e-45, -2.0])
    m = np.array(data.draw(st.lists(pool, min_size=n, max_size=n)), dtype=np.float32)
    places = st.lists(st.integers(-1, count - 1), min_size=n, max_size=n)
    segments = np.array(data.draw(places), dtype=np.int64)
    sizes = np.bincount(segments[segments >= 0], minlength=count)
    quotas = np.array([data.draw(st.integers(0, int(size))) for size in sizes], dtype=np.int64)
    check_segmented(m, segments, quotas, (1,))


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64]
)
def test_segments_and_quotas_of_any_integer_type(dtype):
    signed = np.issubdtype(dtype, np.signedinteger)
    segments = np.random.default_rng(5).integers(-1 if signed else 0, 100, 20_000).astype(dtype)
    m = values_of("normal", len(segments))
    quotas = quotas_of(0.6, segments.astype(np.int64), 100)
    check_segmented(m, segments, quotas.astype(np.int32))


def test_segmented_reads_strided_segments():
    n = 10_000
    m = torch.from_numpy(values_of("normal", 2 * n))[::2]
    segments = torch.randint(0, 10, (n, 3), generator=torch.Generator().manual_seed(0))[:, 1]
    quotas = (torch.bincount(segments, minlength=10) // 2).repeat_interleave(2)[::2]
    mask, _ = torch.ops.adapruner.segmented_topk(m, segments, quotas, 1.0)
    assert mask.numpy().tobytes() == packed(
        expected_segmented(m.numpy(), segments.numpy(), quotas.numpy())
    )


@pytest.mark.parametrize("bad", [-2, 4, 2**31, 2**32 - 1, -(2**63)])
@pytest.mark.parametrize("place", [0, 12_345, 99_999])
def test_the_first_segment_out_of_range_is_named(bad, place):
    m = torch.from_numpy(values_of("normal", 100_000))
    segments = torch.zeros(len(m), dtype=torch.int64)
    segments[place] = bad
    segments[-1] = bad
    quotas = torch.tensor([5, 0, 0, 0])
    for count in THREADS:
        torch.set_num_threads(count)
        with pytest.raises(ValueError, match=rf"segments\[{place}\] .*\[0, 4\).*; found {bad}"):
            torch.ops.adapruner.segmented_topk(m, segments, quotas, 1.0)


def test_segmented_says_what_is_wrong():
    operator = torch.ops.adapruner.segmented_topk
    m, segments = torch.zeros(5), torch.tensor([0, 1, 1, -1, 1])
    with pytest.raises(ValueError, match=r"quotas\[1\] must be in \[0, 3\].* segment 1; found 4"):
        operator(m, segments, torch.tensor([1, 4]), 1.0)
    with pytest.raises(ValueError, match=r"quotas\[0\] must be in .*; found -1"):
        operator(m, segments, torch.tensor([-1, 4]), 1.0)
    with pytest.raises(ValueError, match=r"segments\[1\] must be a segment in \[0, 1\).*; found 1"):
        operator(m, segments, torch.tensor([1]), 1.0)
    with pytest.raises(ValueError, match="segments must have the shape of gate_logits"):
        operator(m, segments[:4], torch.tensor([1, 1]), 1.0)
    beyond = torch.tensor([0, 1, 2**64 - 1, 0, 0], dtype=torch.uint64)  # the bits of −1
    with pytest.raises(ValueError, match=r"segments\[2\] must be a segment .*; found \d{10,}"):
        operator(m, beyond, torch.tensor([1, 1]), 1.0)
    with pytest.raises(TypeError, match="segments must hold integers"):
        operator(m, segments.float(), torch.tensor([1, 1]), 1.0)
    with pytest.raises(TypeError, match="quotas must hold integers"):
        operator(m, segments, torch.tensor([1.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match=r"quotas must have shape \[S\]"):
        operator(m, segments, torch.tensor([[1, 1]]), 1.0)
    with pytest.raises(TypeError, match="float32"):
        operator(m.half(), segments, torch.tensor([1, 1]), 1.0)
    with pytest.raises(ValueError, match="slope must be a finite number; found nan"):
        operator(m, segments, torch.tensor([1, 1]), float("nan"))
