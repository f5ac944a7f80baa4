"""What the rows say about each aim of the suite: met, unmet or not shown.

"Not below" is met where the lower end of the 95 % interval is above −0.3 points, "above" where it
is above 0; what is not met is unmet where the whole interval is below 0. A limit on a cost or a
share is met where the whole interval is within it, and unmet where the whole interval is beyond.
Anything else, and what has too few seeds, is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .markdown import difference
from .statistics import Estimate, Row, by_seed, estimate, group, paired
from .table import (
    ALL_RATIOS,
    CIFAR,
    CLEAN_OR_NOISY,
    JOINT_RATIOS,
    LARGE,
    NOISE,
    RIGHT_ONLY,
    SHORT,
    STATIC_METHODS,
)

MET, UNMET, NOT_SHOWN = "met", "unmet", "not shown"
NOT_BELOW, ABOVE = -0.3, 0.0
DEFAULT = "adapruner"
RIVALS = tuple(name for name in STATIC_METHODS if name not in ("full", DEFAULT))
DATASETS = ("digits", CIFAR)
FEW_PRUNED = (0.9, 0.8, 0.7)
GAP_TO_CLOSE = 0.7
Points = Callable[[float], float]
# What of a task's figure is a point, more being better: mAP in %, perplexity by its logarithm in %.
TASKS: dict[str, tuple[float, Points]] = {
    "detection": (0.8, lambda value: 100 * value),
    "language_model": (0.7, lambda value: -100 * math.log(value)),
}
TITLES = {
    1: "Clean CIFAR-10 at 0.9, 0.8 and 0.7: not below all data, nor below any static rival",
    2: "Every ratio from 0.95 to 0.1: not below random, nor below the best rival",
    3: "20 % wrong labels, 0.7: under 5 % of the kept wrong; 70 % of the gap to as many right "
    "labels closed",
    4: "Joint, at equal samples read: above a new random part each epoch, and above InfoBatch",
    5: "Networks that did not select, detection, language modelling: not below random",
    6: "Joint at 0.7: at most 0.85 of the samples, not below all data; a short selection: at most "
    "0.4, with the second model 1.1, and aim 1",
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

    def minus(self, place: Place, ours: str, theirs: str, ratio: float) -> Estimate | None:
        """The paired difference in accuracy."""
        of_ours, of_theirs = (by_seed(self.rows(place, m, ratio)) for m in (ours, theirs))
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
    places = [Place(dataset, "same epochs", "clean") for dataset in (CIFAR, LARGE)]
    places.append(Place(CIFAR, "same steps", "clean"))
    found = [check for place in places for check in retrained(cells, 1, place, DEFAULT)]
    for dataset in DATASETS:
        for noise in CLEAN_OR_NOISY:
            place = Place(dataset, "same epochs", noise)
            found += [_to(cells, 2, place, DEFAULT, "random", r, NOT_BELOW) for r in ALL_RATIOS]
            found += [_to_rivals(cells, 2, place, DEFAULT, r, False) for r in ALL_RATIOS]
    for dataset in DATASETS:
        found += wrong_labels(cells, dataset)
    for dataset in DATASETS:
        for noise in CLEAN_OR_NOISY:
            for rival in ("random each epoch", "InfoBatch"):
                place = Place(dataset, "joint", noise)
                found += [_to(cells, 4, place, DEFAULT, rival, r, ABOVE) for r in JOINT_RATIOS]
    found += other_networks(cells, rows)
    found += other_tasks(tasks)
    for dataset in DATASETS:
        place = Place(dataset, "joint", "clean")
        found.append(_to(cells, 6, place, DEFAULT, "full", 0.7, NOT_BELOW))
        found.append(_cost(cells, place, DEFAULT, {"samples_read": "in all"}, 0.85))
    place = Place(CIFAR, "same epochs", "clean")
    found += retrained(cells, 6, place, SHORT)
    selection = {"selection_samples_read": "to select"}
    found.append(_cost(cells, place, SHORT, selection, 0.4))
    found.append(_cost(cells, place, SHORT, selection | {"samples_read": "to train"}, 1.1))
    return found


def retrained(cells: Cells, aim: int, place: Place, method: str) -> list[Check]:
    """Aim 1: little pruned, beside all data and every rival."""
    return [
        *(_to(cells, aim, place, method, "full", ratio, NOT_BELOW) for ratio in FEW_PRUNED),
        *(_to_rivals(cells, aim, place, method, ratio, True) for ratio in FEW_PRUNED),
    ]


def wrong_labels(cells: Cells, dataset: str) -> list[Check]:
    """Aim 3. The share of the gap is a quotient of means; whether it is large enough, the paired
    gain − 0.7·gap tells, where there is a gap at all."""
    place, seeds = Place(dataset, "same epochs", NOISE), enough(dataset)
    ours, full, right = (
        by_seed(cells.rows(place, method, 0.7)) for method in (DEFAULT, "full", RIGHT_ONLY)
    )
    wrong = by_seed(cells.rows(place, DEFAULT, 0.7), "bad_among_kept").values()
    share = estimate(100 * value for value in wrong) if wrong else None
    state, rest = judge_within(share, 5.0, seeds), None
    shown = "not run" if share is None else f"{share.mean:.2f}"
    bad = Check(3, dataset, "wrong among the kept, %, under 5", 0.7, state, share, shown)
    state, shown = NOT_SHOWN, "not run"
    if common := sorted(ours.keys() & full.keys() & right.keys()):
        gap = estimate(right[seed] - full[seed] for seed in common)
        gain = estimate(ours[seed] - full[seed] for seed in common)
        rest = estimate(
            ours[seed] - full[seed] - GAP_TO_CLOSE * (right[seed] - full[seed]) for seed in common
        )
        if gap.interval[0] > 0:
            state = judge(rest, 0.0, seeds)
            quotient = f"{100 * gain.mean / gap.mean:.0f}"
            shown = f"{quotient}: gain {difference(gain)} of a gap {difference(gap)}"
        else:
            shown = f"cannot be told, no gap is seen: {difference(gap)}"
    figure = f"share of the gap closed, %, at least {100 * GAP_TO_CLOSE:g}"
    return [bad, Check(3, dataset, figure, 0.7, state, rest, shown)]


def other_networks(cells: Cells, rows: Iterable[Row]) -> list[Check]:
    """Aim 5: datasets named after the part of CIFAR-10 and the network that is trained."""
    found = []
    places = group((r for r in rows if is_transfer(r["dataset"])), "dataset", "noise")
    for (dataset, noise), of in places.items():
        place = Place(dataset, "same epochs", noise)
        for ratio in sorted({r["ratio"] for r in of if r["method"] == DEFAULT}, reverse=True):
            check = _to(cells, 5, place, DEFAULT, "random", ratio, NOT_BELOW)
            figure = f"{network_of(dataset)}, {check.figure}"
            found.append(check._replace(scope="other networks", figure=figure))
    return found or [Check(5, "other networks", "to random", 0.7, NOT_SHOWN, None, "not run")]


def is_transfer(dataset: str) -> bool:
    return dataset.startswith(f"{CIFAR} ")


def network_of(dataset: str) -> str:
    return dataset.removeprefix(f"{CIFAR} ")


def other_tasks(tasks: Iterable[Row]) -> list[Check]:
    """Aim 5: detection and language modelling, a new model on the kept set."""
    cells = group(tasks, "task", "protocol", "method")
    found = []
    for task, (ratio, points) in TASKS.items():

        def values(method: str, task: str = task, points: Points = points) -> dict[int, float]:
            made = by_seed(cells.get((task, "same epochs", method), []), "value")
            return {seed: points(value) for seed, value in made.items()}

        gain = paired(values(DEFAULT), values("random"))
        scope = task.replace("_", " ")
        state = judge(gain, NOT_BELOW, enough(task))
        found.append(Check(5, scope, "to random, %", ratio, state, gain, _points(gain)))
    return found


def _to(
    cells: Cells, aim: int, place: Place, method: str, rival: str, ratio: float, limit: float
) -> Check:
    found = cells.minus(place, method, rival, ratio)
    state = judge(found, limit, enough(place.dataset))
    figure = f"{_what(place, method)}to {'all data' if rival == 'full' else rival}"
    return Check(aim, _scope(place), figure, ratio, state, found, _points(found))


def _to_rivals(
    cells: Cells, aim: int, place: Place, method: str, ratio: float, every: bool
) -> Check:
    """The best rival's figures; the verdict on it, or on ``every`` one."""
    beside = {rival: cells.minus(place, method, rival, ratio) for rival in RIVALS}
    run: Mapping[str, Estimate] = {rival: e for rival, e in beside.items() if e is not None}
    to = "each rival (shown: the best)" if every else "the best rival"
    figure = f"{_what(place, method)}to {to}"
    if not run:
        return Check(aim, _scope(place), figure, ratio, NOT_SHOWN, None, "not run")
    best = min(run, key=lambda rival: run[rival].mean)
    seeds = enough(place.dataset)
    states = {rival: judge(found, NOT_BELOW, seeds) for rival, found in run.items()}
    state = worst(states.values()) if every else states[best]
    notes = [best]
    if every:
        notes += [f"{kind}: {', '.join(of)}" for kind, of in _open(states).items()]
    if len(run) < len(RIVALS):  # one that was not run may be the best
        notes.append(f"{len(run)} of {len(RIVALS)} rivals run")
        state = worst((state, NOT_SHOWN))
    shown = f"{_points(run[best])} ({'; '.join(notes)})"
    return Check(aim, _scope(place), figure, ratio, state, run[best], shown)


