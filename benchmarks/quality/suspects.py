"""Wrong labels found by ``PruneResult.suspects``, beside cleanlab with the same network.

    python -m benchmarks.quality.suspects --seeds 5

Makes the rows that benchmarks/results/answers/suspects.jsonl lacks, and redraws the table of
docs/answers.md; with `--seeds 0` only the latter. cleanlab needs predictions of models that did not
train on a sample, so it trains five networks, each on four fifths. Our figures come from the one
run that prunes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapruner.results.suspects import doubt

from ..provenance import provenance
from ..tables import machine, rewrite
from . import cifar
from .data import CIFAR_SPLIT, Data, load
from .plans import Adapruner
from .run import ANSWERS, append, read_rows
from .statistics import by_seed, estimate, group, paired
from .table import RECIPES
from .trainer import Plan, logits_of, train

ROOT = Path(__file__).resolve().parents[2]
KEEP_RATIO, FOLDS = 0.7, 5
OURS, CLEANLAB = "adapruner", "cleanlab"
# Dataset, labels, and the most seeds.
CASES = (
    ("digits", "symmetric 0.1", 10),
    ("digits", "symmetric 0.2", 10),
    ("digits", "symmetric 0.4", 10),
    ("cifar10-10000", "symmetric 0.2", 5),
    ("cifar10-10000", "human aggre_label", 5),
    ("cifar10-10000", "human random_label1", 5),
    ("cifar10-10000", "human worse_label", 5),
)
TITLES = {
    "human aggre_label": "human, aggregated",
    "human random_label1": "human, one person",
    "human worse_label": "human, worst",
}


def data_of(name: str, labels: str, seed: int) -> Data:
    """The data of the suite, or CIFAR-10 with the labels of CIFAR-10N."""
    if not labels.startswith("human"):
        return load(name, labels, seed, "test")
    clean = load(name, "clean", seed, "test")
    count = len(cifar.images("train").y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 + seed))
    with np.load(cifar.source() / "cifar10n" / "labels.npz", allow_pickle=False) as given:
        if not np.array_equal(given["clean_label"], cifar.images("train").y.numpy()):
            raise ValueError("labels.npz must be in the order of the images; found another order")
        told = torch.from_numpy(given[labels.split(" ")[1]].astype(np.int64))
    y = told[order[:-CIFAR_SPLIT][: len(clean.y)]]
    return replace(clean, y=y, bad=y != clean.y)


def rows(name: str, labels: str, seed: int) -> Iterator[dict[str, Any]]:
    """The row of each way for one seed."""
    data, recipe = data_of(name, labels, seed), RECIPES[name]
    count, wrong = len(data.y), data.bad.numpy()
    about = {"dataset": name, "labels": labels, "seed": seed, "samples": count}
    about |= {"epochs": recipe.epochs, "wrong": float(wrong.mean())}

    start = time.process_time()
    plan = Adapruner(count, KEEP_RATIO, recipe.epochs, "sampled", seed, data.y.device)
    train(data, recipe, plan, seed, epochs=recipe.epochs)
    result = replace(plan.pruner.result(), targets=data.y)
    found = result.suspects().indices.numpy()
    ranks = np.nan_to_num(doubt(result), nan=-1)
    yield about | measures(OURS, found, ranks, wrong) | {"seconds": time.process_time() - start}

    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.model_selection import StratifiedKFold

    start = time.process_time()
    shares = np.zeros((count, data.classes))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for part, rest in folds.split(np.zeros(count), data.y.numpy()):
        reads = torch.zeros(count, dtype=torch.bool)
        reads[part] = True
        model = train(data, recipe, Plan(reads), seed, epochs=recipe.epochs).model
        logits = logits_of(model, data.x[rest], recipe.bfloat16)
        shares[rest] = logits.double().softmax(1).numpy()
    found = np.flatnonzero(find_label_issues(data.y.numpy(), shares, n_jobs=1))
    ranks = -get_label_quality_scores(data.y.numpy(), shares)
    yield about | measures(CLEANLAB, found, ranks, wrong) | {"seconds": time.process_time() - start}


def measures(way: str, found: np.ndarray, ranks: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """Precision and recall of the samples found, and of all samples in the order of ranks; in %."""
    from sklearn.metrics import average_precision_score

    count = int(wrong.sum())
    first = np.argsort(-ranks, kind="stable")[:count]
    return {
        "way": way,
        "found": len(found),
        "precision": 100 * wrong[found].mean(),
        "recall": 100 * wrong[found].sum() / count,
        "precision_at_count": 100 * wrong[first].mean(),
        "average_precision": 100 * average_precision_score(wrong, ranks),
    }


MEASURES = ("precision", "recall", "precision_at_count", "average_precision")


def table(found: list[dict[str, Any]]) -> str:
    """The table of docs/answers.md."""
    lines = [
        "| data | wrong | n | way | found | precision | recall | precision at the number of wrong "
        "labels | average precision |",
        "|---" * 9 + "|",
    ]
    for (name, labels), cell in group(found, "dataset", "labels").items():
        ways = group(cell, "way")
        title = f"{name}, {TITLES.get(labels, labels)}"
        wrong = estimate(row["wrong"] for row in cell).mean
        for way, some in ways.items():
            number = estimate(row["found"] for row in some).mean
            cells = [f"{title} | {100 * wrong:.0f} % | {len(by_seed(some, 'found'))}", way]
            cells.append(f"{number:,.0f}")
            cells += [_interval(by_seed(some, measure)) for measure in MEASURES]
            lines.append(f"| {' | '.join(cells)} |")
        both = [paired(*(by_seed(ways[way], m) for way in (OURS, CLEANLAB))) for m in MEASURES]
        shown = [f"{e.mean:+.1f} [{e.interval[0]:+.1f}, {e.interval[1]:+.1f}]" for e in both if e]
        lines.append(f"| | | | difference | | {' | '.join(shown)} |")
    return "\n".join(lines)


def _interval(values: dict[int, float]) -> str:
    found = estimate(values.values())
    low, high = found.interval
    return f"{found.mean:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="most seeds of a case")
    arguments = parser.parse_args()
    file = ANSWERS / "suspects.jsonl"
    done = {(row["dataset"], row["labels"], row["seed"]) for row in read_rows(file)}
    about = provenance()
    for seed in range(arguments.seeds):
        for name, labels, most in CASES:
            if seed < most and (name, labels, seed) not in done:
                append(file, *(row | {"about": about} for row in rows(name, labels, seed)))
                print(f"{name}, {labels}, seed {seed}", flush=True)
    found = read_rows(file)
    made = machine(*(row["about"] for row in found))
    note = f"Mean and 95 % interval over n seeds, %. {made}."
    rewrite(ROOT / "docs" / "answers.md", {"suspects": f"{table(found)}\n\n{note}"})


if __name__ == "__main__":
    main()
