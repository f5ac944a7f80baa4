"""Bring the results of gpu-check into the repository, and draw the tables of the docs.

    python -m benchmarks.gpu.collect DIR

DIR is the folder that RESULTS named. Its files replace those of benchmarks/results/gpu. Of a test
or a call that failed the line that names the error is kept; log.txt and sanitizers.txt, which name
paths of the machine, are left where they are. Results of a rehearsal are refused.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ..tables import rewrite
from . import lines
from .stages import STAGES
from .tables import gpu_tables

ROOT = Path(__file__).resolve().parents[2]


def collect(folder: Path, root: Path = ROOT) -> list[str]:
    """The names of the files that were brought into the repository at ``root``."""
    summary = folder / "summary.json"
    if not summary.exists():
        raise ValueError(f"{folder} has no summary.json; expected the results of make gpu-check")
    about = json.loads(summary.read_text())["provenance"]
    if "capability" not in about:  # of a GPU; the CPU rehearses with any library
        raise ValueError(
            f"{folder} holds a rehearsal on the CPU; expected results that were made on a GPU"
        )
    into = root / "benchmarks" / "results" / "gpu"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    shutil.copyfile(summary, into / summary.name)
    brought = [summary.name]
    for stage in STAGES:
        if stage.file.endswith(".jsonl") and (found := lines.read(folder / stage.file)):
            for line in found:
                lines.append(into / stage.file, tidy(line))
            brought.append(stage.file)
    rewrite(root / "docs" / "performance.md", gpu_tables(into))
    return brought


def tidy(line: dict[str, Any]) -> dict[str, Any]:
    """A line whose texts are one line each."""
    short = {key: lines.reason(line[key]) for key in ("text", "error") if key in line}
    return line | short


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m benchmarks.gpu.collect DIR")
        return 2
    try:
        brought = collect(Path(sys.argv[1]))
    except ValueError as error:
        print(f"collect: {error}")
        return 1
    print(f"benchmarks/results/gpu: {', '.join(brought)}; docs/performance.md was redrawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
