"""How far ``PruneResult.at`` agrees with a run at the other keep ratio.

    python -m benchmarks.quality.other_ratio

Makes the rows that benchmarks/results/answers/other_ratio.jsonl lacks, and redraws the table of
docs/answers.md. The overlap is the share of the kept set of ``at`` that a run at that ratio keeps
too. Two runs at that ratio with different seeds of the draw and of the model show what to expect.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from adapruner import PruneResult

from ..provenance import provenance
from ..tables import machine, rewrite
from .data import load
from .plans import Adapruner
from .run import ANSWERS, append, read_rows
from .statistics import by_seed, estimate, group
from .table import RECIPES
from .trainer import train

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    ("digits", "clean", 5),
    ("digits", "symmetric 0.2", 5),
    ("cifar10-10000", "clean", 3),
    ("cifar10-10000", "symmetric 0.2", 3),
)
FROM, TO = 0.7, (0.5, 0.3)
METHODS = ("sampled", "published")


def rows(name: str, noise: str, seed: int, method: str) -> Iterator[dict[str, Any]]:
    """A row for each ratio of ``TO``."""
    data, recipe = load(name, noise, seed, "test"), RECIPES[name]

    def run(ratio: float, model_seed: int) -> PruneResult:
        count = len(data.y)
        plan = Adapruner(count, ratio, recipe.epochs, method, model_seed, data.y.device)
        train(data, recipe, plan, model_seed, epochs=recipe.epochs)
        return plan.pruner.result()

    first = run(FROM, seed)
    for ratio in TO:
        own, other, derived = run(ratio, seed), run(ratio, seed + 100), first.at(ratio)
        yield {
            "dataset": name,
            "noise": noise,
            "method": method,
            "seed": seed,
            "ratio": ratio,
            "overlap": _overlap(derived, own),
            "two_seeds": _overlap(other, own),
        }


def _overlap(one: PruneResult, other: PruneResult) -> float:
    return 100 * (one.kept & other.kept).sum().item() / len(one.indices)


def table(found: list[dict[str, Any]]) -> str:
    """The table of docs/answers.md."""
    lines = [
        "| data | method | ratio | n | `at`, from a run at 0.7 | another seed | by chance |",
        "|---" * 7 + "|",
    ]
    for (name, noise, method, ratio), cell in group(
        found, "dataset", "noise", "method", "ratio"
    ).items():
        cells = [f"{name}, {noise}", method, f"{ratio:g}", str(len(by_seed(cell, "overlap")))]
        for measure in ("overlap", "two_seeds"):
            value = estimate(by_seed(cell, measure).values())
            low, high = value.interval
            cells.append(f"{value.mean:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {' | '.join(cells)} | {100 * ratio:.0f} |")
    return "\n".join(lines)


def main() -> None:
    file = ANSWERS / "other_ratio.jsonl"
    done = {(r["dataset"], r["noise"], r["seed"], r["method"]) for r in read_rows(file)}
    about = provenance()
    for seed in range(max(most for _, _, most in CASES)):
        for (name, noise, most), method in product(CASES, METHODS):
            if seed < most and (name, noise, seed, method) not in done:
                made = rows(name, noise, seed, method)
                append(file, *(row | {"about": about} for row in made))
                print(f"{name}, {noise}, {method}, seed {seed}", flush=True)
    found = read_rows(file)
    made = machine(*(row["about"] for row in found))
    note = f"Mean and 95 % interval over n seeds, %. {made}."
    document = ROOT / "docs" / "answers.md"
    rewrite(document, {"other-ratio": f"{table(found)}\n\n{note}"})


if __name__ == "__main__":
    main()
