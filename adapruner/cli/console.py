"""What the command prints, and where."""

from __future__ import annotations

import sys
from typing import TextIO


def say(text: str) -> None:
    """Print to standard output, whatever characters its encoding lacks."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print as one line to standard error, after the command's name."""
    _write("adapruner: " + " ".join(text.splitlines()), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    # A file name need not be valid UTF-8, and no run is to fail for printing one.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
