"""Kept sets against random ones of the same size, for the tasks of examples/.

    python -m benchmarks.quality.tasks.run --tasks detection --seeds 5

Makes the rows that benchmarks/results/quality/tasks.jsonl lacks, seed by seed, and redraws the
tables of docs/tasks.md; with `--seeds 0` only the latter. Stopped, it goes on where it was. A task
whose data or packages are missing is skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...provenance import provenance
from ...tables import each, rewrite
from .. import cifar
from ..report import cell_difference, cell_mean, group, rows_of_tasks
from ..run import RESULTS, append, read_rows
from ..statistics import Row, by_seed, estimate, paired
from ..table import OURS, constants_of

ROOT = Path(__file__).resolve().parents[3]


class Case(NamedTuple):
    """What the runs of a task differ in, besides the seed."""

    keep_ratio: float
    epochs: int
    warmup_epochs: int | None = None  # None: the default
    wrong_labels: float = 0.0  # share of the training labels; for fine-tuning alone


class Task(NamedTuple):
    """How an example is run."""

    cases: tuple[Case, ...]
    most: int | None = None  # training samples at most; None: a task without a folder
    folder: str | None = None  # of the data
    package: str | None = None


TASKS = {
    "detection": Task((Case(0.8, 15),), 292, "bccd", "pycocotools"),
    "language_model": Task((Case(0.7, 6),), 4000, "tinyshakespeare"),
    "regression": Task((Case(0.7, 20),)),
    "segmentation": Task((Case(0.7, 16), Case(0.5, 16)), 367, "camvid"),
    "text": Task((Case(0.7, 10),), 10_000, "sst2"),
    # Two epochs with the default warm-up of one read everything, so one case has none.
    "fine_tuning": Task(
        (Case(0.7, 3), Case(0.7, 5), Case(0.7, 2), Case(0.7, 2, 0), Case(0.7, 3, None, 0.2)),
        most=2000,
        folder="cifar10",
        package="efficientnet_lite_pytorch",
    ),
}
SCALES = {
    "mAP": ("%", 100),
    "mIoU": ("%", 100),
    "accuracy": ("%", 100),
    "R²": ("%", 100),
    "perplexity": ("", -1),
}  # less is better
RIVALS = ("random", "full")
WAYS = {  # the examples' names: method and protocol
    "adapruner": ("adapruner", "joint"),
    "kept set, anew": ("adapruner", "same epochs"),
    "random part": ("random", "same epochs"),
    "all data": ("full", "same epochs"),
}


def lacking(task: str, data: Path) -> str | None:
    """What a task needs and does not find, or None."""
    _, _, folder, package = TASKS[task]
    if package is not None and importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    if folder is not None and not (data / folder).is_dir():
        return f"{data / folder} is not a folder ($ADAPRUNER_DATA or --data names where it lies)"
    return None


def folder_of(task: str, data: Path) -> Path:
    """The folder that the example takes. Packed images are written out once."""
    if task != "fine_tuning":
        return data
    folder = ROOT / "build" / "quality" / "cifar10"
    if not folder.is_dir():
        cifar.write_folder(folder, data, (TASKS[task].most or 0) // 10)
    return folder


def rows(
    task: str, data: Path, case: Case, seed: int, method: str, ways: int, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The first ways to train for one seed, in the order of the example."""
    most = TASKS[task].most
    example = importlib.import_module(f"examples.{task}")
    more: dict[str, Any] = {} if most is None else {"folder": folder_of(task, data), "most": most}
    if case.warmup_epochs is not None:
        more["warmup_epochs"] = case.warmup_epochs
    if case.wrong_labels:
        more["wrong_labels"] = case.wrong_labels
    compared = example.compare(
        keep_ratio=case.keep_ratio, epochs=case.epochs, seed=seed, method=OURS[method], **more
    )
    last = time.perf_counter()
    for way, samples, value in islice(compared, ways):
        now = time.perf_counter()
        shown, protocol = WAYS[way]
        ours = shown == "adapruner"
        row_method = method if ours else shown
        yield {
            "task": task,
            "method": row_method,
            "constants": constants_of(row_method),
            "protocol": protocol,
            "keep_ratio": 1.0 if shown == "full" else case.keep_ratio,
            "seed": seed,
            "metric": example.METRIC,
            "value": value,
            "samples": samples,
            "epochs": case.epochs,
            "warmup_epochs": case.warmup_epochs if ours else None,
            "wrong_labels": case.wrong_labels,
            "recipe": recipe(task),
            "versions": {key: about[key] for key in ("adapruner", "torch", "python")},
            "machine": {key: about[key] for key in ("processor", "cores", "threads")},
            "commit": about["commit"],
            "date": about["date"],
            "seconds": round(now - last, 2),
        }
        last = now


