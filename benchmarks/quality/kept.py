"""What is kept: its place among the features, its difficulty, its classes, how stable the
selection is, and the images most and least wanted.

    python -m benchmarks.quality.kept --dataset digits cifar10-10000

Writes the numbers drawn as benchmarks/results/quality/kept-DATASET.json, and
docs/images/kept-DATASET-*.png. One part of the data and one set of wrong labels, those of seed 0,
serve all runs: a seed changes the training alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapruner.pruning import bitmask
from adapruner.pruning.methods import DEFAULT_METHOD
from adapruner.pruning.selection import keep_count

from ..provenance import provenance
from ..tables import each
from . import kept_figures, plans
from .data import Data, load
from .run import RESULTS, ROOT
from .scores import Records, record
from .static import STATIC
from .table import NOISE, RECIPES
from .trainer import Recipe, train

IMAGES = ROOT.parent / "docs" / "images"
RIVALS = ("DUAL", "AUM", "EL2N")
NAMES = {
    "digits": tuple("0123456789"),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
BINS = 40


class Watched(plans.Adapruner):
    """A run of the package's default that notes the selection of every epoch."""

    def __init__(self, data: Data, ratio: float, epochs: int, seed: int) -> None:
        count = len(data.y)
        super().__init__(count, ratio, epochs, DEFAULT_METHOD, seed, data.y.device)
        self.selections: list[Tensor] = []  # bool [N]

    def end(self, epoch: int) -> None:
        super().end(epoch)
        selected = bitmask.unpack(self.pruner.selection.kept, self.pruner.num_samples)
        self.selections.append(torch.from_numpy(selected))


def select(data: Data, recipe: Recipe, ratio: float, seed: int) -> Watched:
    """A whole run."""
    plan = Watched(data, ratio, recipe.epochs, seed)
    train(data, recipe, plan, seed, epochs=recipe.epochs)
    return plan


@dataclass(frozen=True)
class Look:
    """A selection beside what a recorded run of the same data says of the samples."""

    data: Data
    labels: Tensor  # int64 [N], the right ones
    kept: Tensor  # bool [N]
    gate_logits: Tensor  # float32 [N]
    losses: Tensor  # float64 [N], the mean over the epochs of the recorded run
    features: Tensor  # float32 [N, D], of the recorded network

    @classmethod
    def at(cls, data: Data, labels: Tensor, run: Watched, records: Records) -> Look:
        result, losses = run.pruner.result(), records.losses().mean(0)
        return cls(data, labels, result.kept, result.gate_logits, losses, records.features)


def overlap(one: Tensor, other: Tensor) -> float:
    """Share of the smaller of two sets, bool ``[N]`` each, that the other holds as well.

    By chance that is the larger one's share of N.
    """
    return int((one & other).sum()) / min(int(one.sum()), int(other.sum()))


def between_seeds(selections: Sequence[Tensor]) -> list[float]:
    """The overlap of every pair."""
    return [overlap(one, other) for one, other in combinations(selections, 2)]


def from_epoch_to_epoch(selections: Sequence[Tensor]) -> dict[str, list[float]]:
    """Of every epoch: the share of all that it kept, and its overlaps."""
    return {
        "share kept": [selected.double().mean().item() for selected in selections],
        "with the last": [overlap(selected, selections[-1]) for selected in selections],
        "with the one before": [overlap(*pair) for pair in pairwise(selections)],
    }


def loss_edges(looks: Sequence[Look]) -> list[float]:
    """Of bins that are equally wide in logarithms; a thousandth of the losses is below them."""
    losses = torch.cat([look.losses for look in looks])
    low, high = losses.quantile(0.001).item(), losses.max().item()
    return np.geomspace(low, high, BINS + 1).tolist()


