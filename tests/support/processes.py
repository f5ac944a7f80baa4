"""A new process that can import the tests' modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def run_python(code: str, test_file: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code``, which can import ``support`` and the test file of that path as a module."""
    paths = [str(Path(test_file).parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    named = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | named, capture_output=True, text=True
    )
