"""The exact top-k operators against a stable sort in float64."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adapruner.ops  # noqa: F401  (registers torch.ops.adapruner)

INF = float("inf")
NAN = float("nan")
THREADS = (1, 2, 3)
# Around words, blocks, the runs of several threads, and where sampling begins.
SIZES = [0, 1, 2, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097, 16384, 16385, 65535, 98304 - 1, 98304 + 65]


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stable_order(m: np.ndarray) -> np.ndarray:
    """Indices from the largest value to the smallest, equal values by ascending index."""
    return np.lexsort((np.arange(len(m)), -m.astype(np.float64)))


def expected_kept(m: np.ndarray, k: int, order: np.ndarray | None = None) -> np.ndarray:
    """Flags of the k largest, equal values to the lower index."""
    kept = np.zeros(len(m), dtype=bool)
    kept[(stable_order(m) if order is None else order)[:k]] = True
    return kept


def expected_segmented(m: np.ndarray, segments: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """Flags of the quotas[s] largest of each segment s."""
    segments = segments.astype(np.int64)
    order = np.lexsort((np.arange(len(m)), -m.astype(np.float64), segments))
    starts = np.searchsorted(segments[order], np.arange(len(quotas)))
    place = np.arange(len(m)) - np.concatenate([starts, [0]])[segments[order]]
    limit = np.concatenate([quotas, [0]])[segments[order]]  # the last one is that of segment -1
    kept = np.zeros(len(m), dtype=bool)
    kept[order[place < limit]] = True
    return kept


def expected_sums(m: np.ndarray, slope: float) -> tuple[int, int]:
    with np.errstate(over="ignore"):
        gates = 1.0 / (1.0 + np.exp(-slope * m.astype(np.float64)))
    return int(np.rint(gates * 2**30).astype(np.int64).sum()), int((m > 0).sum())


def packed(kept: np.ndarray) -> bytes:
    return np.packbits(kept, bitorder="little").tobytes()


def values_of(kind: str, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    m = rng.normal(0.8, 0.3, n).astype(np.float32)
    signs = np.where(rng.random(n) < 0.5, np.float32(-1), np.float32(1))
    return {
        "normal": lambda: m,
        "equal": lambda: np.ones(n, dtype=np.float32),
        "zeros of both signs": lambda: np.float32(0) * signs,
        "few values": lambda: np.round(m * 3) * signs,
        "ascending": lambda: np.sort(m),
        "descending": lambda: -np.sort(m),
        "nearly constant": lambda: np.float32(1) + (rng.random(n) < 0.01) * np.float32(1e-6),
        "infinities": lambda: np.where(rng.random(n) < 0.4, np.float32(INF) * signs, m),
        "subnormal": lambda: (m * 1e-40).astype(np.float32) * signs,
        "every magnitude": lambda: signs * np.exp(rng.uniform(-80, 80, n)).astype(np.float32),
        "periodic": lambda: (np.arange(n) % 512 == 0).astype(np.float32) * 5 + m,
    }[kind]().astype(np.float32)


KINDS = [
    "normal",
    "equal",
    "zeros of both signs",
    "few values",
    "ascending",
    "descending",
    "nearly constant",
    "infinities",
    "subnormal",
    "every magnitude",
    "periodic",
]


def check_topk(
    m: np.ndarray,
    k: int,
    threads: tuple[int, ...] = THREADS,
    order: np.ndarray | None = None,
) -> None:
    kept = expected_kept(m, k, order)
    gate_logits = torch.from_numpy(m)
    for count in threads:
        torch.set_num_threads(count)
        mask, sums = torch.ops.adapruner.topk_mask(gate_logits, k, 2.0)
        assert mask.dtype == torch.uint8
        assert mask.shape == ((len(m) + 7) // 8,)
        assert mask.numpy().tobytes() == packed(kept)
        indices, same_sums = torch.ops.adapruner.topk_indices(gate_logits, k, 2.0)
        assert indices.dtype == torch.int64
        assert np.array_equal(indices.numpy(), np.flatnonzero(kept))
        assert torch.equal(sums, same_sums)


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


def sampled_indices(n: int) -> np.ndarray:
    """Where the operator looks for its bracket, retold from csrc/math/topk.h, to mislead it."""
    strata = n // 512 + 256
    stratum = np.arange(strata)
    length, longer = divmod(n, strata)
    begin = stratum * length + np.minimum(stratum, longer)
    size = length + (stratum < longer)
    golden, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    bits = (stratum.astype(np.uint64) + np.uint64(1)) * np.uint64(golden)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(first)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(second)
    offset = ((bits >> np.uint64(40)) * size.astype(np.uint64)) >> np.uint64(24)
    return begin + offset.astype(np.int64)


@pytest.mark.parametrize("n", SIZES)
def test_topk_is_the_stable_sort(n):
    for kind in KINDS:
        m = values_of(kind, n)
        order = stable_order(m)
        for k in sorted({0, min(1, n), n // 10, n // 2, int(0.7 * n), max(n - 1, 0), n}):
            check_topk(m, k, THREADS if n > 65535 else (1,), order)


@pytest.mark.parametrize("kind", KINDS)
def test_topk_of_a_million(kind):
    m = values_of(kind, 1_000_003)
    check_topk(m, 700_002, (1, 3))


@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, INF, -INF, 1e-45, -1e-45, 3.4e38, 0.5]), max_size=200
    ),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_topk_of_special_values(values, ratio):
    check_topk(np.array(values, dtype=np.float32), round(ratio * len(values)), (1,))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200), st.data())
@settings(max_examples=200, deadline=None)
def test_topk_of_any_values(values, data):
    check_topk(
        np.array(values, dtype=np.float32), data.draw(st.integers(0, len(values)), label="k"), (1,)
    )


@pytest.mark.parametrize("others", ["above", "below", "between", "equal above", "equal below"])
@pytest.mark.parametrize("ratio", [0.1, 0.7])
def test_topk_where_the_sample_misleads(others, ratio):
    n = 300_001
    rng = np.random.default_rng(1)
    sampled = sampled_indices(n)
    m = {
        "above": lambda: rng.uniform(2, 3, n),
        "below": lambda: rng.uniform(-3, -2, n),
        # Within what the sample says is a narrow band: far more than it may hold.
        "between": lambda: rng.uniform(1 - ratio - 1e-3, 1 - ratio + 1e-3, n),
        "equal above": lambda: np.full(n, 2.0),
        "equal below": lambda: np.full(n, -2.0),
    }[others]().astype(np.float32)
    m[sampled] = rng.random(len(sampled)).astype(np.float32)
    check_topk(m, int(ratio * n))


def test_topk_reads_strided_values_and_leaves_them_alone():
    wide = torch.from_numpy(values_of("normal", 30_000)).reshape(10_000, 3)
    before = wide.clone()
    m = wide[:, 1]
    mask, _ = torch.ops.adapruner.topk_mask(m, 7000, 1.0)
    assert mask.numpy().tobytes() == packed(expected_kept(m.numpy(), 7000))
    assert torch.equal(wide, before)


@pytest.mark.parametrize("slope", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("kind", ["normal", "infinities", "few values", "every magnitude"])
def test_sums_are_those_of_the_gates(kind, slope):
    for n in (0, 1, 1000, 100_001):
        m = values_of(kind, n)
        gates, open_count = expected_sums(m, slope)
        segments = torch.zeros(n, dtype=torch.int64)
        quotas = torch.tensor([n // 2])
        seen = set()
        for count in THREADS:
            torch.set_num_threads(count)
            for sums in (
                torch.ops.adapruner.topk_mask(torch.from_numpy(m), n // 3, slope)[1],
                torch.ops.adapruner.segmented_topk(torch.from_numpy(m), segments, quotas, slope)[1],
            ):
                assert sums.dtype == torch.int64
                assert sums.shape == (2,)
                seen.add(tuple(sums.tolist()))
        assert len(seen) == 1
        found = seen.pop()
        assert found[1] == open_count
        # The formula may round differently from this one, by far less than 2⁻²⁰ a gate.
        assert abs(found[0] - gates) <= n * 2**10


@pytest.mark.parametrize("nan", [NAN, -NAN, np.uint32(0xFF800001).view(np.float32)])
@pytest.mark.parametrize("places", [(0,), (99_999,), (60_000, 99_999), (3, 40_000), (64, 65)])
def test_the_first_nan_is_named(places, nan):
    m = values_of("normal", 100_000)
    m[list(places)] = nan
    gate_logits = torch.from_numpy(m)
    segments = torch.zeros(len(m), dtype=torch.int64)
    for count in THREADS:
        torch.set_num_threads(count)
        for k in (0, 70_000, len(m)):
            for name in ("topk_mask", "topk_indices"):
                with pytest.raises(ValueError, match=rf"gate_logits\[{places[0]}\] is NaN"):
                    getattr(torch.ops.adapruner, name)(gate_logits, k, 1.0)
            with pytest.raises(ValueError, match=rf"gate_logits\[{places[0]}\] is NaN"):
                torch.ops.adapruner.segmented_topk(gate_logits, segments, torch.tensor([k]), 1.0)


@pytest.mark.parametrize("name", ["topk_mask", "topk_indices"])
def test_topk_says_what_is_wrong(name):
    operator = getattr(torch.ops.adapruner, name)
    with pytest.raises(ValueError, match=r"k must be in \[0, 5\].*found 6"):
        operator(torch.zeros(5), 6, 1.0)
    with pytest.raises(ValueError, match=r"found -1"):
        operator(torch.zeros(5), -1, 1.0)
    with pytest.raises(TypeError, match="float32"):
        operator(torch.zeros(5, dtype=torch.float64), 1, 1.0)
    with pytest.raises(ValueError, match=r"one dimension.*\[5, 1\]"):
        operator(torch.zeros(5, 1), 1, 1.0)


def quotas_of(share, segments: np.ndarray, count: int) -> np.ndarray:
    sizes = np.bincount(segments[segments >= 0], minlength=count)
    rng = np.random.default_rng(7)
    return (sizes * (rng.random(count) if share == "random" else share)).astype(np.int64)


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
        with pytest.raises(ValueError, match=rf"segments\[{place}\] is {bad}; .*\[0, 4\)"):
            torch.ops.adapruner.segmented_topk(m, segments, quotas, 1.0)


def test_segmented_says_what_is_wrong():
    operator = torch.ops.adapruner.segmented_topk
    m, segments = torch.zeros(5), torch.tensor([0, 1, 1, -1, 1])
    with pytest.raises(ValueError, match=r"quotas\[1\] is 4; segment 1 has 3 values"):
        operator(m, segments, torch.tensor([1, 4]), 1.0)
    with pytest.raises(ValueError, match=r"quotas\[0\] is -1"):
        operator(m, segments, torch.tensor([-1, 4]), 1.0)
    with pytest.raises(ValueError, match=r"segments\[1\] is 1; expected a segment in \[0, 1\)"):
        operator(m, segments, torch.tensor([1]), 1.0)
    with pytest.raises(ValueError, match="segments must have the shape of gate_logits"):
        operator(m, segments[:4], torch.tensor([1, 1]), 1.0)
    with pytest.raises(TypeError, match="segments must hold integers"):
        operator(m, segments.float(), torch.tensor([1, 1]), 1.0)
    with pytest.raises(TypeError, match="quotas must hold integers"):
        operator(m, segments, torch.tensor([1.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match=r"quotas must have shape \[S\]"):
        operator(m, segments, torch.tensor([[1, 1]]), 1.0)
    with pytest.raises(TypeError, match="float32"):
        operator(m.half(), segments, torch.tensor([1, 1]), 1.0)


def test_flushing_subnormal_numbers_changes_nothing():
    m = values_of("subnormal", 100_000)
    segments = np.arange(len(m)) % 3
    quotas = quotas_of(0.5, segments, 3)
    kept, in_segments = expected_kept(m, 70_000), expected_segmented(m, segments, quotas)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        for count in THREADS:
            torch.set_num_threads(count)
            mask, _ = torch.ops.adapruner.topk_mask(torch.from_numpy(m), 70_000, 1.0)
            assert mask.numpy().tobytes() == packed(kept)
            mask, _ = torch.ops.adapruner.segmented_topk(
                torch.from_numpy(m), torch.from_numpy(segments), torch.from_numpy(quotas), 1.0
            )
            assert mask.numpy().tobytes() == packed(in_segments)
    finally:
        torch.set_flush_denormal(False)


def selections_digest() -> str:
    """SHA-256 over what the operators give for every kind of values, in this process."""
    digest = hashlib.sha256()
    for kind in KINDS:
        m = torch.from_numpy(values_of(kind, 70_003))
        segments = torch.arange(len(m)) % 7
        quotas = torch.full((7,), 5000)
        for result in (
            torch.ops.adapruner.topk_mask(m, 49_002, 3.0),
            torch.ops.adapruner.topk_indices(m, 20_001, 0.1),
            torch.ops.adapruner.segmented_topk(m, segments, quotas, 5.0),
        ):
            for tensor in result:
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("isa", ["baseline", "v3"])
def test_every_instruction_set_gives_the_same_bits(isa):
    code = "import test_topk; print(test_topk.selections_digest())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ADAPRUNER_ISA": isa},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == selections_digest()
