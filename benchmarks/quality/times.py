"""What the tables of runs take."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from ..tables import each
from .run import key_of
from .static import STATIC
from .statistics import Row, group
from .table import Run, tables

CORES = 2
# Tables that `make quality` does not make here: a part of another, for an idle machine, for a GPU.
LEFT_OUT = ("quick", "cost", "gpu")


def times(rows: Iterable[Row]) -> str:
    """A line for each table: its runs, a training on everything, and the time for all of them.

    Times are those of the processor, which other programs on the machine hardly change.
    """
    made = {key_of(row): row for row in rows}
    used: list[Row] = []
    lines = [
        f"| table | runs | of them made | training on everything, s | min on {CORES} cores |",
        "|---" * 5 + "|",
    ]
    for name, runs in tables().items():
        found = [(run, made[run.key()]) for run in runs if run.key() in made]
        if name in LEFT_OUT or not found:
            continue
        full = group((row for _, row in found if row["method"] == "full"), "dataset")
        trainings = ", ".join(
            f"{dataset} {median(row['cpu_seconds'] for row in of):.1f}"
            for dataset, of in full.items()
        )
        minutes = seconds_of(found) / CORES / 60
        lines.append(f"| {name} | {len(runs)} | {len(found)} | {trainings} | {minutes:.0f} |")
        used += [row for _, row in found]
    if not used:
        return ""
    abouts = [row["provenance"] for row in used]
    machines = each(about["processor"] for about in abouts)
    return "\n".join([*lines, "", f"{machines}, {max(about['date'] for about in abouts)}."])


def seconds_of(found: Iterable[tuple[Run, Row]]) -> float:
    """Time of the processor for these runs, in seconds.

    Scores share one recorded run, and other networks share the selection.
    """
    trained, selected = 0.0, dict[Any, float]()
    for run, row in found:
        trained += row["cpu_seconds"]
        shared = run.shared if run.method in STATIC else run.selecting
        once = row.get("selection_cpu_seconds", 0.0)
        selected[shared] = max(selected.get(shared, 0.0), once)
    return trained + sum(selected.values())
