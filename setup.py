"""Runs CMake with Ninja. CMakeLists.txt describes the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 9)
OLDEST_SETUPTOOLS = 77

if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    # An older one prints a page about the licence in pyproject.toml.
    sys.exit(
        f"adapruner: setuptools must have version {OLDEST_SETUPTOOLS} or later; found "
        f'{setuptools.__version__}; pip install --upgrade "setuptools>={OLDEST_SETUPTOOLS}"'
    )


def find_torch():
    """The torch to build against, which is always the one of this environment."""
    install = "install torch, then: pip install --no-build-isolation ."
    try:
        import torch
    except ModuleNotFoundError:
        sys.exit(f"adapruner: torch was not found while building the native core; {install}")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        sys.exit(f"adapruner: torch must have version {oldest} or later; found {torch.__version__}")
    return torch


def find_program(name: str) -> str:
    """The path of a program. Looks beside this Python first, where pip puts cmake and ninja."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        sys.exit(
            f"adapruner: {name} was not found while building the native core; pip install {name}"
        )
    return found


def find_compiler() -> str:
    """The C++ compiler: $CXX, or the first usual one that is found."""
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if found := shutil.which(name):
            return found
    sys.exit(
        f"adapruner: no C++ compiler was found ({', '.join(names)}); install g++ 12 or clang 16 or "
        "later, or name one in CXX"
    )


def cuda_architectures(torch) -> str:
    """The architectures of the CUDA kernels, in torch's notation.

    They come from TORCH_CUDA_ARCH_LIST if it is set, otherwise from the GPUs of this machine. If
    there are none, the result is empty, and cmake/cuda.cmake uses its default.
    """
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return chosen
    capabilities = {
        torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())
    }
    return ";".join(f"{major}.{minor}" for major, minor in sorted(capabilities))


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        cmake, ninja, compiler = find_program("cmake"), find_program("ninja"), find_compiler()
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        home = Path(torch.__file__).resolve().parent
        includes = [home / "include", home / "include" / "torch" / "csrc" / "api" / "include"]
        build = Path(self.build_temp).resolve() / f"torch-{torch.__version__}"
        cuda = getattr(getattr(torch, "version", None), "cuda", None)
        settings = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "CMAKE_CXX_COMPILER": compiler,
            "CMAKE_INSTALL_PREFIX": str(output.parent.parent),
            "TORCH_INCLUDES": ";".join(map(str, includes)),
            "TORCH_LIBRARY_DIRS": str(home / "lib"),
            "TORCH_VERSION": torch.__version__,
            "TORCH_CUDA_VERSION": cuda or "",
            "ADAPRUNER_CUDA": os.environ.get("ADAPRUNER_CUDA", "auto"),
            "SANITIZE": os.environ.get("ADAPRUNER_SANITIZE", ""),
            "CUDA_ARCH_LIST": cuda_architectures(torch) if cuda else "",
            "PYTHON_INCLUDE": sysconfig.get_path("include"),
            "MODULE_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
        }
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in settings.items()]
        for command in (configure, [cmake, "--build", str(build), "--target", "install"]):
            if subprocess.call(command):
                sys.exit("adapruner: building the native core failed; the messages above say where")


setup(ext_modules=[Extension("adapruner._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
