"""New processes that can import the tests' modules."""

from __future__ import annotations

import os
import socket
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


def run_ranks(script: str, *arguments: str, folder: Path, ranks: int | None = 2) -> None:
    """Run a script as the ranks of a torch.distributed run, in ``folder``. None may fail.

    Args:
        ranks: number of processes; None for one process, which starts the others itself.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = f"{TESTS.parent}{os.pathsep}{TESTS}"
    given = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
    given["MASTER_ADDR"] = "127.0.0.1"
    own: list[dict[str, str]] = [{}]
    if ranks is not None:
        own = [
            {"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            for rank in range(ranks)
        ]
    started = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env=given | settings,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for settings in own
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(errors)
