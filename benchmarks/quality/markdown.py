"""Cells and grids of the tables in the documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .statistics import Estimate, Row, by_seed, group
from .table import FORMER, JOINT_METHODS, JOINT_MORE, OURS, RIGHT_ONLY, STATIC_METHODS

Column = TypeVar("Column")


def cell_mean(found: Estimate) -> str:
    error = f" ± {found.standard_error:.2f}" if found.n > 1 else ""
    return f"{found.mean:.2f}{error}"


def difference(found: Estimate) -> str:
    if found.n < 2:
        return f"{found.mean:+.2f}"
    low, high = found.interval
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def cell_difference(found: Estimate | None) -> str:
    """Bold where the interval lies above 0; empty where there is none."""
    if found is None:
        return ""
    return (
        f"**{difference(found)}**" if found.n > 1 and found.interval[0] > 0 else difference(found)
    )


def order_of(methods: Iterable[str]) -> list[str]:
    """Rivals as the tables of runs have them, then ours, then the others by name."""
    rivals = [m for m in (*STATIC_METHODS, *JOINT_METHODS, *JOINT_MORE) if m not in OURS]
    known = [*dict.fromkeys(rivals), FORMER, *OURS, RIGHT_ONLY]
    places = {method: place for place, method in enumerate(known)}
    return sorted(set(methods), key=lambda method: (places.get(method, len(known)), method))


def ratios_of(rows: Iterable[Row]) -> list[float]:
    """From most kept to least; training on everything has none."""
    return sorted({row["ratio"] for row in rows if row["method"] != "full"}, reverse=True)


def counts(rows: Iterable[Row], *columns: str) -> str:
    """How many seeds the cells have."""
    cells = group(rows, "method", *(columns or ("ratio",)))
    sizes = {len(by_seed(cell)) for cell in cells.values()}
    return f"n = {min(sizes)}" if len(sizes) == 1 else f"n = {min(sizes)} to {max(sizes)}"


def grid(
    methods: Iterable[str], columns: Sequence[Column], cell: Callable[[str, Column], str]
) -> list[str]:
    """A line for each method, in their order, and a column for each of ``columns``."""
    titles = [f"{c:g}" if isinstance(c, float) else str(c) for c in columns]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for method in order_of(methods):
        lines.append(f"| {method} | {' | '.join(cell(method, c) for c in columns)} |")
    return lines
