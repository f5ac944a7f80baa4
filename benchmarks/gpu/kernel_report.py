"""Registers, stack and shared memory of every CUDA kernel in the built library; no GPU is needed.

Ends with status 1 if a kernel keeps anything in local memory: registers that did not suffice, or an
array that is indexed by what the compiler cannot tell. Kernels for float64 (a template argument
``double``) may: they are there for checks.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  (its libraries are those of adapruner._C)

from adapruner import _C


class Use(NamedTuple):
    """Of one kernel on one architecture: registers per thread, bytes per thread and per block."""

    registers: int
    local: int
    shared: int


def find_cuobjdump() -> str | None:
    """That of the PATH, or the one that Triton carries."""
    triton = importlib.util.find_spec("triton")
    inside = Path(triton.origin or "").parent / "backends/nvidia/bin" if triton else None
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=inside)


def demangled(name: str) -> str:
    """``scale_gradient_kernel<Pack<float, 4>, float>`` of a symbol."""
    library = ctypes.CDLL(ctypes.util.find_library("stdc++"))
    library.__cxa_demangle.restype = ctypes.c_char_p
    plain = library.__cxa_demangle(name.encode(), None, None, None) or name.encode()
    text = re.sub(
        r"\(anonymous namespace\)::|adapruner::cuda::|adapruner::|^void ", "", plain.decode()
    )
    # Up to the parenthesis that opens the arguments of the function.
    depth = 0
    for i, character in enumerate(text):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return text[:i]
    return text


def parse(dump: str) -> dict[str, dict[str, Use]]:
    """Kernel and architecture to use, from ``cuobjdump --dump-resource-usage``."""
    found: dict[str, dict[str, Use]] = {}
    architecture = name = ""
    for line in dump.splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ").strip()
        elif line.lstrip().startswith("Function "):
            name = demangled(line.split()[1].rstrip(":"))
        elif line.lstrip().startswith("REG:"):
            use = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            kernel = found.setdefault(name, {})
            kernel[architecture] = Use(use["REG"], use["STACK"] + use["LOCAL"], use["SHARED"])
    return found


def is_hot(kernel: str) -> bool:
    return re.search(r"[<, ]double[>, ]", kernel) is None


def main() -> int:
    built = _C.build_info()
    if built["cuda"] is None:
        print(f"no CUDA kernels in this build: {built['no_cuda']}")
        return 0
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("cuobjdump was not found; it comes with Triton and with the CUDA toolkit")
        return 1
    command = [cuobjdump, "--dump-resource-usage", str(_C.__file__)]
    kernels = parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    named = {a for uses in kernels.values() for a in uses}
    architectures = sorted(named, key=lambda name: int(re.sub(r"\D", "", name)))
    print("registers/local bytes/shared bytes on " + ", ".join(architectures))
    spilling = []
    for name, uses in sorted(kernels.items()):
        columns = ("/".join(map(str, uses[a])) if a in uses else "-" for a in architectures)
        print("  ".join(f"{column:>11}" for column in columns), "", name)
        if is_hot(name) and any(use.local > 0 for use in uses.values()):
            spilling.append(name)
    print(f"{len(kernels)} kernels, {len(spilling)} hot ones in local memory")
    for name in spilling:
        print(f"local memory: {name}")
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
