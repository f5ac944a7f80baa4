"""Values for the exact top-k, and its expected results from a stable sort in float64."""

from __future__ import annotations

import numpy as np

INF = float("inf")
THREADS = (1, 2, 3)


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


def quotas_of(share, segments: np.ndarray, count: int) -> np.ndarray:
    sizes = np.bincount(segments[segments >= 0], minlength=count)
    rng = np.random.default_rng(7)
    return (sizes * (rng.random(count) if share == "random" else share)).astype(np.int64)


def sampled_indices(n: int) -> np.ndarray:
    """The places that the operator samples for its bracket, as in csrc/math/topk.h."""
    strata = int(0.8 * np.cbrt(float(n)) ** 2)
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
