"""Registers, memory and byte-wide loads of every CUDA kernel that was built; no GPU is needed.

Ends with status 1 for a hot kernel that has one of these faults:

- It keeps something in local memory: registers that did not suffice, or an array whose index the
  compiler does not know.
- It loads eight bytes at consecutive addresses, one at a time: a double or an int64 that the
  compiler has taken to be unaligned. Kernels that read ages, masks, labels or flags have single
  byte-wide loads, or up to four in a row where a loop over bytes is unrolled; these are in order.

Kernels for float64 (a template argument ``double``) are not hot: they are there for checks.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  (its libraries are those of adapruner._C)

from adapruner import _C

TORN = 8  # byte-wide loads in a row that read one number

Kernels = dict[str, dict[str, "Use"]]  # kernel and architecture


class Use(NamedTuple):
    """What one kernel uses on one architecture.

    Attributes:
        registers: per thread.
        local: bytes per thread.
        shared: bytes per block.
        byte_loads: byte-wide load instructions.
        torn: of these, the most at consecutive addresses.
    """

    registers: int
    local: int
    shared: int
    byte_loads: int = 0
    torn: int = 0


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


def parse_usage(dump: str) -> Kernels:
    """The numbers of ``cuobjdump --dump-resource-usage``."""
    found: Kernels = {}
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


# LDG.E.U8 R5, desc[UR4][R2.64+0x7] and its like: global, shared or any memory, not constants.
BYTE_LOAD = re.compile(r"\bLD[GS]?\.(?:\w+\.)*?[US]8\b[^;]*\[([^\]]*?)\+?(-?0x\w+)?\] ?;")


def parse_byte_loads(lines: Iterable[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """Byte-wide loads of ``cuobjdump -sass``: their number, and the most in a row."""
    offsets: dict[tuple[str, str], dict[str, list[int]]] = {}
    architecture = name = ""
    for line in lines:
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ").strip()
        elif "Function : " in line:
            name = demangled(line.split()[-1])
        elif load := BYTE_LOAD.search(line):
            of_kernel = offsets.setdefault((name, architecture), {})
            of_kernel.setdefault(load[1], []).append(int(load[2] or "0", 16))
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for (kernel, of), bases in offsets.items():
        total = sum(map(len, bases.values()))
        found.setdefault(kernel, {})[of] = total, max(map(longest_run, bases.values()))
    return found


def longest_run(offsets: Iterable[int]) -> int:
    """How many of the numbers follow one another, at most."""
    there = set(offsets)
    runs = [0]
    for first in there:
        if first - 1 not in there:
            length = next(i for i in itertools.count() if first + i not in there)
            runs.append(length)
    return max(runs)


def is_hot(kernel: str) -> bool:
    return re.search(r"[<, ]double[>, ]", kernel) is None


def main() -> int:
    built = _C.build_info()
    if built["cuda"] is None:
        print(
            f"this build has no CUDA kernels ({built['no_cuda']}); build them with: "
            "make cuda-report CUDA=on"
        )
        return 0
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("cuobjdump was not found; it comes with Triton and with the CUDA toolkit")
        return 1
    kernels = read_kernels(cuobjdump, str(_C.__file__))
    named = {a for uses in kernels.values() for a in uses}
    architectures = sorted(named, key=lambda name: int(re.sub(r"\D", "", name)))
    print("registers/local bytes/shared bytes/byte-wide loads on " + ", ".join(architectures))
    for name, uses in sorted(kernels.items()):
        columns = ("/".join(map(str, uses[a][:4])) if a in uses else "-" for a in architectures)
        print("  ".join(f"{column:>14}" for column in columns), "", name)
    faults = find_faults(kernels)
    print(f"{len(kernels)} kernels, {len(faults)} faults of hot ones")
    for fault in faults:
        print(fault)
    return 1 if faults or not kernels else 0


def read_kernels(cuobjdump: str, library: str) -> Kernels:
    """What every kernel of a library uses, on every architecture."""

    def dump(option: str) -> str:
        command = [cuobjdump, option, library]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    kernels = parse_usage(dump("--dump-resource-usage"))
    for name, loads in parse_byte_loads(dump("-sass").splitlines()).items():
        for architecture, (total, torn) in loads.items():
            use = kernels[name][architecture]
            kernels[name][architecture] = use._replace(byte_loads=total, torn=torn)
    return kernels


def find_faults(kernels: Kernels) -> list[str]:
    """A sentence for each fault of a hot kernel on an architecture."""
    faults = []
    for name, uses in sorted(kernels.items()):
        for architecture, use in uses.items():
            if not is_hot(name):
                continue
            if use.local > 0:
                faults.append(f"{architecture}: {use.local} bytes of local memory: {name}")
            if use.torn >= TORN:
                faults.append(f"{architecture}: {use.torn} byte-wide loads in a row: {name}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
