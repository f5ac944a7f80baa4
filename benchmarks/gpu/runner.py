"""Run a command within a number of seconds, and leave nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GRACE = 3.0  # seconds between asking a process to end and killing it


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        status: its exit status, minus the signal that ended it, or None where its time ran out.
        seconds: how long it ran.
        output: what it wrote to stdout and stderr.
    """

    status: int | None
    seconds: float
    output: str


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's, with the modules of the repository and of its tests importable."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | dict(variables)


def run(
    command: Sequence[str], seconds: float, log: Path, variables: Mapping[str, str] | None = None
) -> Ended:
    """Run ``command`` in the root of the repository for at most ``seconds``.

    Its output is appended to ``log`` as it comes. The command leads a process group of its own.
    The whole group is ended when the command ends, when its time runs out, and when this process is
    interrupted, so that no compiler, pytest worker or program under a sanitizer runs on.
    """
    with log.open("ab") as file:
        file.write(f"\n=== {' '.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(variables or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_group(process)
        took = time.monotonic() - start
    with log.open("rb") as file:
        file.seek(begin)
        output = file.read().decode(errors="replace")
    return Ended(status, took, output)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process group: it is asked to end, and killed where it does not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        end = time.monotonic() + GRACE
        while _has_members(process) and time.monotonic() < end:
            time.sleep(0.02)
    process.wait()


def _has_members(process: subprocess.Popen[bytes]) -> bool:
    """Whether the group has members. Its leader is collected where it has ended."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
