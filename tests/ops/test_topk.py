"""The exact top-k operators against a stable sort in float64."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import run_python
from support.topk_cases import (
    INF,
    KINDS,
    THREADS,
    expected_kept,
    expected_segmented,
    expected_sums,
    packed,
    quotas_of,
    sampled_indices,
    stable_order,
    values_of,
)

import adapruner.ops  # noqa: F401  (registers torch.ops.adapruner)

NAN = float("nan")
# Sizes near words, near blocks, near the parts of several threads, near the start of sampling.
SIZES = [0, 1, 2, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097, 16384, 16385, 65535, 98304 - 1, 98304 + 65]


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
        mask, _ = torch.ops.adapruner.topk_mask(gate_logits, k, 2.0)
        assert mask.dtype == torch.uint8
        assert mask.shape == ((len(m) + 7) // 8,)
        assert mask.numpy().tobytes() == packed(kept)


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
        # The sample suggests a narrow band, which holds far more values than there is room for.
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
        # Both sides round each gate to a multiple of 2⁻³⁰. Before that they differ by 2 % of it.
        assert abs(found[0] - gates) <= n
        assert n < 1000 or abs(found[0] - gates) <= 0.1 * n  # and rounding errors partly cancel


def test_without_a_slope_there_are_no_sums_and_the_same_selection():
    m = torch.from_numpy(values_of("normal", 100_001))
    segments, quotas = torch.arange(len(m)) % 3, torch.tensor([5, 20_000, 30_000])
    operators = torch.ops.adapruner
    for with_sums, without in (
        (operators.topk_mask(m, 70_000, 1.0), operators.topk_mask(m, 70_000)),
        (
            operators.segmented_topk(m, segments, quotas, 1.0),
            operators.segmented_topk(m, segments, quotas),
        ),
    ):
        assert torch.equal(with_sums[0], without[0])
        assert with_sums[1].shape == (2,)
        assert without[1].shape == (0,)
        assert without[1].dtype == torch.int64


@pytest.mark.parametrize("slope", [1e-30, 1e30, -2.0])
def test_sums_at_extreme_slopes(slope):
    m = values_of("normal", 10_001)
    m[:3] = [INF, -INF, 0.0]
    gates, _ = expected_sums(m, slope)
    found = torch.ops.adapruner.topk_mask(torch.from_numpy(m), 0, slope)[1][0].item()
    assert abs(found - gates) <= len(m)


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
            with pytest.raises(
                ValueError, match=rf"gate_logits\[{places[0]}\] must be .* found NaN"
            ):
                torch.ops.adapruner.topk_mask(gate_logits, k, 1.0)
            with pytest.raises(
                ValueError, match=rf"gate_logits\[{places[0]}\] must be .* found NaN"
            ):
                torch.ops.adapruner.segmented_topk(gate_logits, segments, torch.tensor([k]), 1.0)


def test_topk_says_what_is_wrong():
    operator = torch.ops.adapruner.topk_mask
    with pytest.raises(ValueError, match=r"k must be in \[0, 5\].*found 6"):
        operator(torch.zeros(5), 6, 1.0)
    with pytest.raises(ValueError, match=r"found -1"):
        operator(torch.zeros(5), -1, 1.0)
    with pytest.raises(TypeError, match="float32"):
        operator(torch.zeros(5, dtype=torch.float64), 1, 1.0)
    with pytest.raises(ValueError, match=r"one dimension.*\[5, 1\]"):
        operator(torch.zeros(5, 1), 1, 1.0)
    for slope in (NAN, INF, -INF):
        with pytest.raises(ValueError, match=r"slope must be a finite number; found -?(nan|inf)"):
            operator(torch.zeros(5), 1, slope)


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
    """SHA-256 over the operators' results for every kind of values, in this process."""
    digest = hashlib.sha256()
    for kind in KINDS:
        m = torch.from_numpy(values_of(kind, 70_003))
        segments = torch.arange(len(m)) % 7
        quotas = torch.full((7,), 5000)
        for result in (
            torch.ops.adapruner.topk_mask(m, 49_002, 3.0),
            torch.ops.adapruner.topk_mask(m, 20_001, 0.1),
            torch.ops.adapruner.segmented_topk(m, segments, quotas, 5.0),
        ):
            for tensor in result:
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("isa", ["baseline", "v3"])
def test_every_instruction_set_gives_the_same_bits(isa):
    code = "import test_topk; print(test_topk.selections_digest())"
    found = run_python(code, __file__, ADAPRUNER_ISA=isa)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == selections_digest()
