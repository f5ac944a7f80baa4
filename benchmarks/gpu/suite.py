"""Run one suite: a line of JSON a row, written as soon as the row is measured.

    python -m benchmarks.gpu.suite topk --device cuda --seconds 60 --results suites.jsonl

A row that fails becomes a line with its error, and the others are measured all the same.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

from . import lines
from .device import find_device
from .timing import Cases

MOST, LEAST = 10.0, 0.2  # seconds of turns for one row
SHARE = 0.4  # of a suite's time that goes into turns: the rest is for set-up, checks and warm-up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", help="a module of this folder that has cases")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all rows")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="sizes of a rehearsal")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    make: Cases = importlib.import_module(f"benchmarks.gpu.{arguments.suite}").cases
    chosen = list(make(device, arguments.tiny))
    most = LEAST if arguments.tiny else MOST
    seconds = min(most, max(LEAST, SHARE * arguments.seconds / max(len(chosen), 1)))
    failed = 0
    for case in chosen:
        line = {"suite": arguments.suite, "name": case.name}
        print(f"{arguments.suite} {case.name}", flush=True)
        try:
            line["row"] = case.measure(seconds)
            line["clock"] = device.facts().get("clocks.sm")  # right after the load
        except Exception as error:  # any failure is a finding, and the next row may work
            failed += 1
            line["error"] = f"{type(error).__name__}: {error}"
        lines.append(arguments.results, line)
        if not device.works():
            print("the device is lost; the rest of this suite is left out", flush=True)
            return 1
        torch._dynamo.reset()
        device.free_cache()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
