"""Kept sets against random ones of the same size, for the tasks of examples/.

    python -m benchmarks.quality.tasks.run --tasks detection --seeds 5

Makes the rows that benchmarks/results/quality/tasks.jsonl lacks, seed by seed, and redraws the
tables of docs/tasks.md; with `--seeds 0` only the latter. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch

from ...provenance import provenance
from ...tables import rewrite
from ..report import cell_difference, cell_mean, group, rows_of_tasks
from ..run import RESULTS, append, read_rows
from ..statistics import Row, by_seed, estimate, paired
from ..table import OURS, constants_of

ROOT = Path(__file__).resolve().parents[3]

# Task: keep ratio, epochs, training samples at most (None: a task without a folder).
TASKS: dict[str, tuple[float, int, int | None]] = {
    "detection": (0.8, 15, 292),
    "language_model": (0.7, 6, 4000),
    "regression": (0.7, 20, None),
    "segmentation": (0.7, 12, 367),
    "text": (0.7, 10, 10_000),
}
SCALES = {
    "mAP": ("%", 100),
    "mIoU": ("%", 100),
    "accuracy": ("%", 100),
    "R²": ("%", 100),
    "perplexity": ("", -1),
}  # less is better
WAYS = {  # the examples' names: method and protocol
    "adapruner": ("adapruner", "joint"),
    "kept set, anew": ("adapruner", "same epochs"),
    "random part": ("random", "same epochs"),
    "all data": ("full", "same epochs"),
}


def rows(
    task: str, data: Path, seed: int, method: str, rivals: bool, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The ways to train for one seed, as the example has them; the rivals where asked for."""
    ratio, epochs, most = TASKS[task]
    example = importlib.import_module(f"examples.{task}")
    more = {} if most is None else {"folder": data, "most": most}
    name = OURS[method]
    ways = example.compare(keep_ratio=ratio, epochs=epochs, seed=seed, method=name, **more)
    last = time.perf_counter()
    for way, samples, value in islice(ways, 4 if rivals else 2):
        now = time.perf_counter()
        shown, protocol = WAYS[way]
        row_method = method if shown == "adapruner" else shown
        yield {
            "task": task,
            "method": row_method,
            "constants": constants_of(row_method),
            "protocol": protocol,
            "keep_ratio": 1.0 if shown == "full" else ratio,
            "seed": seed,
            "metric": example.METRIC,
            "value": value,
            "samples": samples,
            "epochs": epochs,
            "recipe": recipe(task),
            "versions": {key: about[key] for key in ("adapruner", "torch", "python")},
            "machine": {key: about[key] for key in ("processor", "cores", "threads")},
            "commit": about["commit"],
            "date": about["date"],
            "seconds": round(now - last, 2),
        }
        last = now


def recipe(task: str) -> str:
    """The example, and the first digits of its SHA-256."""
    path = ROOT / "examples" / f"{task}.py"
    return f"examples/{task}.py {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def table(made: list[Row]) -> str:
    """Mean ± standard error; paired differences to random and full, better above 0."""
    parts = []
    for (task, metric), found in group(made, "task", "metric").items():
        unit, scale = SCALES[metric]
        parts += [
            f"**{task.replace('_', ' ')}**: {metric}{', ' * bool(unit)}{unit}, keep ratio "
            f"{TASKS[task][0]:g}, {TASKS[task][1]} epochs, "
            f"{max(row['samples'] for row in found):,} samples",
            "",
            "| | protocol | n | mean ± standard error | better than random by | than all data by |",
            "|---" * 6 + "|",
        ]
        values = {
            way: {seed: scale * value for seed, value in by_seed(of, "value").items()}
            for way, of in group(found, "method", "protocol").items()
        }
        for (method, protocol), of in values.items():
            mean = estimate(abs(value) for value in of.values())
            rivals = [
                "" if method == rival else cell_difference(paired(of, values[rival, "same epochs"]))
                for rival in ("random", "full")
            ]
            parts.append(
                f"| {method} | {protocol} | {mean.n} | {cell_mean(mean)} | {' | '.join(rivals)} |"
            )
        parts.append("")
    machine = made[-1]["machine"]
    commits = ", ".join(sorted({row["commit"] for row in made}))
    return "\n".join(
        [
            *parts,
            f"{machine['processor']}, {machine['threads']} thread, torch "
            f"{made[-1]['versions']['torch']}, {made[-1]['date']}, commits {commits}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--methods", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more to help
    path = RESULTS / "tasks.jsonl"
    about = provenance()
    for task, method, seed in product(args.tasks, args.methods, range(args.seeds)):
        done = {(r["task"], r["method"], r.get("constants"), r["seed"]) for r in read_rows(path)}
        if (task, method, constants_of(method), seed) in done:
            continue
        rivals = (task, "random", None, seed) not in done
        made = list(rows(task, args.data, seed, method, rivals, about))
        append(path, *made)  # all at once: what is stopped leaves no part of a seed
        for row in made:
            print(task, row["method"], row["protocol"], seed, f"{row['value']:.4f}", flush=True)
    rewrite(ROOT / "docs" / "tasks.md", {"tasks": table(rows_of_tasks(path))})


if __name__ == "__main__":
    main()
