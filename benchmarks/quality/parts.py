"""What each part of the default's draw is worth, on splits of the training data.

    python -m benchmarks.quality.parts --workers 2

One run learns the gates. Kept sets are drawn from them, with all parts of the sampled method and
without each of them, and new models train on each set for as many epochs as the run took. Makes
the rows that benchmarks/results/answers/parts.jsonl lacks. Draws the table of docs/method.md and
the longer one of docs/quality-tables.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapruner.pruning.selection import keep_count

from ..provenance import provenance
from ..tables import each, rewrite
from .data import Data, load
from .markdown import difference
from .plans import Adapruner
from .run import ANSWERS, ROOT, append, read_rows
from .statistics import Estimate, Row, by_seed, estimate, group, paired
from .table import CIFAR, CLEAN_OR_NOISY, LONG, RECIPES
from .trainer import Plan, Recipe, accuracy, train

FILE = ANSWERS / "parts.jsonl"
WHOLE = "all parts"
# What the draw is without a part: the constants that differ.
WITHOUT: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "chance: the best are kept": {"sharpness": 1e6},
    "less trust in few epochs": {"few_epochs": 1e-9},
    "the easy end": {"target_range": (-math.inf, 0.35)},
    "the hard end": {"hard_side_weight": 0.0},
    "more weight on the hard side": {"hard_side_weight": 1.0},
    "a later end where little is fitted": {"most_unfit": 1.0},
    "a nearer limit where little is fitted": {"unfit_farthest": 0.65},
    "easy samples in small sets": {"share": 1.0},
}
SMALL = "easy samples in small sets"  # of keep ratios where it changes anything


class Case(NamedTuple):
    """A run whose gates are drawn from."""

    dataset: str
    epochs: int
    noise: str
    ratio: float
    seed: int


def cases() -> list[Case]:
    """Seed by seed."""
    kinds = [
        ("digits", 3, (0.7,), 10),
        ("digits", 16, (0.7, 0.3, 0.1), 10),
        ("letter", 8, (0.7,), 5),
        ("letter", 40, (0.7, 0.3, 0.1), 5),
        (CIFAR, 12, (0.7, 0.3, 0.1), 3),
        (LONG, 60, (0.7,), 2),
    ]
    found = [
        Case(dataset, epochs, noise, ratio, seed)
        for dataset, epochs, ratios, seeds in kinds
        for ratio in ratios
        for noise in CLEAN_OR_NOISY
        for seed in range(seeds)
    ]
    return sorted(found, key=lambda case: case.seed)


def kept_sets(data: Data, recipe: Recipe, case: Case) -> Iterator[tuple[str, Tensor]]:
    """A random set, and what a run keeps by each draw: bool ``[N]``."""
    count = keep_count(case.ratio, len(data.y))
    kept = torch.zeros(len(data.y), dtype=torch.bool)
    generator = torch.Generator().manual_seed(case.seed)
    kept[torch.randperm(len(kept), generator=generator)[:count]] = True
    yield "random", kept
    plan = Adapruner(len(data.y), case.ratio, recipe.epochs, "sampled", case.seed, data.y.device)
    train(data, recipe, plan, case.seed, epochs=recipe.epochs)
    run = plan.pruner
    for name, constants in WITHOUT.items():
        method = replace(run.method, **constants)
        keys = method.keys(run.gates, run.history, case.seed, final=True)
        assert keys is not None  # the sampled method draws
        yield name, torch.zeros_like(kept).index_fill_(0, keys.topk(count).indices, 1)


def make(case: Case) -> list[dict[str, Any]]:
    """A row for each draw. Equal kept sets are trained on once."""
    torch.set_num_threads(1)
    recipe = replace(RECIPES[case.dataset], epochs=case.epochs)
    data = load(case.dataset, case.noise, case.seed, "split")
    trained: list[tuple[Tensor, float]] = []
    rows = []
    for draw, kept in kept_sets(data, recipe, case):
        found = next((value for other, value in trained if torch.equal(other, kept)), None)
        if found is None:
            samples = case.epochs * int(kept.sum())
            model = train(data, recipe, Plan(kept), case.seed, samples=samples).model
            found = accuracy(model, data, recipe.bfloat16)[0]
            trained.append((kept, found))
        rows.append(case._asdict() | {"without": draw, "accuracy": found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    workers = parser.parse_args().workers
    about = {"provenance": provenance() | {"threads": 1}}
    done = {Case(*(row[name] for name in Case._fields)) for row in read_rows(FILE)}
    left = [case for case in cases() if case not in done]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for rows in pool.map(make, left):
            append(FILE, *(row | about for row in rows))
            print(rows[0], flush=True)
    draw()


def draw() -> None:
    rows = read_rows(FILE)
    docs = ROOT.parent / "docs"
    rewrite(docs / "method.md", {"parts": "\n".join(summary(rows))})
    rewrite(docs / "quality-tables.md", {"parts": "\n".join(table(rows))})


def losses(rows: list[Row]) -> dict[tuple[Any, ...], dict[str, Estimate]]:
    """Points that a draw without a part is above that with all, of each condition."""
    found = {}
    for condition, of in group(rows, "dataset", "epochs", "noise", "ratio").items():
        draws = {name: by_seed(made) for name, made in group(of, "without").items()}
        gains = {name: paired(draws[name], draws[WHOLE]) for name in ("random", *WITHOUT)}
        found[condition] = {name: gain for name, gain in gains.items() if gain is not None}
    return found


def summary(rows: list[Row]) -> list[str]:
    """A line for each part: the mean over the conditions, and where it matters most."""
    lines = [
        "| without | mean | surely worse | surely better | worst | best |",
        "|---" * 6 + "|",
    ]
    found = losses(rows)
    for name in ("random", *WITHOUT):
        if name == WHOLE:
            continue
        gains = {
            condition: of[name]
            for condition, of in found.items()
            if name != SMALL or condition[3] < 0.3
        }
        worst, best = (pick(gains, key=lambda c: gains[c].mean) for pick in (min, max))
        intervals = [gain.interval for gain in gains.values()]
        lines.append(
            f"| {'all parts: a random set' if name == 'random' else name} "
            f"| {estimate(gain.mean for gain in gains.values()).mean:+.2f} "
            f"| {sum(high < 0 for _, high in intervals)} of {len(gains)} "
            f"| {sum(low > 0 for low, _ in intervals)} "
            f"| {gains[worst].mean:+.1f} ({_condition(*worst)}) "
            f"| {gains[best].mean:+.1f} ({_condition(*best)}) |"
        )
    return [*lines, "", _where(rows)]


def table(rows: list[Row]) -> list[str]:
    names = [name for name in ("random", *WITHOUT) if name != WHOLE]
    lines = [f"| | n | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for condition, gains in losses(rows).items():
        cells = " | ".join(difference(gains[name]) for name in names)
        lines.append(f"| {_condition(*condition)} | {gains['random'].n} | {cells} |")
    return [*lines, "", _where(rows)]


def _condition(dataset: str, epochs: int, noise: str, ratio: float) -> str:
    return f"{dataset}, {epochs} epochs, {noise}, {ratio:g}"


def _where(rows: list[Row]) -> str:
    abouts = [row["provenance"] for row in rows]
    return (
        f"{each(about['processor'] for about in abouts)}, torch "
        f"{each(about['torch'] for about in abouts)}, {max(about['date'] for about in abouts)}, "
        f"commits {each(about['commit'] for about in abouts)}."
    )


if __name__ == "__main__":
    main()
