"""Whether the scale and the form of a loss matter: the wrong labels among the kept samples.

    python -m benchmarks.quality.scales

Prints the shares of digits (ten seeds) and letters (five) with 20 % wrong labels, at keep ratio
0.7, and writes them to benchmarks/results/answers/scales.json. docs/tasks.md quotes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from adapruner import fast_prune
from adapruner.training import losses

from ..provenance import provenance
from .data import load
from .networks import NETWORKS
from .run import ANSWERS
from .statistics import estimate
from .table import NOISE, RECIPES

KEEP_RATIO = 0.7
# Datasets, methods and seeds of the columns.
COLUMNS = (("digits", "sampled", 10), ("letter", "sampled", 5), ("digits", "published", 10))


def _cross_entropy(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, y: factor * functional.cross_entropy(outputs, y, reduction="none")


def _one_hot(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.one_hot(y, outputs.shape[1]).float()


def _focal(outputs: Tensor, y: Tensor) -> Tensor:
    """Focal loss with γ = 2 (Lin et al., arXiv 1708.02002)."""
    plain = functional.cross_entropy(outputs, y, reduction="none")
    return (1 - (-plain).exp()) ** 2 * plain


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": _cross_entropy(1.0),
    "0.1 × cross entropy": _cross_entropy(0.1),
    "10 × cross entropy": _cross_entropy(10.0),
    "binary cross entropy of each class, mean": lambda o, y: losses.multi_label(o, _one_hot(o, y)),
    "binary cross entropy of each class, sum": lambda o, y: (
        o.shape[1] * losses.multi_label(o, _one_hot(o, y))
    ),
    # The same as a last layer whose bias starts at the log odds of a class.
    "binary cross entropy, mean, from base rates": lambda o, y: losses.multi_label(
        o - math.log(o.shape[1] - 1), _one_hot(o, y)
    ),
    "squared error to one-hot": lambda o, y: losses.squared_error(o, _one_hot(o, y)),
    "focal loss": _focal,
    "focal loss, judged by cross entropy": losses.focal,
}


def wrong_share(dataset: str, loss: str, method: str, seed: int) -> float:
    """Share of wrong labels among the kept samples, in %."""
    data, recipe = load(dataset, NOISE, seed, "test"), RECIPES[dataset]
    torch.manual_seed(seed)
    result = fast_prune(
        NETWORKS[recipe.model](),
        (data.x.permute(0, 3, 1, 2).contiguous(), data.y),
        KEEP_RATIO,
        recipe.epochs,
        batch_size=recipe.batch_size,
        seed=seed,
        loss=LOSSES[loss],
        method=method,
        progress=False,
    )
    return 100 * data.bad[result.indices].double().mean().item()


def main() -> None:
    torch.set_num_threads(1)
    names = [f"{dataset}, {method}" for dataset, method, _ in COLUMNS]
    print(f"| loss | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    rows: dict[str, dict[str, list[float]]] = {}
    for loss in LOSSES:
        rows[loss] = {
            name: [wrong_share(dataset, loss, method, seed) for seed in range(seeds)]
            for name, (dataset, method, seeds) in zip(names, COLUMNS, strict=True)
        }
        cells = [estimate(values) for values in rows[loss].values()]
        shown = " | ".join(f"{cell.mean:.1f} ± {cell.standard_error:.1f}" for cell in cells)
        print(f"| {loss} | {shown} |", flush=True)
    about = {"provenance": provenance(), "rows": rows}
    (ANSWERS / "scales.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
