"""The tables that lead docs/quality.md and README.md: a line for each condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import mean

from . import aims
from .markdown import cell_difference, cell_mean, order_of
from .statistics import Row, by_seed, estimate
from .table import (
    BALANCED,
    CIFAR,
    CLEAN_OR_NOISY,
    FORMER,
    HELD_BACK,
    HUMAN,
    LONG,
    RECIPES,
    SHORT_RUNS,
    TAIL,
    TRACKS,
    UNKNOWN,
    WIDE,
)

Rows = list[Row]
SEEDS_TO_SHOW = 5  # in the tables over all conditions
# The lines of the table of conditions.
CONDITIONS = [
    *((aims.Place("digits", "same epochs", noise), WIDE) for noise in CLEAN_OR_NOISY),
    *((aims.Place("letter", "same epochs", noise), (0.7, 0.5)) for noise in CLEAN_OR_NOISY),
    *((aims.Place(CIFAR, "same epochs", noise), WIDE) for noise in (*CLEAN_OR_NOISY, *HUMAN)),
    (aims.Place(LONG, "same epochs", "clean"), (0.7,)),
    *((aims.Place(name, "same epochs", TAIL), (0.7, 0.5)) for name in aims.DATASETS),
    *(
        (aims.Place(name, "same epochs", noise), (0.7, 0.5))
        for name in ("traffic", *HELD_BACK)
        for noise in CLEAN_OR_NOISY
    ),
    *(
        (aims.Place(name, "joint", noise), (0.7, 0.5))
        for name in ("digits", "letter", CIFAR, "traffic", *HELD_BACK)
        for noise in CLEAN_OR_NOISY
    ),
]
# The keep ratios of the README's table, for each dataset.
FIRST = {"digits": (0.7, 0.3), "letter": (0.7,), CIFAR: (0.7,), "text": (0.7,)}


def rival_of(protocol: str) -> str:
    """The one to beat."""
    return "random each epoch" if protocol == "joint" else "random"


def overall(rows: Rows) -> str:
    """Each method against random over all conditions: clean or noisy, much or little kept."""
    cells = aims.Cells(rows)
    places = [
        (aims.Place(dataset, "same epochs", noise), ratio)
        for dataset, noise, ratio in product(aims.DATASETS, CLEAN_OR_NOISY, WIDE)
    ]
    lines = [
        "| | mean | worst | surely above | surely below | conditions |",
        "|---" * 6 + "|",
    ]
    for method in order_of({aims.DEFAULT, FORMER, *aims.RIVALS} - {"random"}):
        found = [cells.minus(place, method, "random", ratio) for place, ratio in places]
        gains = [gain for gain in found if gain is not None and gain.n >= SEEDS_TO_SHOW]
        if not gains:
            continue
        means = [gain.mean for gain in gains]
        sure = [sum(g.interval[0] > 0 for g in gains), sum(g.interval[1] < 0 for g in gains)]
        lines.append(
            f"| {method} | {mean(means):+.2f} | {min(means):+.2f} | {sure[0]} | {sure[1]} "
            f"| {len(gains)} |"
        )
    return "\n".join(lines)


def conditions(rows: Rows) -> str:
    """A line for each condition and keep ratio: the default, the rivals that matter, all data."""
    lines = [
        "| | keep ratio | adapruner | adapruner 0.1.0 | random | best rival | all data | n |",
        "|---" * 8 + "|",
    ]
    cells = aims.Cells(rows)
    for place, ratios in CONDITIONS:
        rivals = aims.JOINT_RIVALS if place.protocol == "joint" else aims.RIVALS
        random = rival_of(place.protocol)
        measure = "balanced_accuracy" if place.noise == TAIL else "accuracy"
        for ratio in ratios:
            found = {
                method: by_seed(cells.rows(place, method, ratio), measure)
                for method in (aims.DEFAULT, FORMER, "full", *rivals)
            }
            ours = found[aims.DEFAULT]
            common = ours.keys() & found[random].keys()
            if len(common) < 2:
                continue
            # Methods that were run with all these seeds.
            means = {
                method: estimate(values[seed] for seed in common)
                for method, values in found.items()
                if common <= values.keys()
            }
            others = [method for method in rivals if method in means and method != random]
            best = max(others, key=lambda name: means[name].mean, default="")
            shown = (aims.DEFAULT, FORMER, random, best, "full")
            texts = [cell_mean(means[m]) if m in means else "" for m in shown]
            texts[3] += f" ({best})" if best else ""
            lines.append(
                f"| {_condition(place)} | {ratio:g} | {' | '.join(texts)} | {len(common)} |"
            )
    return "\n".join([*lines, "", "Mean ± standard error over n seeds."])


def _condition(place: aims.Place) -> str:
    joint = ", joint" if place.protocol == "joint" else ""
    balanced = ", balanced accuracy" if place.noise == TAIL else ""
    return f"{place.dataset}, {place.noise}{balanced}{joint}"


def short_runs(rows: Rows) -> str:
    """What few epochs of selection are worth: the difference to random over the epochs."""
    cells = aims.Cells(rows)
    names = [name for name in (*SHORT_RUNS, aims.DEFAULT)]
    columns = [str(SHORT_RUNS.get(name, RECIPES["digits"].epochs)) for name in names]
    lines = [
        f"| epochs of the selection | {' | '.join(columns)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    place = aims.Place("digits", "same epochs", "clean")
    for ratio in (0.7, 0.3):
        found = [cells.minus(place, name, "random", ratio) for name in names]
        if any(found):
            lines.append(f"| kept {ratio:g} | {' | '.join(map(cell_difference, found))} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def tracks(rows: Rows) -> str:
    """Traffic signs with and without quotas of tracks, beside a random set."""
    cells, place = aims.Cells(rows), aims.Place("traffic", "same epochs", "clean")
    lines = ["| kept | accuracy, % | to a random set, points | n |", "|---" * 4 + "|"]
    names = (TRACKS, aims.DEFAULT, "random", "DUAL", "AUM", "adapruner as published", "full")
    for name in names:
        values = by_seed(cells.rows(place, name, 0.7)).values()
        gain = None if name == "random" else cells.minus(place, name, "random", 0.7)
        if values:
            cell = cell_mean(estimate(values))
            lines.append(f"| {name} | {cell} | {cell_difference(gain)} | {len(values)} |")
    return "\n".join(lines)


def floors(rows: Rows) -> str:
    """What floors of classes change: balanced accuracy to a run without classes, and others."""
    cells = aims.Cells(rows)
    rivals = (UNKNOWN, BALANCED, "random", "full")
    lines = [
        "| | keep ratio | balanced accuracy, % | to classes unknown, points | to shares by class | "
        "to a random set | to all data | n |",
        "|---" * 8 + "|",
    ]
    for dataset in aims.DATASETS:
        place = aims.Place(dataset, "same epochs", TAIL)
        for ratio in WIDE:
            ours = by_seed(cells.rows(place, aims.DEFAULT, ratio), "balanced_accuracy").values()
            if ours:
                found = [
                    cells.minus(place, aims.DEFAULT, rival, ratio, "balanced_accuracy")
                    for rival in rivals
                ]
                lines.append(
                    f"| {dataset} | {ratio:g} | {cell_mean(estimate(ours))} | "
                    f"{' | '.join(map(cell_difference, found))} | {len(ours)} |"
                )
    return "\n".join(lines) if len(lines) > 2 else ""


def short(rows: Rows, ratios: Mapping[str, Sequence[float]]) -> str:
    """adapruner beside random, the best rival and all data, at the ratios of each dataset."""
    lines = ["| | keep ratio | adapruner | random | best other | all data |", "|---" * 6 + "|"]
    cells, seeds = aims.Cells(rows), set()
    for dataset, noise in product(ratios, CLEAN_OR_NOISY):
        for ratio in ratios[dataset]:
            place = aims.Place(dataset, "same epochs", noise)
            found = {
                method: values
                for method in ("full", "adapruner", *aims.RIVALS)
                if len(values := by_seed(cells.rows(place, method, ratio))) >= SEEDS_TO_SHOW
            }
            common = set.intersection(*map(set, found.values())) if found else set()
            means = {
                method: estimate(values[seed] for seed in common)
                for method, values in found.items()
                if len(common) >= SEEDS_TO_SHOW
            }
            others = [name for name in means if name in aims.RIVALS and name != "random"]
            if not others or not {"full", "random", "adapruner"} <= means.keys():
                continue
            best = max(others, key=lambda name: means[name].mean)
            shown = [cell_mean(means[name]) for name in ("adapruner", "random", best, "full")]
            ours, random, rival, full = (text.replace(" ± ", "±") for text in shown)
            lines.append(
                f"| {dataset}, {noise} | {ratio:g} | {ours} | {random} "
                f"| {rival} ({best}) | {full} |"
            )
            seeds.add(len(common))
    if seeds:
        few = "" if len(seeds) == 1 else f"{min(seeds)} to "
        lines.append(f"\nMean ± standard error, {few}{max(seeds)} seeds.")
    return "\n".join(lines)
