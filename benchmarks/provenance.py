"""What a result file says of where its figures come from."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from adapruner.info import machine
from adapruner.ops import _C

# What the figures depend on: not what a run itself writes.
CODE = (":/adapruner", ":/csrc", ":/benchmarks", ":/examples", ":(top,exclude)benchmarks/results")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def provenance() -> dict[str, Any]:
    """The machine, versions, date, and the commit ("+" where the code differs from it).

    The commit comes from ``ADAPRUNER_COMMIT`` where that is set: a copy of the code need not have
    its repository.
    """
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
        "commit": os.environ.get("ADAPRUNER_COMMIT") or _commit(),
    }


def _commit() -> str:
    """Of the repository that this file is in; empty without git or a repository."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parent
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", *CODE)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
