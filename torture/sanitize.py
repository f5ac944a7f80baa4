"""torture.native under AddressSanitizer and UndefinedBehaviorSanitizer, on a build of its own.

``make sanitize`` makes the build: the package in build/sanitize, with a native library that the
compiler has instrumented. ThreadSanitizer is left out: torch and libgomp are not instrumented, so
it would report every parallel loop. Instead, torture.native compares the bits of 1 to 16 threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "sanitize"
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")


def command(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command that runs torture.native on the instrumented library, and its environment.

    Raises:
        FileNotFoundError: there is no such build.
    """
    if not list(BUILT.glob("adapruner/_C*.so")):
        raise FileNotFoundError(f"no build in {BUILT}; make it with: make sanitize")
    compiler = os.environ.get("CXX", "c++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in LIBRARIES
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(found),
        "PYTHONPATH": os.pathsep.join([str(BUILT), str(ROOT)]),
        # Python and torch keep memory until the end, and torch's own allocator is not looked at.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_abort=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "TORTURE_SANITIZERS": "address, undefined",
    }
    # -P: the folder at hand, which has the plain build, stays out of the path.
    return [sys.executable, "-P", "-m", "torture.native", *arguments], environment


if __name__ == "__main__":
    call, environment = command(sys.argv[1:])
    sys.exit(subprocess.call(call, env=environment, cwd=BUILT))
