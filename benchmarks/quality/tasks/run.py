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
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from adapruner.methods import DEFAULT_METHOD

ROOT = Path(__file__).parents[3]
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

from provenance import provenance  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "quality" / "tasks.jsonl"
# Task: keep ratio, epochs, training samples at most (None: a task without a folder), and whether
# more is better.
TASKS: dict[str, tuple[float, int, int | None, bool]] = {
    "detection": (0.8, 15, 292, True),
    "language_model": (0.7, 6, 4000, False),
    "regression": (0.7, 20, None, True),
}
WAYS = {  # the examples' names: method and protocol
    "adapruner": ("adapruner", "joint"),
    "kept set, anew": ("adapruner", "same epochs"),
    "random part": ("random", "same epochs"),
    "all data": ("full", "same epochs"),
}
PUBLISHED = "adapruner"


def rows(task: str, data: Path, seed: int, method: str) -> Iterator[dict[str, Any]]:
    """Every way to train for one seed, as the example has it; the rivals beside the default."""
    ratio, epochs, most, _ = TASKS[task]
    example = importlib.import_module(task)
    about = provenance()
    more = {} if most is None else {"folder": data, "most": most}
    ways = example.compare(keep_ratio=ratio, epochs=epochs, seed=seed, method=method, **more)
    last = time.perf_counter()
    for name, samples, value in islice(ways, 2 if method == PUBLISHED else None):
        now = time.perf_counter()
        shown, protocol = WAYS[name]
        yield {
            "task": task,
            "method": shown + " as published" * (method == PUBLISHED),
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


def interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean."""
    n = len(values)
    return student.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan


def show(found: list[dict[str, Any]]) -> None:
    """Mean ± standard error, and differences to random and full, better above 0, with intervals."""
    for task, (ratio, epochs, _, more_is_better) in TASKS.items():
        values: dict[tuple[str, str], dict[int, float]] = {}
        for row in found:
            if (row["task"], row["epochs"]) == (task, epochs):
                values.setdefault((row["method"], row["protocol"]), {})[row["seed"]] = row["value"]
        if not values:
            continue
        print(f"\n{task}, keep ratio {ratio}, {epochs} epochs")
        print("| method | protocol | n | mean ± standard error | to random | to full |")
        print("|---|---|---|---|---|---|")
        for (method, protocol), of in values.items():
            column = np.array(list(of.values()))
            error = column.std(ddof=1) / math.sqrt(len(column)) if len(column) > 1 else math.nan
            cells = [method, protocol, str(len(of)), f"{column.mean():.4f} ± {error:.4f}"]
            for rival in ("random", "full"):
                other = values.get((rival, "same epochs"), {})
                both = sorted(of.keys() & other.keys())
                better = np.array([of[seed] - other[seed] for seed in both])
                better *= 1 if more_is_better else -1
                shown = f"{better.mean():+.4f} ± {interval(better):.4f}" if len(both) else ""
                cells.append("" if method == rival else shown)
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=[DEFAULT_METHOD, PUBLISHED])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more to help
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.touch()
    found = [json.loads(line) for line in args.results.read_text().splitlines()]
    for task, method, seed in product(args.tasks, args.methods, range(args.seeds)):
        name = "adapruner as published" if method == PUBLISHED else "adapruner"
        key = task, name, seed, TASKS[task][1]
        if key in {(row["task"], row["method"], row["seed"], row["epochs"]) for row in found}:
            continue
        new = list(rows(task, args.data, seed, method))
        with args.results.open("a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
        found += new
        print(task, seed, [(row["method"], round(row["value"], 4)) for row in new], flush=True)
    show(found)


if __name__ == "__main__":
    main()
