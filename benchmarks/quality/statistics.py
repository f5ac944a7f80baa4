"""From rows to figures with their errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from scipy.stats import t as student

Row = Mapping[str, Any]


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    standard_error: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence, by Student's t."""
        if self.n < 2:
            return -math.inf, math.inf
        half = student.ppf(0.975, self.n - 1) * self.standard_error
        return self.mean - half, self.mean + half


def estimate(values: Iterable[float]) -> Estimate:
    found = list(values)
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return Estimate(statistics.mean(found), error, len(found))


def group(rows: Iterable[Row], *names: str) -> dict[Any, list[Row]]:
    """Rows by the values of these columns, in the order they are met."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        groups.setdefault(key if len(names) > 1 else key[0], []).append(row)
    return groups


def by_seed(rows: Iterable[Row], measure: str = "accuracy") -> dict[int, float]:
    """Seed to figure; of a seed that was run twice the last."""
    return {row["seed"]: row[measure] for row in rows}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The difference over the seeds that both have; None where there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return estimate(ours[seed] - theirs[seed] for seed in seeds) if seeds else None
