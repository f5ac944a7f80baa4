"""Rivals timed beside one another: alternating in one process, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one rival: median and quartiles over n runs."""

    median: float
    lower: float
    upper: float
    n: int


def alternate(
    rivals: Mapping[str, Callable[[], object]], seconds: float = 2.0, least: int = 7
) -> dict[str, Timing]:
    """Time every rival in turns until ``seconds`` are over, at least ``least`` turns.

    A turn times enough calls of each for the clock's resolution (some 0.2 ms).
    """
    calls = {}
    for name, call in rivals.items():
        for _ in range(3):
            start = time.perf_counter()
            call()
            last = time.perf_counter() - start
        calls[name] = max(1, round(2e-4 / max(last, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in rivals}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, call in rivals.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                call()
            times[name].append((time.perf_counter() - start) / calls[name])
    return {name: _timing(values) for name, values in times.items()}


def _timing(values: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper, len(values))
