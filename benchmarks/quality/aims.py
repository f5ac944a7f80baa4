"""What the rows say about each aim of the suite: met, unmet or not shown.

"Not below" is met where the lower end of the 95 % interval is above −0.3 points, "above" where it
is above 0; what is not met is unmet where the whole interval is below 0. A limit on a cost is met
where the whole interval is within it, and unmet where the whole interval is beyond. Anything else,
and what has too few seeds, is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .markdown import difference
from .statistics import Estimate, Row, by_seed, estimate, group, paired
from .table import (
    ALL_RATIOS,
    BALANCED,
    CIFAR,
    CLEAN_OR_NOISY,
    HELD_BACK,
    HUMAN,
    JOINT_RATIOS,
    LARGE,
    LONG,
    SELECTED_BY,
    SHORT_RUNS,
    STATIC_METHODS,
    TAIL,
)

MET, UNMET, NOT_SHOWN = "met", "unmet", "not shown"
NOT_BELOW, ABOVE = -0.3, 0.0
DEFAULT = "adapruner"
RIVALS = tuple(name for name in STATIC_METHODS if name not in ("full", DEFAULT))
JOINT_RIVALS = ("random each epoch", "full, fewer epochs", "InfoBatch", "SeTa", "OrderDP", "RePB")
# Where the network fits nearly all of clean data.
FITTED = ("digits", "letter", "traffic", LONG)
DATASETS = ("digits", "letter", CIFAR)
FEW_PRUNED = (0.9, 0.8, 0.7)
Points = Callable[[float], float]
# What of a task's figure is a point, more being better: mAP in %, perplexity by its logarithm in %.
TASKS: dict[str, tuple[float, Points]] = {
    "detection": (0.8, lambda value: 100 * value),
    "language_model": (0.7, lambda value: -100 * math.log(value)),
    "fine_tuning": (0.7, lambda value: 100 * value),
}
FINE_TUNING = {"epochs": 3, "wrong_labels": 0.0}  # the case that aims are about
TITLES = {
    1: "Retrained where the network fits the data: not below all data at 0.9, 0.8 and 0.7, above "
    "a random set at 0.7 and 0.5",
    2: "Never below a random set: any data, keep ratio or number of epochs, other networks, tasks",
    3: "Joint, at equal samples read: not below any dynamic rival; at 0.7 not below all data where "
    "the network fits",
    4: "Labels of people, at 0.7: above a random set, and not below all data",
    5: "Long tails, in balanced accuracy: not below shares by class, nor random of each class",
    6: "Joint at 0.7: at most 0.85 of the samples of training on everything",
}


class Check(NamedTuple):
    """One figure that an aim rests on."""

    aim: int
    scope: str  # dataset, protocol or task that has a verdict of its own
    figure: str  # what is compared
    ratio: float
    state: str
    found: Estimate | None  # None: not run
    shown: str


class Place(NamedTuple):
    """What the methods of one table share."""

    dataset: str
    protocol: str
    noise: str


class Cells:
    """The runs that are alike in everything but the seed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._cells = group(rows, "dataset", "protocol", "noise", "method", "ratio")

    def rows(self, place: Place, method: str, ratio: float) -> list[Row]:
        """Training on everything is the same in each protocol, at each ratio."""
        if method == "full":
            place, ratio = place._replace(protocol="same epochs"), 1.0
        return self._cells.get((*place, method, ratio), [])

    def minus(
        self, place: Place, ours: str, theirs: str, ratio: float, measure: str = "accuracy"
    ) -> Estimate | None:
        """The paired difference in accuracy, or in another measure."""
        of_ours, of_theirs = (by_seed(self.rows(place, m, ratio), measure) for m in (ours, theirs))
        return paired(of_ours, of_theirs)


def enough(dataset: str) -> int:
    """Seeds that a verdict takes: fewer where a run is long."""
    return 10 if dataset == "digits" else 5


def judge(found: Estimate | None, limit: float, seeds: int) -> str:
    """Of a difference that has to be above a limit of at most 0."""
    if found is None or found.n < seeds:
        return NOT_SHOWN
    low, high = found.interval
    if low > limit:
        return MET
    return UNMET if high < 0 else NOT_SHOWN


def judge_within(found: Estimate | None, limit: float, seeds: int) -> str:
    """Of a figure that has to be at most the limit."""
    if found is None or found.n < seeds:
        return NOT_SHOWN
    low, high = found.interval
    if high <= limit:
        return MET
    return UNMET if low > limit else NOT_SHOWN