def difficulty(look: Look, edges: Sequence[float]) -> dict[str, Any]:
    """Histograms of the losses of kept and pruned, right and wrong labels apart, and medians."""
    kept, bad = look.kept, look.data.bad
    parts = {"kept": kept, "pruned": ~kept, "kept, wrong": kept & bad, "pruned, wrong": ~kept & bad}
    clipped = look.losses.clamp(edges[0], edges[-1]).numpy()
    return {
        "counts": {
            name: np.histogram(clipped[part.numpy()], edges)[0].tolist()
            for name, part in parts.items()
        },
        "median": {name: look.losses[parts[name]].median().item() for name in ("kept", "pruned")},
        "wrong": bad.double().mean().item(),
        "wrong among kept": bad[kept].double().mean().item(),
    }


def extremes(look: Look) -> tuple[Tensor, Tensor]:
    """Indices of the most and of the least wanted, the most extreme ones first.

    Of equal gate logits the larger loss is the less wanted.
    """
    order = torch.from_numpy(np.lexsort((look.losses.numpy(), -look.gate_logits.numpy())))
    return order[: kept_figures.SHOWN], order.flip(0)[: kept_figures.SHOWN]


def measure(
    dataset: str, ratio: float, seeds: int, recipe: Recipe
) -> tuple[dict[str, Any], dict[str, Look]]:
    """The numbers of one dataset, and the looks at the selections of seed 0, clean and noisy."""
    start = time.process_time()
    looks: dict[str, Look] = {}
    kept: dict[str, list[Tensor]] = {name: [] for name in ("adapruner", *RIVALS)}
    epochs: list[Tensor] = []
    right = load(dataset, "clean", 0, "test")
    for noise in ("clean", NOISE):
        data = load(dataset, noise, 0, "test")
        shared = repr((dataset, noise, 0, "test"))
        for seed in range(seeds if noise == "clean" else 1):
            run = select(data, recipe, ratio, seed)
            records = record(data, recipe, seed, shared)
            if seed == 0:
                looks[noise] = Look.at(data, right.y, run, records)
            if noise == "clean":
                kept["adapruner"].append(run.pruner.result().kept)
                for rival in RIVALS:
                    kept[rival].append(_rivals(records, rival, ratio, seed))
                epochs = epochs or run.selections
    edges = loss_edges(list(looks.values()))
    of_class = [right.y[k].bincount(minlength=right.classes) for k in kept["adapruner"]]
    numbers = {
        "dataset": dataset,
        "ratio": ratio,
        "seeds": seeds,
        "method": DEFAULT_METHOD,
        "samples": len(right.y),
        "recipe": asdict(recipe),
        "classes": list(NAMES[dataset.split("-")[0]]),
        "samples of class": right.y.bincount(minlength=right.classes).tolist(),
        "kept of class": [counts.tolist() for counts in of_class],
        "loss edges": edges,
        "difficulty": {noise: difficulty(look, edges) for noise, look in looks.items()},
        "between seeds": {name: between_seeds(found) for name, found in kept.items()},
        "epochs": from_epoch_to_epoch(epochs),
    }
    return numbers | {"cpu_seconds": time.process_time() - start}, looks


def _rivals(records: Records, rival: str, ratio: float, seed: int) -> Tensor:
    kept = torch.zeros(len(records.labels), dtype=torch.bool)
    kept[STATIC[rival](records, keep_count(ratio, len(kept)), seed)] = True
    return kept


def draw(numbers: dict[str, Any], looks: dict[str, Look], folder: Path, points: int) -> None:
    """All pictures of a dataset."""
    clean, noisy = looks["clean"], looks[NOISE]
    names, start = numbers["classes"], folder / f"kept-{numbers['dataset']}"
    kept_figures.draw_map(clean, names, points, Path(f"{start}-map.png"))
    kept_figures.draw_losses(numbers, Path(f"{start}-losses.png"))
    kept_figures.draw_shares(numbers, Path(f"{start}-stability.png"))
    most, least = extremes(clean)
    _, least_noisy = extremes(noisy)
    blocks = {
        "most wanted": (clean, most),
        "least wanted": (clean, least),
        "least wanted where 20 % of the labels are wrong (in colour: a wrong one)": (
            noisy,
            least_noisy,
        ),
    }
    kept_figures.draw_images(blocks, names, Path(f"{start}-images.png"))


