"""What the kinds of the campaign share: their command, and the list of findings."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


class Findings:
    """Faults by place, each with its first example and a count."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}

    def note(self, place: str, example: str) -> None:
        for folder in (ROOT, Path(sys.prefix)):  # the results name no folder of this machine
            example = example.replace(f"{folder}/", "")
        entry = self._found.setdefault(place, {"place": place, "count": 0, "example": example})
        entry["count"] += 1
        if entry["count"] == 1:
            print(f"FOUND {place}: {example}", file=sys.stderr, flush=True)

    def listed(self) -> list[dict[str, Any]]:
        return list(self._found.values())


Run = Callable[[float, int, Findings], dict[str, Any]]


def main(run: Run) -> None:
    """Run a kind for a number of seconds, and print its figures as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, findings = time.monotonic(), Findings()
    figures = run(arguments.seconds, arguments.seed, findings)
    figures["seconds"] = round(time.monotonic() - began, 1)
    figures["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"figures": figures, "findings": findings.listed()}), flush=True)