def worst(states: Iterable[str]) -> str:
    found = set(states)
    return UNMET if UNMET in found else NOT_SHOWN if found - {MET} or not found else MET


def checks(rows: Iterable[Row], tasks: Iterable[Row]) -> list[Check]:
    """Of all aims; ``rows`` those measured on test images, ``tasks`` those of the other tasks."""
    rows = list(rows)
    cells = Cells(rows)
    found = []
    for dataset in FITTED:
        place = Place(dataset, "same epochs", "clean")
        found += [_to(cells, 1, place, DEFAULT, "full", ratio, NOT_BELOW) for ratio in FEW_PRUNED]
        found += [_to(cells, 1, place, DEFAULT, "random", ratio, ABOVE) for ratio in (0.7, 0.5)]
    for dataset in (*DATASETS, LARGE, LONG, "traffic", *HELD_BACK):
        for noise in CLEAN_OR_NOISY:
            place = Place(dataset, "same epochs", noise)
            found += [_to(cells, 2, place, DEFAULT, "random", r, NOT_BELOW) for r in ALL_RATIOS]
    place = Place("digits", "same epochs", "clean")
    for method in SHORT_RUNS:
        found += [_to(cells, 2, place, method, "random", r, NOT_BELOW) for r in (0.7, 0.3)]
    for dataset in DATASETS:
        found.append(_tail(cells, 2, dataset, "random"))
    found += other_networks(cells, rows)
    found += other_tasks(tasks)
    for dataset in (*DATASETS, "traffic", *HELD_BACK):
        for noise in CLEAN_OR_NOISY:
            place = Place(dataset, "joint", noise)
            for rival in JOINT_RIVALS:
                found += [_to(cells, 3, place, DEFAULT, rival, r, NOT_BELOW) for r in JOINT_RATIOS]
            if dataset in FITTED:
                found.append(_to(cells, 3, place, DEFAULT, "full", 0.7, NOT_BELOW))
    for noise in HUMAN:
        place = Place(CIFAR, "same epochs", noise)
        found.append(_to(cells, 4, place, DEFAULT, "random", 0.7, ABOVE))
        found.append(_to(cells, 4, place, DEFAULT, "full", 0.7, NOT_BELOW))
    for dataset in DATASETS:
        found += [_tail(cells, 5, dataset, rival) for rival in (BALANCED, "random of each class")]
    for dataset in DATASETS:
        found.append(_cost(cells, Place(dataset, "joint", "clean"), 0.85))
    return found


def other_networks(cells: Cells, rows: Iterable[Row]) -> list[Check]:
    """Aim 2: new models of other networks than the one that selected."""
    found = []
    places = group((r for r in rows if r["dataset"] in SELECTED_BY), "dataset", "noise")
    for (dataset, noise), of in places.items():
        place = Place(dataset, "same epochs", noise)
        for ratio in sorted({r["ratio"] for r in of if r["method"] == DEFAULT}, reverse=True):
            check = _to(cells, 2, place, DEFAULT, "random", ratio, NOT_BELOW)
            figure = f"{dataset}, {check.figure}"
            found.append(check._replace(scope="other networks", figure=figure))
    return found or [Check(2, "other networks", "to random", 0.7, NOT_SHOWN, None, "not run")]


def other_tasks(tasks: Iterable[Row]) -> list[Check]:
    """Aims 1 and 2: other tasks, a new model on the kept set. Aim 1 is about fine-tuning alone."""
    cells = group(filter(_counts, tasks), "task", "protocol", "method")
    found = []
    for task, (ratio, points) in TASKS.items():

        def values(method: str, task: str = task, points: Points = points) -> dict[int, float]:
            made = by_seed(cells.get((task, "same epochs", method), []), "value")
            return {seed: points(value) for seed, value in made.items()}

        aimed = [(2, "random", NOT_BELOW)]
        if task == "fine_tuning":
            aimed += [(1, "full", NOT_BELOW), (1, "random", ABOVE)]
        for aim, rival, limit in aimed:
            gain = paired(values(DEFAULT), values(rival))
            figure = f"to {'all data' if rival == 'full' else rival}, %"
            state = judge(gain, limit, enough(task))
            scope = task.replace("_", " ")
            found.append(Check(aim, scope, figure, ratio, state, gain, _points(gain)))
    return found


def _counts(row: Row) -> bool:
    """Whether an aim is about this row of a task."""
    if row["task"] != "fine_tuning":
        return True
    return all(row[name] == value for name, value in FINE_TUNING.items())


