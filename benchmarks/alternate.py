"""Rivals timed beside one another: alternating in one process, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class Timing:
    """One of several that took turns, over n turns.

    Attributes:
        seconds: lower quartile, median, upper quartile.
        times_first: the same of its time as a multiple of the first one's in the same turn.
        n: number of turns.
    """

    seconds: Quartiles
    times_first: Quartiles
    n: int

    @property
    def median(self) -> float:
        return self.seconds[1]


def alternate(
    calls: Mapping[str, Callable[[], object]], seconds: float = 2.0, least: int = 5
) -> dict[str, Timing]:
    """Time every one in turns until ``seconds`` are over, at least ``least`` turns.

    A turn times enough calls of each for the clock's resolution (some 0.2 ms), after one that is
    not timed, so that each finds the caches as its own last call left them, not a rival's. Calls
    that fill every cache many times over, 0.1 s long or more, need none.
    """
    repeats: dict[str, int] = {}
    refreshed: dict[str, bool] = {}
    for name, call in calls.items():
        for _ in range(3):
            start = time.perf_counter()
            call()
            last = time.perf_counter() - start
            if last > seconds:  # nothing left to warm up
                break
        repeats[name] = max(1, round(2e-4 / max(last, 1e-7)))
        refreshed[name] = last < 0.1
    times: dict[str, list[float]] = {name: [] for name in calls}
    first = times[next(iter(calls))]
    end = time.perf_counter() + seconds
    order = list(calls)
    while time.perf_counter() < end or len(first) < least:
        order.append(order.pop(0))  # none always follows the same one
        for name in order:
            call = calls[name]
            if refreshed[name]:
                call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {
        name: Timing(
            quartiles(mine), quartiles([t / f for t, f in zip(mine, first, strict=True)]), len(mine)
        )
        for name, mine in times.items()
    }


def quartiles(values: list[float]) -> Quartiles:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper
