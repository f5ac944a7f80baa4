"""What a result file says of where its figures come from."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from adapruner.info import machine
from adapruner.ops import _C

ROOT = Path(__file__).resolve().parents[1]
# What the figures depend on: not what a run itself writes.
CODE = (
    ":/adapruner",
    ":/csrc",
    ":/benchmarks",
    ":/examples",
    ":/torture",
    ":(top,exclude)benchmarks/results",
)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def commit() -> str:
    """The commit of the code, with "+" where the code differs from it.

    In a folder that is not a repository, or without git, it is ADAPRUNER_COMMIT, or "unknown".
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    found = ""
    if (ROOT / ".git").exists() and shutil.which("git"):
        found = git("rev-parse", "--short", "HEAD")
    if not found:
        return os.environ.get("ADAPRUNER_COMMIT", "unknown")
    return found + ("+" if git("status", "--porcelain", "--", *CODE) else "")


def provenance() -> dict[str, Any]:
    """The machine, versions, date and commit."""
    return machine() | {
        "packages": {
            found.metadata["Name"].lower(): found.version
            for name in ("numpy", "scikit-learn")
            for found in distributions(name=name)
        },
        "instruction_set": _C.build_info()["instruction_set"],
        "huge_pages": HUGE_PAGES.read_text().split("[")[-1].split("]")[0]
        if HUGE_PAGES.exists()
        else "unknown",
        "commit": commit(),
    }
