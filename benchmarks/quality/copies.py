"""Whether copies give way: how often both, one or none of two equal samples are kept.

    python -m benchmarks.quality.copies

Prints the shares over ten seeds of digits with 500 copied images, at keep ratio 0.5, and writes
them to benchmarks/results/answers/copies.json. docs/method.md quotes them.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from ..provenance import provenance
from .data import load
from .plans import Adapruner
from .run import ANSWERS
from .statistics import estimate
from .table import OURS, RECIPES
from .trainer import train

COPIES, KEEP_RATIO, SEEDS = 500, 0.5, 10


def shares(method: str, seed: int) -> list[float]:
    """Shares of the pairs of which both, one and none are kept, in %."""
    data, recipe = load("digits", "clean", seed, "test"), RECIPES["digits"]
    count = len(data.y)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:COPIES]
    data = replace(
        data,
        x=torch.cat([data.x, data.x[chosen]]),
        y=torch.cat([data.y, data.y[chosen]]),
        bad=torch.zeros(count + COPIES, dtype=torch.bool),
    )
    plan = Adapruner(len(data.y), KEEP_RATIO, recipe.epochs, method, seed, data.y.device)
    train(data, recipe, plan, seed, epochs=recipe.epochs)
    kept = plan.pruner.result().kept
    first, second = kept[chosen], kept[count:]
    kinds = (first & second, first ^ second, ~(first | second))
    return [100 * kind.double().mean().item() for kind in kinds]


def main() -> None:
    torch.set_num_threads(1)
    r = KEEP_RATIO
    print(f"by chance: {100 * r * r:.1f}, {200 * r * (1 - r):.1f}, {100 * (1 - r) ** 2:.1f}")
    rows = {}
    for method in OURS.values():
        rows[method] = [shares(method, seed) for seed in range(SEEDS)]
        cells = [estimate(values) for values in zip(*rows[method], strict=True)]
        print(f"{method}: " + ", ".join(f"{c.mean:.1f} ± {c.standard_error:.1f}" for c in cells))
    about = {"provenance": provenance(), "both, one, none of a pair, %": rows}
    (ANSWERS / "copies.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
