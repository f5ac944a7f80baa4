"""Output of the command."""

from __future__ import annotations

import sys
from typing import TextIO

from adapruner.cli.launch import rank


def say(text: str) -> None:
    """Print to standard output. Characters that its encoding lacks are escaped."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print one line to standard error, with the name of the command and the rank in front."""
    who = "adapruner: " if rank() is None else f"adapruner: rank {rank()}: "
    _write(who + " ".join(text.splitlines()), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    # A file name may not be valid UTF-8. Printing it must not end the run.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
