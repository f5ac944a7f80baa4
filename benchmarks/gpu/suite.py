"""Run one suite of this folder and write its result file; for check.py, which sets PYTHONPATH.

The file is written anew after every row, so that what was measured stays if the rest fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

from adapruner import _C

SUITES = ("masked_cross_entropy", "topk", "gate_update", "step")
ASKED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def device() -> dict[str, Any]:
    """The GPU, its driver and clocks, and what the kernels were built for."""
    properties = torch.cuda.get_device_properties(0)
    said = ""
    try:
        query = f"--query-gpu={','.join(ASKED)}"
        command = ["nvidia-smi", query, "--format=csv,noheader", "-i", "0"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        pass
    values = [value.strip() for value in said.split(",")]
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch_cuda": torch.version.cuda,
        "kernels": _C.build_info()["cuda"],
        **dict(zip(ASKED, values, strict=False)),
    }


def run(name: str, folder: Path, quick: bool) -> None:
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    about = provenance() | device() | {"quick": quick}
    rows: dict[str, Any] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for title, row in importlib.import_module(name).rows(quick):
        rows[f"{name}[{title}]"] = row
        about |= device()  # the clocks under load
        text = json.dumps({"provenance": about, "rows": rows}, indent=1)
        (folder / f"{name}.json").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    run(arguments.suite, arguments.results, arguments.quick)


if __name__ == "__main__":
    main()
