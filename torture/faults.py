"""Faults of the system at a chosen call: a kill, a full disk, a failing sync, a short write.

The library of faults.c must be loaded when the process starts, so :func:`with_faults` starts this
Python anew.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent / "build" / "torture" / "faults.so"
KILL, SHORT = -1, -2  # faults besides the numbers of errno


def build() -> Path:
    """Compile the library, if it is older than its source."""
    source = HERE / "faults.c"
    if not BUILT.exists() or BUILT.stat().st_mtime < source.stat().st_mtime:
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        made = BUILT.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-D_FORTIFY_SOURCE=0"]
        subprocess.run([*command, str(source), "-o", str(made), "-ldl"], check=True)
        made.replace(BUILT)
    return BUILT


def with_faults() -> None:
    """Start this program anew with the library loaded, unless it is loaded already."""
    if os.environ.get("LD_PRELOAD") != str(BUILT):
        environment = os.environ | {"LD_PRELOAD": str(build()), "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(BUILT))
    library.torture_calls.restype = ctypes.c_long
    library.torture_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    library.torture_jump.argtypes = [ctypes.c_long]
    return library


def arm(folder: Path, number: int, fault: int, lasting: bool = False) -> None:
    """Let call ``number`` (from 0) below ``folder`` fail in this process.

    Args:
        folder: a folder, as an absolute path without links.
        number: number of the call; below 0 for none, to count the calls.
        fault: ``KILL``, ``SHORT`` or a number of errno.
        lasting: whether all later calls fail too.
    """
    _library().torture_arm(os.fsencode(folder), number, fault, int(lasting))


def disarm() -> int:
    """End the faults. Returns the number of calls below the folder."""
    calls = int(_library().torture_calls())
    _library().torture_arm(b"", -1, 0, 0)
    return calls


def jump(seconds: int) -> None:
    """Move the clock of the day of this process."""
    _library().torture_jump(seconds)
