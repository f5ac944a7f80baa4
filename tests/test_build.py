"""setup.py: what it says where something that the native build needs is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(tmp_path: Path, torch_source: str, **environment: str) -> str:
    """Run the build with a stand-in for torch; its last line of output. It must fail."""
    stand_in = tmp_path / "packages" / "torch"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text(torch_source)
    places = {"--build-temp": tmp_path / "temp", "--build-lib": tmp_path / "lib"}
    arguments = [str(part) for place in places.items() for part in place]
    variables = {name: value for name, value in os.environ.items() if name != "CXX"}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *arguments],
        cwd=ROOT,
        env=variables | {"PYTHONPATH": str(stand_in.parent)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_without_torch(tmp_path: Path) -> None:
    missing = 'raise ModuleNotFoundError("No module named \'torch\'", name="torch")'
    line = build(tmp_path, missing)
    assert line.startswith("adapruner: torch was not found while building the native core;")
    assert "pip install --no-build-isolation" in line


@pytest.mark.parametrize("version", ["2.8.0", "2.8.1+cpu", "1.13.1"])
def test_torch_too_old(tmp_path: Path, version: str) -> None:
    line = build(tmp_path, f'__version__ = "{version}"')
    assert line == f"adapruner: torch {version} is too old; version 2.9 or later is needed"


def test_without_a_compiler(tmp_path: Path) -> None:
    line = build(tmp_path, '__version__ = "2.14.0"', PATH=str(tmp_path))
    assert line.startswith("adapruner: no C++ compiler was found (c++, g++, clang++);")


def test_named_compiler_is_missing(tmp_path: Path) -> None:
    line = build(tmp_path, '__version__ = "2.14.0"', CXX="no-such-compiler")
    assert line.startswith("adapruner: no C++ compiler was found (no-such-compiler);")


def test_compiler_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    line = build(tmp_path, '__version__ = "2.14.0"', CXX=str(broken))
    assert "building the native core failed" in line
