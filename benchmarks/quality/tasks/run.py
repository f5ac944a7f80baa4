"""Kept sets against random ones of the same size, for the tasks of examples/.

Appends one row for each way to train to a file of JSON lines, seed by seed, and leaves out the
seeds that the file has already; prints the means and the paired differences of all its rows in the
end. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

ROOT = Path(__file__).parents[3]
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

from provenance import provenance  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "quality" / "tasks.jsonl"
# Task: keep ratio, epochs, whether it needs the data's folder, whether more is better.
TASKS = {
    "detection": (0.8, 25, True, True),
    "language_model": (0.7, 5, True, False),
    "regression": (0.7, 20, False, True),
}
METHODS = {
    "all data": "full",
    "random part": "random",
    "adapruner": "adapruner, the run itself",
    "kept set, anew": "adapruner",
}


def rows(task: str, data: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Every way to train for one seed, as the example has it."""
    ratio, epochs, needs_data, _ = TASKS[task]
    example = importlib.import_module(task)
    about = provenance()
    last = time.perf_counter()
    for name, samples, value in example.compare(*[data] * needs_data, ratio, epochs, seed):
        now = time.perf_counter()
        yield {
            "task": task,
            "method": METHODS[name],
            "keep_ratio": 1.0 if name == "all data" else ratio,
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


def interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean."""
    n = len(values)
    return student.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan


def show(found: list[dict[str, Any]]) -> None:
    """Mean ± standard error, and differences to random and full, better above 0, with intervals."""
    for task, (ratio, epochs, _, more_is_better) in TASKS.items():
        values: dict[str, dict[int, float]] = {}
        for row in found:
            if row["task"] == task and row["recipe"] == recipe(task):
                values.setdefault(row["method"], {})[row["seed"]] = row["value"]
        if len(values) < len(METHODS):
            continue
        seeds = sorted(values["full"])
        table = {name: np.array([of[seed] for seed in seeds]) for name, of in values.items()}
        print(f"\n{task}, keep ratio {ratio}, {epochs} epochs, n = {len(seeds)}")
        print("| trained on | mean ± standard error | better than random by | than full by |")
        print("|---|---|---|---|")
        for name, column in table.items():
            error = column.std(ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else math.nan
            cells = [name, f"{column.mean():.4f} ± {error:.4f}"]
            for rival in ("random", "full"):
                better = (column - table[rival]) * (1 if more_is_better else -1)
                text = f"{better.mean():+.4f} ± {interval(better):.4f}"
                cells.append("" if name == rival else text)
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more to help
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.touch()
    found = [json.loads(line) for line in args.results.read_text().splitlines()]
    for task in args.tasks:
        there = {row["seed"] for row in found if row["recipe"] == recipe(task)}
        for seed in sorted(set(range(args.seeds)) - there):
            new = list(rows(task, args.data, seed))
            with args.results.open("a") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            found += new
            print(task, seed, {row["method"]: round(row["value"], 4) for row in new}, flush=True)
    show(found)


if __name__ == "__main__":
    main()