def key(row: Row) -> tuple[Any, ...]:
    """Rows with the same key are of the same run."""
    more = row.get("warmup_epochs"), row.get("wrong_labels", 0.0)
    case = Case(row["keep_ratio"], row["epochs"], *more)
    return row["task"], row["method"], row.get("constants"), case, row["seed"]


def ways_left(task: str, case: Case, seed: int, method: str, done: set[tuple[Any, ...]]) -> int:
    """How many of the ways to train are to be made: ours, then random, then all data."""
    if (task, method, constants_of(method), case, seed) in done:
        return 0
    rival = case._replace(warmup_epochs=None)
    if (task, "full", None, rival._replace(keep_ratio=1.0), seed) not in done:
        return 4
    return 2 if (task, "random", None, rival, seed) in done else 3


def recipe(task: str) -> str:
    """The example, and the first digits of its SHA-256."""
    path = ROOT / "examples" / f"{task}.py"
    return f"examples/{task}.py {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def table(made: list[Row]) -> str:
    """Mean ± standard error; paired differences to random and full, better above 0."""
    parts = []
    made = [{"wrong_labels": 0.0} | row for row in made]
    tables = group(made, "task", "metric", "epochs", "wrong_labels")
    for (task, metric, epochs, wrong), found in tables.items():
        for ratio in sorted({r["keep_ratio"] for r in found if r["method"] != "full"})[::-1]:
            of_ratio = [r for r in found if r["method"] == "full" or r["keep_ratio"] == ratio]
            unit, scale = SCALES[metric]
            parts += [
                f"**{task.replace('_', ' ')}**: {metric}{', ' * bool(unit)}{unit}, keep ratio "
                f"{ratio:g}, {epochs} epochs, {max(row['samples'] for row in found):,} samples"
                + (f", {wrong:.0%} wrong labels".replace("%", " %") if wrong else ""),
                "",
                *lines(of_ratio, scale),
                "",
            ]
    return "\n".join(
        [
            *parts,
            f"{each(row['machine']['processor'] for row in made)}, "
            f"{each(row['machine']['threads'] for row in made)} thread, "
            f"torch {each(row['versions']['torch'] for row in made)}, "
            f"{max(row['date'] for row in made)}, commits {each(row['commit'] for row in made)}.",
        ]
    )


def lines(made: list[Row], scale: float) -> list[str]:
    """One table. A scale below 0 says that less is better."""
    values = {
        way: {seed: scale * value for seed, value in by_seed(of, "value").items()}
        for way, of in group([dict(row, way=way_of(row)) for row in made], "way").items()
    }
    found = [
        "| | protocol | n | mean ± standard error | better than random by | than all data by |",
        "|---" * 6 + "|",
    ]
    ordered = sorted(values.items(), key=lambda way: [*RIVALS, way[0][0]].index(way[0][0]))
    for (method, protocol), of in ordered:
        mean = estimate(abs(value) for value in of.values())
        rivals = [
            "" if method == rival else cell_difference(paired(of, values[rival, "same epochs"]))
            for rival in RIVALS
        ]
        found.append(
            f"| {method} | {protocol} | {mean.n} | {cell_mean(mean)} | {' | '.join(rivals)} |"
        )
    return found


def way_of(row: Row) -> tuple[str, str]:
    """Method, with its warm-up where that is not the default, and protocol."""
    warmup = row.get("warmup_epochs")
    told = "" if warmup is None else f", warm-up of {warmup} epochs".replace("1 epochs", "1 epoch")
    return row["method"] + told, row["protocol"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--methods", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, nargs="+", help="of the cases; all where not given")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more to help
    path = RESULTS / "tasks.jsonl"
    about = provenance()
    for task in args.tasks:
        if (missing := lacking(task, args.data)) is not None:
            print(f"{task} is skipped: {missing}", flush=True)
            continue
        cases = TASKS[task].cases
        if args.epochs is not None:
            cases = tuple(case for case in cases if case.epochs in args.epochs)
        for method, seed, case in product(args.methods, range(args.seeds), cases):
            done = {key(row) for row in read_rows(path)}
            ways = ways_left(task, case, seed, method, done)
            made = list(rows(task, args.data, case, seed, method, ways, about)) if ways else []
            append(path, *made)  # all at once: what is stopped leaves no part of a seed
            for row in made:
                told = *way_of(row), row["keep_ratio"], row["epochs"], f"{row['value']:.4f}"
                print(task, "seed", seed, *told, flush=True)
    rewrite(ROOT / "docs" / "tasks.md", {"tasks": table(rows_of_tasks(path))})


if __name__ == "__main__":
    main()
