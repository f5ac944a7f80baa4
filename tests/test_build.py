"""setup.py: what it says where something that the native build needs is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def find_nvcc() -> str | None:
    """The nvcc that the build would find, if it is one of CUDA 13."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return found if "release 13." in said else None


NVCC = find_nvcc()


def build(tmp_path: Path, torch_source: str, **environment: str) -> str:
    """Run the build with a stand-in for torch; the last line of its errors. It must fail."""
    return run_build(tmp_path, torch_source, **environment).stderr.strip().splitlines()[-1]


def run_build(
    tmp_path: Path, torch_source: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the build with a stand-in for torch, which must fail, since that has no headers."""
    stand_in = tmp_path / "packages" / "torch"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text(torch_source)
    places = {"--build-temp": tmp_path / "temp", "--build-lib": tmp_path / "lib"}
    arguments = [str(part) for place in places.items() for part in place]
    ours = ("CXX", "ADAPRUNER_CUDA", "TORCH_CUDA_ARCH_LIST")
    variables = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *arguments],
        cwd=ROOT,
        env=variables | {"PYTHONPATH": str(stand_in.parent)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done


def test_without_torch(tmp_path: Path) -> None:
    missing = 'raise ModuleNotFoundError("No module named \'torch\'", name="torch")'
    line = build(tmp_path, missing)
    assert line.startswith("adapruner: torch was not found while building the native core;")
    assert "pip install --no-build-isolation" in line


@pytest.mark.parametrize("version", ["2.8.0", "2.8.1+cpu", "1.13.1"])
def test_torch_too_old(tmp_path: Path, version: str) -> None:
    line = build(tmp_path, f'__version__ = "{version}"')
    assert line == f"adapruner: torch must have version 2.9 or later; found {version}"


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


# A torch for CUDA 13 on a machine with three GPUs.
TORCH_WITH_GPUS = """
__version__ = "2.14.0"
class version: cuda = "13.0"
class cuda:
    def device_count(): return 3
    def get_device_capability(device): return [(9, 0), (8, 6), (9, 0)][device]
"""


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc of CUDA 13")
@pytest.mark.parametrize(("chosen", "expected"), [("", "8.6 9.0"), ("8.0;9.0+PTX", "8.0 9.0+PTX")])
def test_architectures_are_those_asked_for_or_of_the_gpus(
    tmp_path: Path, chosen: str, expected: str
) -> None:
    done = run_build(tmp_path, TORCH_WITH_GPUS, TORCH_CUDA_ARCH_LIST=chosen)
    assert re.search(rf"^-- CUDA 13\S* for {re.escape(expected)}$", done.stdout, re.MULTILINE)


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc of CUDA 13")
def test_an_architecture_that_nvcc_does_not_know(tmp_path: Path) -> None:
    done = run_build(tmp_path, TORCH_WITH_GPUS.replace("(8, 6)", "(1, 0)"))
    assert "; found 1.0" in " ".join(done.stderr.split())
