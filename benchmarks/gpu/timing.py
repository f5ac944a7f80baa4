"""Rivals timed on the GPU: events around graph replays, in turns, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from alternate import Timing, quartiles

OURS, EAGER, COMPILED = "adapruner", "eager torch", "torch.compile"
FLUSHED = 256 * 2**20  # bytes: several times any L2 there is


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cuda").manual_seed(seed)


def warmed(call: Callable[[], object]) -> Callable[[], object]:
    """The call itself, once it has compiled and chosen whatever it does."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    return call


def captured(*calls: Callable[[], object]) -> Callable[[], object]:
    """One replay of a CUDA graph that makes these calls, one after another."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            warmed(call)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def alternate(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least: int = 7,
    repeats: int = 1,
    cold: bool = True,
) -> dict[str, Timing]:
    """Time every one on the device in turns, until ``seconds`` are over.

    Args:
        calls: name to what enqueues its work, ``repeats`` times over; the first one is ours.
        cold: whether the L2 cache is overwritten before each; where not, each finds it as its own
            call before, which is not timed, left it.
    """
    flushed = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    first = times[next(iter(calls))]
    order = list(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(first) < least:
        order.append(order.pop(0))  # none always follows the same one
        for name in order:
            if cold:
                flushed.zero_()
            else:
                calls[name]()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            calls[name]()
            stop.record()
            stop.synchronize()
            times[name].append(start.elapsed_time(stop) / 1e3 / repeats)
    return {
        name: Timing(
            quartiles(mine), quartiles([t / f for t, f in zip(mine, first, strict=True)]), len(mine)
        )
        for name, mine in times.items()
    }


def prepared(
    calls: Mapping[str, Callable[[], object]], prepare: Callable[..., Callable[[], object]]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The calls that can be prepared, and of the others why not; ours must."""
    ready: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            ready[name] = prepare(call)
        except Exception as error:  # a rival's, whatever it is
            if name == OURS:
                raise
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ready, failed


def row(timings: Mapping[str, Timing], failed: Mapping[str, str], **facts: Any) -> dict[str, Any]:
    """What a result file says of one row; the first timing is ours."""
    return {
        "rivals": {name: asdict(timing) for name, timing in timings.items()},
        "failed": dict(failed),
        "claims": [],
        **facts,
    }


def claim(
    of: dict[str, Any], text: str, value: float | None, limit: float, most: bool = False
) -> None:
    """Hold a row's figure against its budget: at least ``limit``, or at most."""
    met = None if value is None else value <= limit if most else value >= limit
    of["claims"].append({"text": text, "value": value, "limit": limit, "most": most, "met": met})


def times_ours(of: dict[str, Any], rival: str) -> float | None:
    """A rival's time as a multiple of ours, if it was timed."""
    found = of["rivals"].get(rival)
    return found["times_first"][1] if found else None
