"""compute-sanitizer over every kernel: which tools, how they are called, and what they found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FOUND = 99  # status that says that errors were found
# Without torch's cache of memory, a block has no neighbour that could be hit unnoticed, and a new
# block does not look initialised because an earlier one was.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
TOOLS = {
    "memcheck": UNCACHED,
    "initcheck": UNCACHED,
    "racecheck": {},
    "synccheck": {},
}
# Options that choose kernels by a part of their mangled name, the newest first.
FILTERS = ("--kernel-regex", "--kernel-name", "--filter")
OURS = "kns=adapruner"
UNSUPPORTED = re.compile(r"[^\n]*(?:not supported|unsupported|not permitted)[^\n]*", re.IGNORECASE)
# "ERROR SUMMARY: 0 errors", and for races "RACECHECK SUMMARY: 2 hazards displayed (1 error, ...".
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) [^\n]*")


class Verdict(NamedTuple):
    """What a tool found.

    Attributes:
        verdict: "passed", "failed" or "skipped".
        text: the tool's own summary, or why there is none.
    """

    verdict: str
    text: str


def find_sanitizer() -> str | None:
    """compute-sanitizer of the PATH, or of the toolkit whose nvcc is there."""
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    homes = [Path(nvcc).resolve().parent] if nvcc else []
    homes += [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin"]
    return shutil.which("compute-sanitizer") or next(
        filter(None, (shutil.which("compute-sanitizer", path=home) for home in homes)), None
    )


def kernel_filter(sanitizer: str) -> list[str]:
    """The options that restrict a tool to the kernels of adapruner, as this version has them."""
    said = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, timeout=60)
    for option in FILTERS:
        if option in said.stdout + said.stderr:
            return [option, OURS]
    return []


def command(sanitizer: str, chosen: Sequence[str], tool: str, program: Sequence[str]) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    return [sanitizer, *options, *chosen, *program]


def judge(status: int, output: str) -> Verdict:
    """What a tool's exit status and output mean."""
    if summaries := list(SUMMARY.finditer(output)):
        found = max(summaries, key=lambda summary: int(summary[1]))
        if status == 0 and int(found[1]) == 0:
            return Verdict("passed", found[0])
        if int(found[1]):
            return Verdict("failed", found[0])
    elif unsupported := UNSUPPORTED.search(output):
        return Verdict("skipped", f"not supported here: {unsupported[0].strip(' =')}")
    said = [line for line in output.splitlines() if line.strip() and not line.startswith("===")]
    last = said[-1] if said else "no output"
    return Verdict("failed", f"ended with status {status}: {last.strip()}")
