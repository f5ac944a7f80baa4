"""What got slower between two runs of the suites, by more than the noise.

    python benchmarks/compare_results.py BEFORE AFTER

BEFORE and AFTER are folders of result files, or two files. Exits with 1 where something got slower.

A row's time is held against those of its rivals, which ran in turns with it: what made all of them
slower is the machine. The noise of a row is what the quartiles of both runs leave open, 5 % at
least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST_NOISE = 0.05


@dataclass(frozen=True)
class Change:
    """One row in two runs.

    Attributes:
        row: suite and name.
        factor: our time after, as a multiple of that before, less the change of the rivals.
        noise: share by which the factor may be off.
    """

    row: str
    factor: float
    noise: float

    @property
    def slower(self) -> bool:
        return self.factor > 1 + self.noise

    @property
    def faster(self) -> bool:
        return self.factor < 1 / (1 + self.noise)


def load_rows(path: Path) -> dict[str, Any]:
    """Every row that was timed beside rivals, as "suite: name"."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    rows = {}
    for file in files:
        found = json.loads(file.read_text()).get("rows", {})
        rows |= {f"{file.stem}: {name}": row for name, row in found.items() if "rivals" in row}
    if not rows:
        raise SystemExit(f"{path} holds no results; `make bench` writes some")
    return rows


def spread(timing: dict[str, Any]) -> float:
    lower, median, upper = timing["seconds"]
    return (upper - lower) / (2 * median)


def change(name: str, before: dict[str, Any], after: dict[str, Any]) -> Change:
    """Of one row in both runs; the first rival is ours."""
    then, now = before["rivals"], after["rivals"]
    ours = next(iter(now))
    factors = {
        rival: now[rival]["seconds"][1] / then[rival]["seconds"][1]
        for rival in now
        if rival in then
    }
    mine = factors.pop(ours)
    machine = statistics.median(factors.values()) if factors else 1.0
    noise = spread(then[ours]) + spread(now[ours])
    if factors:
        noise += max(spread(run[rival]) for run in (then, now) for rival in factors)
    return Change(name, mine / machine, max(noise, LEAST_NOISE))


def compare(before: Path, after: Path) -> list[Change]:
    """Of all rows that both runs have."""
    then, now = load_rows(before), load_rows(after)
    shared = [name for name in now if name in then]
    if not shared:
        raise SystemExit(f"{before} and {after} have no row in common")
    return [change(name, then[name], now[name]) for name in shared]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    changes = compare(arguments.before, arguments.after)
    for found in sorted(changes, key=lambda found: -found.factor):
        if found.slower or found.faster:
            word = "slower" if found.slower else "faster"
            print(f"{word}  × {found.factor:.2f} (noise ± {found.noise:.0%})  {found.row}")
    slower = sum(found.slower for found in changes)
    print(f"{slower} of {len(changes)} rows slower by more than the noise")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
