"""How the kept set should be drawn, on splits of the training data.

    python -m benchmarks.quality.draws

One run learns the gates. Kept sets are drawn from them with several constants of the sampled
method, and new models train on each set for as many epochs as the run took. Writes
benchmarks/results/answers/draws.json and the table of decision 39.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from adapruner.pruning.selection import keep_count

from ..provenance import provenance
from ..tables import machine, rewrite
from .data import Data, load
from .plans import Adapruner
from .run import ANSWERS, ROOT
from .statistics import estimate
from .table import CIFAR, CLEAN_OR_NOISY, RECIPES
from .trainer import Plan, Recipe, accuracy, train

# The constants of decision 32, and what was tried beside them. Decision 43 came later.
ONE_END = {"most_unfit": 1.0, "hard_side_weight": 1.0}
DRAWS: dict[str, dict[str, float]] = {
    "one end": ONE_END,
    "less sharp": ONE_END | {"doubt": 16.0},
    "decision 39": {"unfit_farthest": 0.65},
}
# Dataset, epochs, keep ratios, labels, seeds.
CONDITIONS = (
    ("digits", 8, (0.7, 0.4), CLEAN_OR_NOISY, 6),
    ("digits", 16, (0.7, 0.4), CLEAN_OR_NOISY, 6),
    ("letter", 8, (0.7, 0.4), CLEAN_OR_NOISY, 3),
    ("letter", 40, (0.7, 0.4), CLEAN_OR_NOISY, 3),
    (CIFAR, 12, (0.7, 0.5), CLEAN_OR_NOISY, 3),
    ("traffic", 10, (0.7,), ("clean",), 4),
)
DOCUMENT = ROOT.parent / "docs" / "decisions" / "39-range-by-quantile.md"


def kept_sets(data: Data, recipe: Recipe, ratio: float, seed: int) -> Iterator[tuple[str, Tensor]]:
    """A random set, and what a run keeps by each draw: bool ``[N]``."""
    count = keep_count(ratio, len(data.y))
    kept = torch.zeros(len(data.y), dtype=torch.bool)
    kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:count]] = True
    yield "random", kept
    plan = Adapruner(len(data.y), ratio, recipe.epochs, "sampled", seed, data.y.device)
    train(data, recipe, plan, seed, epochs=recipe.epochs)
    run = plan.pruner
    for name, constants in DRAWS.items():
        method = replace(run.method, **constants)
        keys = method.keys(run.gates, run.history, seed, final=True)
        assert keys is not None  # the sampled method draws
        yield name, torch.zeros_like(kept).index_fill_(0, keys.topk(count).indices, 1)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, epochs, ratios, noises, seeds in CONDITIONS:
        recipe = replace(RECIPES[name], epochs=epochs)
        for noise in noises:
            for seed in range(seeds):
                data = load(name, noise, seed, "split")
                for ratio in ratios:
                    row = {"data": f"{name}, {noise}", "epochs": epochs, "ratio": ratio}
                    for draw, kept in kept_sets(data, recipe, ratio, seed):
                        samples = epochs * int(kept.sum())
                        trained = train(data, recipe, Plan(kept), seed, samples=samples)
                        row[draw] = accuracy(trained.model, data, recipe.bfloat16)[0]
                    rows.append(row | {"seed": seed})
                    print(rows[-1], flush=True)
    about = provenance()
    path = ANSWERS / "draws.json"
    path.write_text(json.dumps({"provenance": about, "rows": rows}, indent=1) + "\n")
    rewrite(DOCUMENT, {"draws": "\n".join([machine(about), "", *table(rows)])})


def table(rows: list[dict]) -> list[str]:
    """Points above a random set, for each condition."""
    names = list(DRAWS)
    lines = [
        f"| | epochs | keep ratio | {' | '.join(names)} | n |",
        "|---" * (len(names) + 4) + "|",
    ]
    conditions = dict.fromkeys((row["data"], row["epochs"], row["ratio"]) for row in rows)
    for data, epochs, ratio in conditions:
        same = [r for r in rows if (r["data"], r["epochs"], r["ratio"]) == (data, epochs, ratio)]
        gains = [estimate(row[name] - row["random"] for row in same) for name in names]
        cells = " | ".join(f"{gain.mean:+.2f} ± {gain.standard_error:.2f}" for gain in gains)
        lines.append(f"| {data} | {epochs} | {ratio} | {cells} | {len(same)} |")
    return lines


if __name__ == "__main__":
    main()
