"""Rivals timed on a device in turns, in one process, and what a result file says of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from ..alternate import Timing, quartiles
from .device import Call, Cpu

OURS, EAGER, COMPILED = "adapruner", "eager torch", "torch.compile"


class Case(NamedTuple):
    """One row of a suite.

    Attributes:
        name: its sizes, in words.
        measure: takes the seconds for turns and gives the row; checks and warm-up come on top.
    """

    name: str
    measure: Callable[[float], dict[str, Any]]


Cases = Callable[[Cpu, bool], Iterator[Case]]  # of a suite: a device, and whether sizes are tiny


def alternate(
    device: Cpu,
    calls: Mapping[str, Call],
    seconds: float,
    *,
    least: int = 7,
    repeats: int = 1,
    cold: bool = True,
) -> dict[str, Timing]:
    """Time every call on the device in turns, until ``seconds`` are over.

    Args:
        calls: name to a call that enqueues its work, ``repeats`` times over; the first one is ours.
        least: turns to take, however long they are.
        cold: whether the device's caches are overwritten before each call. Otherwise a call that is
            not timed comes first, so that each finds the caches as its own last call left them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    first = times[next(iter(calls))]
    order = list(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(first) < least:
        order.append(order.pop(0))  # none always follows the same one
        for name in order:
            if cold:
                device.flush()
            else:
                calls[name]()
            times[name].append(device.seconds_of(calls[name]) / repeats)
    return {
        name: Timing(
            quartiles(mine), quartiles([t / f for t, f in zip(mine, first, strict=True)]), len(mine)
        )
        for name, mine in times.items()
    }


def warmed(device: Cpu, call: Call) -> Call:
    """The call itself, after it has compiled and chosen all that it does once."""
    for _ in range(3):
        call()
    device.synchronize()
    return call


def prepared(
    calls: Mapping[str, Any], prepare: Callable[[Any], Call]
) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls that can be prepared, and why the others cannot. Ours must be preparable."""
    ready: dict[str, Call] = {}
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            ready[name] = prepare(call)
        except Exception as error:  # a rival may fail in any way
            if name == OURS:
                raise
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ready, failed


def row(timings: Mapping[str, Timing], failed: Mapping[str, str], **facts: Any) -> dict[str, Any]:
    """A row of a result file; the first timing is ours."""
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
