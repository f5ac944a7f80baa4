"""Output of the command."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import TextIO

from adapruner.cli.launch import rank

# Control characters but the line feed, and marks that turn the direction of text. A terminal obeys
# them, and a name of a file or a class can hold them.
_COMMANDS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def say(text: str) -> None:
    """Print to standard output. Characters that its encoding lacks are escaped."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print one line to standard error, with the name of the command and the rank in front."""
    who = "adapruner: " if rank() is None else f"adapruner: rank {rank()}: "
    _write(who + " ".join(text.splitlines()), sys.stderr)


def without_commands(text: str) -> str:
    """``text`` with the characters escaped that a terminal would obey."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _write(text: str, stream: TextIO | None) -> None:
    if stream is None:  # the process was started without one
        return
    text = without_commands(text)
    try:
        # A file name may not be valid UTF-8. Printing it must not end the run.
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (OSError, ValueError):  # ValueError: the stream is closed
        # The reader went away, as in "adapruner info | head -1". The work goes on, in silence.
        # Python would complain at the end of the process if the text could not be flushed then.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())
