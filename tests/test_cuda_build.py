"""What the native library is built with: CUDA kernels or the reason why there are none; no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.operator_calls import CPU_ONLY

from adapruner import _C, info

ROOT = Path(__file__).resolve().parent.parent


def operators(key: str) -> set[str]:
    """The operators of torch.ops.adapruner that have a kernel for a dispatch key."""
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas()}
    ours = {name for name in schemas if name.startswith("adapruner::")}
    return {name for name in ours if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)}


@pytest.mark.skipif(_C.build_info()["cuda"] is None, reason="the library has no CUDA kernels")
@pytest.mark.parametrize(("there", "also"), [("CPU", "CUDA"), ("AutocastCPU", "AutocastCUDA")])
def test_every_operator_has_a_cuda_kernel(there: str, also: str) -> None:
    assert operators(there)
    assert operators(there) - operators(also) <= {f"adapruner::{name}" for name in CPU_ONLY}


def test_info_says_what_of_cuda_there_is() -> None:
    built = _C.build_info()
    (line,) = [line for line in info.describe().splitlines() if line.split()[:1] == ["CUDA"]]
    if built["cuda"] is None:
        assert str(built["no_cuda"]) in line
    else:
        assert str(torch.version.cuda).split(".")[0] == built["cuda"]["version"].split(".")[0]
        assert built["cuda"]["architectures"] in line


def configure(tmp_path: Path, cuda: str | None = None, **environment: str) -> str:
    """What a build says that must fail, of a stand-in for a torch with this CUDA, in one line."""
    stand_in = tmp_path / "packages" / "torch"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text(
        f"__version__ = '2.14.0'\nclass version:\n  cuda = {cuda!r}\n"
        "class cuda:\n  def device_count(): return 0\n"
    )
    places = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib")]
    named = {"PYTHONPATH": str(stand_in.parent), **environment}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *places],
        cwd=ROOT,
        env=os.environ | named,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return re.sub(r"\s+", " ", done.stderr)


def test_cuda_on_without_a_cuda_torch(tmp_path: Path) -> None:
    said = configure(tmp_path, ADAPRUNER_CUDA="on")
    assert "ADAPRUNER_CUDA=on, but torch 2.14.0 is a build without CUDA" in said


def test_cuda_on_without_nvcc(tmp_path: Path) -> None:
    said = configure(tmp_path, "13.0", ADAPRUNER_CUDA="on", CUDACXX="no-such-nvcc")
    assert "ADAPRUNER_CUDA=on, but no-such-nvcc was not found (CUDACXX, CUDA_HOME, PATH)" in said


def stand_in_nvcc(tmp_path: Path, version: str) -> str:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo 'release, V{version}.1.2' && exit 0\n"
        "[ $1 = --list-gpu-arch ] && echo compute_80 compute_90 && exit 0\nexit 1\n"
    )
    nvcc.chmod(0o755)
    return str(nvcc)


def test_cuda_on_with_an_nvcc_of_another_version(tmp_path: Path) -> None:
    nvcc = stand_in_nvcc(tmp_path, "12")
    said = configure(tmp_path, "13.0", ADAPRUNER_CUDA="on", CUDACXX=nvcc)
    assert f"{nvcc} is of CUDA 12, torch of CUDA 13.0" in said


def test_cuda_on_with_an_nvcc_that_fails(tmp_path: Path) -> None:
    nvcc = stand_in_nvcc(tmp_path, "13")
    said = configure(tmp_path, "13.0", ADAPRUNER_CUDA="on", CUDACXX=nvcc)
    assert f"{nvcc} does not compile with" in said


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("7.0", "nvcc knows (80;90); found 7.0"),
        ("Hopper", "TORCH_CUDA_ARCH_LIST must hold numbers such as 8.0;9.0;10.0+PTX; found Hopper"),
        ("8.0 9", "TORCH_CUDA_ARCH_LIST must hold numbers such as 8.0;9.0;10.0+PTX; found 9"),
    ],
)
def test_architectures_that_are_not(names: str, message: str, tmp_path: Path) -> None:
    nvcc = stand_in_nvcc(tmp_path, "13")
    said = configure(tmp_path, "13.0", CUDACXX=nvcc, TORCH_CUDA_ARCH_LIST=names)
    assert message in said


def test_cuda_neither_on_nor_off(tmp_path: Path) -> None:
    said = configure(tmp_path, ADAPRUNER_CUDA="maybe")
    assert "ADAPRUNER_CUDA must be auto, on or off; found maybe" in said