def _open(states: Mapping[str, str]) -> dict[str, list[str]]:
    """Those that are not met, by what they are."""
    found = {
        kind: [r for r, state in states.items() if state == kind] for kind in (UNMET, NOT_SHOWN)
    }
    return {kind: rivals for kind, rivals in found.items() if rivals}


def _cost(
    cells: Cells, place: Place, method: str, measures: Mapping[str, str], limit: float
) -> Check:
    """Samples read at 0.7 as a multiple of those of training on everything."""
    full = by_seed(cells.rows(place, "full", 0.7), "samples_read")
    rows = {row["seed"]: row for row in cells.rows(place, method, 0.7)}
    times = [
        sum(row[measure] for measure in measures) / full[seed]
        for seed, row in rows.items()
        if seed in full
    ]
    found = estimate(times) if times else None
    state = judge_within(found, limit, enough(place.dataset))
    shown = "not run" if found is None else f"{found.mean:.2f}"
    read = f"samples read {' and '.join(measures.values())}"
    figure = f"{_what(place, method)}{read}, at most {limit:g}"
    return Check(6, place.dataset, figure, 0.7, state, found, shown)


def _scope(place: Place) -> str:
    return f"{place.dataset}, {place.protocol}" if place.protocol == "same steps" else place.dataset


def _what(place: Place, method: str) -> str:
    joint = "joint, " * (place.protocol == "joint")
    return f"{place.noise}, {joint}{'short selection, ' * (method == SHORT)}"


def _points(found: Estimate | None) -> str:
    return "not run" if found is None else difference(found)


def markdown(found: Iterable[Check]) -> str:
    """The verdicts, then the figures that they rest on."""
    lines = ["| | |", "|---|---|"]
    parts = []
    for aim, of in group_by(found, "aim").items():
        verdicts = [f"{scope}: {_verdict(c)}" for scope, c in group_by(of, "scope").items()]
        lines.append(f"| **{aim}.** {TITLES[aim]} | {'<br>'.join(verdicts)} |")
        parts += ["", f"**{aim}.** {TITLES[aim]}:", "", *_table(of)]
    return "\n".join(lines + parts)


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
