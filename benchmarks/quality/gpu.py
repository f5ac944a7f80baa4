"""As much of the table "gpu" as fits into so many seconds of a GPU, one JSON row for each run.

    python -m benchmarks.quality.gpu --seconds 300 --results quality.jsonl --data cifar10.npz

Full CIFAR-10 at 32×32 with a network that trains in seconds. Runs come in the order of their worth
(:func:`benchmarks.quality.table.gpu_runs`). A row is written as soon as its run ends, and a run
starts only if it should end in time. A method that fails is told and not tried again. Started again
with the same file, the command makes what is missing.

``--data`` names CIFAR-10 as a single file of 18 MB; where it is not there yet, it is written from
the folder ``$ADAPRUNER_DATA``. Without ``--data``, ``$ADAPRUNER_DATA`` is read.
``--tiny --device cpu`` rehearses everything on few images in about half a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..provenance import provenance
from . import cifar
from .one import data_of
from .run import make_row, not_in, read_rows
from .table import GPU, TINY, Run, gpu_runs
from .trainer import Plan, train

WARM_UP_STEPS = 3
Kind = tuple[str, str, float, str]


def kind_of(row: dict[str, Any]) -> Kind:
    """Runs that are alike in this take about the same time."""
    return row["protocol"], row["method"], row["ratio"], row["noise"]


class Forecast:
    """How long the next run may take: a tenth longer than the last one of its kind, or half as long
    again as the longest of all where its kind is new."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._last: dict[Kind, float] = {}
        for row in rows:
            self.note(row)

    def note(self, row: dict[str, Any]) -> None:
        self._last[kind_of(row)] = row["wall_seconds"]

    def seconds(self, run: Run) -> float:
        if (last := self._last.get(kind_of(vars(run)))) is not None:
            return 1.1 * last
        return 1.5 * max(self._last.values(), default=0.0)


def make_in_time(
    runs: Iterable[Run],
    make: Callable[[Run], dict[str, Any]],
    forecast: Forecast,
    end: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, list[str]]:
    """Make one run after another until the next one would not end in time.

    Returns:
        How many were made, and the methods that failed: each of them is tried once.
    """
    made, failed = 0, []
    for run in runs:
        name = f"{run.method}, {run.protocol}"
        if name in failed:
            continue
        if clock() >= end or clock() + forecast.seconds(run) > end:
            break
        try:
            row = make(run)
        except Exception:  # the other methods still have something to say
            traceback.print_exc()
            failed.append(name)
            continue
        forecast.note(row)
        made += 1
    return made, failed


def compiles(run: Run, device: str) -> bool:
    """Whether the network can be compiled: a few steps try it, so that no run waits for it."""
    data, recipe = data_of(*run.shared, device), run.recipe
    everything = torch.ones(len(data.y), dtype=torch.bool)
    try:
        train(data, recipe, Plan(everything), 0, samples=WARM_UP_STEPS * recipe.batch_size)
    except Exception:  # of whatever the compiler needs and does not find
        traceback.print_exc()
        print("the network cannot be compiled here and runs as it is", flush=True)
        return False
    return True


def main(arguments: list[str] | None = None) -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, required=True, help="to end within")
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="few images and a narrow network")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as one file, written if not there")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU; found none")
    if args.data is not None:
        if not args.data.exists():
            cifar.write_file(args.data, cifar.source())
        os.environ["ADAPRUNER_DATA"] = str(args.data)
    runs = gpu_runs(TINY if args.tiny else GPU)
    left = not_in([args.results], runs)
    print(f"{len(left)} of {len(runs)} runs are left", flush=True)
    data_of(*runs[0].shared, args.device)  # decoded here, so that no run is the longer for it
    about: dict[str, Any] = {"device": "cpu", "compiled": False}
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
        compiled = compiles(runs[0], args.device)
        about = {"device": torch.cuda.get_device_name(), "compiled": compiled}
    else:
        torch.set_num_threads(1)  # and nothing is compiled, which takes a processor a minute
    about["provenance"] = provenance()
    print(f"ready after {time.perf_counter() - start:.1f} s", flush=True)
    with torch.compiler.set_stance("default" if about["compiled"] else "force_eager"):
        made, failed = make_in_time(
            left,
            lambda run: make_row(run, args.device, args.results, about),
            Forecast(read_rows(args.results)),
            start + args.seconds,
        )
    spent = time.perf_counter() - start
    print(f"{made} runs in {spent:.1f} s; {len(left) - made} are left", flush=True)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
