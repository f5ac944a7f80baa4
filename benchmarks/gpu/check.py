"""Everything that needs a GPU, on a machine that has one, with what is found there.

    python benchmarks/gpu/check.py [--quick] [--results FOLDER]       (make gpu-check)

Builds in place for the GPU's own architecture, tests, looks for bad accesses and races, and
measures beside the rivals; no network and no virtual environment are needed. What is missing is
skipped, by name. Result files say device, driver, clocks, versions, commit and date; the last thing
printed is a table of what was held against the budgets. ``--quick`` ends within eight minutes.
Exits with 1 if anything failed; a budget that is missed is no failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "benchmarks" / "gpu"
QUICK_SECONDS = 8 * 60
LEAST_SECONDS = 5  # what is not worth starting in less
SUITES = ("masked_cross_entropy", "topk", "gate_update", "step")
NEEDED = ("numpy", "safetensors", "tqdm")  # by adapruner itself


@dataclass
class Run:
    """One check of a machine.

    Attributes:
        quick: whether everything must end within :data:`QUICK_SECONDS`.
        said: stage to how it ended, in order.
    """

    quick: bool
    results: Path
    started: float = field(default_factory=time.monotonic)
    said: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def stage(self, name: str, quick: float, full: float, command: list[str], **more: str) -> bool:
        """Run a command within its seconds, and what is left of all; whether it succeeded."""
        limit = full
        if self.quick:
            limit = min(quick, QUICK_SECONDS - (time.monotonic() - self.started))
        if limit < LEAST_SECONDS:
            self.said[name] = "skipped: no time left"
            return False
        print(f"\n=== {name}: {' '.join(command)}", flush=True)
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=self.environment() | more, timeout=limit, check=False
            )
            how = "passed" if done.returncode == 0 else f"failed with status {done.returncode}"
        except subprocess.TimeoutExpired:
            how = f"failed: not done within {limit:.0f} s"
        self.said[name] = f"{how} ({time.monotonic() - start:.0f} s)"
        return how == "passed"

    def skip(self, name: str, why: str) -> None:
        self.said[name] = f"skipped: {why}"

    @property
    def failed(self) -> bool:
        return any(how.startswith("failed") for how in self.said.values())


def missing(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def build(run: Run, architecture: str | None) -> bool:
    """The native library in place; for one architecture, where a GPU names it."""
    chosen = {"TORCH_CUDA_ARCH_LIST": architecture} if architecture else {}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return run.stage("build", 300, 3600, command, ADAPRUNER_CUDA="on", **chosen)


def find_sanitizer() -> str | None:
    """compute-sanitizer of the PATH, or of the toolkit whose nvcc is there."""
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    homes = [Path(nvcc).resolve().parent] if nvcc else []
    homes += [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin"]
    return shutil.which("compute-sanitizer") or next(
        filter(None, (shutil.which("compute-sanitizer", path=home) for home in homes)), None
    )


def check_all(run: Run) -> None:
    python = sys.executable
    run.stage("kernels", 30, 60, [python, str(HERE / "kernel_report.py")])
    if lacking := missing("pytest", "hypothesis"):
        run.skip("tests", f"{', '.join(lacking)} not installed")
    else:
        run.stage("tests", 150, 3600, [python, "-m", "pytest", "-q", "-m", "cuda"])
    sanitizer = find_sanitizer()
    for tool in ("memcheck", "racecheck"):
        if sanitizer is None:
            run.skip(tool, "compute-sanitizer was not found")
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", python]
        # Without torch's cache of memory, a neighbour's block is not there to be hit unnoticed.
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        run.stage(tool, 60, 1800, [*command, str(HERE / "every_operator.py")], **more)
    quick = ["--quick"] if run.quick else []
    for suite in SUITES:
        if suite == "step" and len(missing("torchvision", "timm")) == 2:
            run.skip(suite, "neither torchvision nor timm is installed")
            continue
        command = [python, str(HERE / "suite.py"), suite, "--results", str(run.results), *quick]
        run.stage(suite, 75, 1800, command)


def claims(folder: Path, since: float) -> list[tuple[str, str]]:
    """What every row written since then reached, beside its budget."""
    lines = []
    for suite in SUITES:
        file = folder / f"{suite}.json"
        if not file.exists() or file.stat().st_mtime < since:
            continue
        rows: dict[str, Any] = json.loads(file.read_text())["rows"]
        for name, row in rows.items():
            for one in row["claims"]:
                sign, value = "≤" if one["most"] else "≥", one["value"]
                figure = "not measured" if value is None else f"{value:.3g}"
                verdict = {True: "met", False: "missed", None: ""}[one["met"]]
                lines.append((name, f"{figure} {one['text']} ({sign} {one['limit']}) {verdict}"))
            lines += [(name, f"{rival}: {why}") for rival, why in row["failed"].items()]
    return lines


def table(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def finish(run: Run, began: float) -> int:
    print("\n" + table(list(run.said.items())))
    if found := claims(run.results, began):
        print("\n" + table(found))
    return 1 if run.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within eight minutes, build included")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    arguments = parser.parse_args()
    if lacking := missing("torch", *NEEDED):
        print(f"gpu-check: {', '.join(lacking)} not installed for {sys.executable}")
        return 1
    import torch

    began = time.time()
    run = Run(arguments.quick, arguments.results.resolve())
    there = torch.cuda.is_available()
    architecture = "{}.{}".format(*torch.cuda.get_device_capability()) if there else None
    if not build(run, architecture):
        return finish(run, began)
    if not there:
        finish(run, began)
        print(f"gpu-check: built, but there is no CUDA device for torch {torch.__version__}")
        return 2
    check_all(run)
    return finish(run, began)


if __name__ == "__main__":
    sys.exit(main())