def kept_table(results: Path = RESULTS) -> str:
    """The numbers of docs/quality.md, a column for each dataset."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("kept-*.json"))]
    if not found:
        return "**Not yet measured.**"
    lines = ["| | " + " | ".join(made["dataset"] for made in found) + " |"]
    lines.append("|---" * (len(found) + 1) + "|")

    def line(title: str, cells: list[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    for name in found[0]["between seeds"]:
        cells = [_percent_of(made["between seeds"][name]) for made in found]
        line(f"common to two seeds: {name}", cells)
    line("… by chance", [f"{100 * made['ratio']:.1f}" for made in found])
    for title, name in (
        ("common to what was read last and what is kept", "with the one before"),
        ("… by chance", "share kept"),
    ):
        at = -2 if name == "share kept" else -1  # the larger of the two is the earlier one
        line(title, [f"{100 * made['epochs'][name][at]:.1f}" for made in found])
    line("kept of each class", [_classes(made) for made in found])
    for noise in found[0]["difficulty"]:
        medians = [made["difficulty"][noise]["median"] for made in found]
        cells = [f"{median['kept']:.3f}, {median['pruned']:.3f}" for median in medians]
        line(f"median loss of kept and of pruned, {noise}", cells)
    noisy = [made["difficulty"][NOISE] for made in found]
    line(f"wrong labels among all, {NOISE}", [f"{100 * made['wrong']:.1f}" for made in noisy])
    line("… among the kept", [f"{100 * made['wrong among kept']:.1f}" for made in noisy])
    abouts = [made["provenance"] for made in found]
    where = ", ".join(f"{m['dataset']} {m['samples']:,} samples, n = {m['seeds']}" for m in found)
    lines.append(
        f"\nIn %, but for losses; keep ratio {found[0]['ratio']:g}; mean [least, most] over "
        f"pairs of seeds; classes: means over the seeds; {where}; method “{found[0]['method']}”. "
        f"{each(about['processor'] for about in abouts)}, "
        f"torch {each(about['torch'] for about in abouts)}, "
        f"{max(about['date'] for about in abouts)}, "
        f"commits {each(about['commit'] for about in abouts)}."
    )
    return "\n".join(lines)


def _percent_of(shares: list[float]) -> str:
    if not shares:
        return ""
    return f"{100 * mean(shares):.1f} [{100 * min(shares):.1f}, {100 * max(shares):.1f}]"


def _classes(made: dict[str, Any]) -> str:
    """The classes of which least and most is kept, means over the seeds."""
    counts = zip(*made["kept of class"], strict=True)
    means = [mean(c) / every for c, every in zip(counts, made["samples of class"], strict=True)]
    order = sorted(range(len(means)), key=lambda c: means[c])
    ends = (f"{100 * means[c]:.1f} ({made['classes'][c]})" for c in (order[0], order[-1]))
    return " to ".join(ends)


def make(
    dataset: str, ratio: float, seeds: int, recipe: Recipe, results: Path, images: Path, points: int
) -> None:
    """Measure, write and draw one dataset."""
    numbers, looks = measure(dataset, ratio, seeds, recipe)
    for folder in (results, images):
        folder.mkdir(parents=True, exist_ok=True)
    about = {"provenance": provenance() | {"threads": torch.get_num_threads()}}
    path = results / f"kept-{dataset}.json"
    path.write_text(json.dumps(numbers | about) + "\n")
    draw(numbers, looks, images, points)


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    known = ["digits", "cifar10-10000"]
    parser.add_argument("--dataset", nargs="+", choices=known, default=known)
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for dataset in args.dataset:
        start, recipe = time.process_time(), RECIPES[dataset]
        make(dataset, args.ratio, args.seeds, recipe, args.results, args.images, points=2000)
        print(f"{dataset}: {time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