def _to(
    cells: Cells, aim: int, place: Place, method: str, rival: str, ratio: float, limit: float
) -> Check:
    found = cells.minus(place, method, rival, ratio)
    state = judge(found, limit, enough(place.dataset))
    figure = f"{_what(place, method)}to {'all data' if rival == 'full' else rival}"
    return Check(aim, _scope(place), figure, ratio, state, found, _points(found))


def _tail(cells: Cells, aim: int, dataset: str, rival: str) -> Check:
    """Balanced accuracy on long tails at 0.7."""
    place = Place(dataset, "same epochs", TAIL)
    found = cells.minus(place, DEFAULT, rival, 0.7, "balanced_accuracy")
    state = judge(found, NOT_BELOW, enough(dataset))
    figure = f"{TAIL}, balanced accuracy, to {rival}"
    return Check(aim, dataset, figure, 0.7, state, found, _points(found))


def _cost(cells: Cells, place: Place, limit: float) -> Check:
    """Aim 6: samples read at 0.7 as a multiple of those of training on everything."""
    full = by_seed(cells.rows(place, "full", 0.7), "samples_read")
    read = by_seed(cells.rows(place, DEFAULT, 0.7), "samples_read")
    times = [read[seed] / full[seed] for seed in read.keys() & full.keys()]
    found = estimate(times) if times else None
    state = judge_within(found, limit, enough(place.dataset))
    shown = "not run" if found is None else f"{found.mean:.2f}"
    figure = f"{_what(place, DEFAULT)}samples read, at most {limit:g}"
    return Check(6, place.dataset, figure, 0.7, state, found, shown)


def _scope(place: Place) -> str:
    return f"{place.dataset}, {place.protocol}" if place.protocol == "same steps" else place.dataset


def _what(place: Place, method: str) -> str:
    joint = "joint, " * (place.protocol == "joint")
    epochs = f"selected in {method.removeprefix('adapruner, ')}, " if method in SHORT_RUNS else ""
    return f"{place.noise}, {joint}{epochs}"


def _points(found: Estimate | None) -> str:
    return "not run" if found is None else difference(found)


def verdicts(found: Iterable[Check]) -> str:
    """A line for each aim."""
    lines = ["| | |", "|---|---|"]
    for aim, of in group_by(found, "aim").items():
        stated = [f"{scope}: {_verdict(c)}" for scope, c in group_by(of, "scope").items()]
        lines.append(f"| **{aim}.** {TITLES[aim]} | {'<br>'.join(stated)} |")
    return "\n".join(lines)


def figures(found: Iterable[Check]) -> str:
    """The figures that the verdicts rest on. What was not run is left out."""
    parts = []
    for aim, of in group_by((c for c in found if c.found is not None), "aim").items():
        parts += [f"**{aim}.** {TITLES[aim]}:", "", *_table(of), ""]
    return "\n".join(parts)


def group_by(found: Iterable[Check], name: str) -> dict[Any, list[Check]]:
    groups: dict[Any, list[Check]] = {}
    for check in found:
        groups.setdefault(getattr(check, name), []).append(check)
    return groups


def _verdict(of: list[Check]) -> str:
    if all(check.found is None for check in of):
        return "not run"
    kinds = ["not run" if check.found is None else check.state for check in of]
    parts = [f"{kinds.count(k)} {k}" for k in (MET, UNMET, NOT_SHOWN, "not run") if k in kinds]
    return f"**{worst(check.state for check in of)}** ({', '.join(parts)})"


def _table(of: list[Check]) -> list[str]:
    """A line for each figure, a column for each ratio."""
    ratios = sorted({check.ratio for check in of}, reverse=True)
    lines = [
        f"| | | n | {' | '.join(f'{ratio:g}' for ratio in ratios)} |",
        "|---" * (len(ratios) + 3) + "|",
    ]
    for (scope, figure), line in _lines(of).items():
        sizes = sorted({check.found.n for check in line.values() if check.found})
        n = " to ".join(str(size) for size in dict.fromkeys((*sizes[:1], *sizes[-1:])))
        cells = [_cell(line[ratio]) if ratio in line else "" for ratio in ratios]
        lines.append(f"| {scope} | {figure} | {n} | {' | '.join(cells)} |")
    return lines


def _lines(of: list[Check]) -> dict[tuple[str, str], dict[float, Check]]:
    lines: dict[tuple[str, str], dict[float, Check]] = {}
    for check in of:
        lines.setdefault((check.scope, check.figure), {})[check.ratio] = check
    return lines


def _cell(check: Check) -> str:
    return check.shown if check.found is None else f"**{check.state}** {check.shown}"
