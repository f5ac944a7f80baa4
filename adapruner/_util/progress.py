"""Progress on standard error, which must never end a run."""

from __future__ import annotations

import contextlib
import sys

from tqdm.auto import tqdm


def tell(text: str) -> None:
    """Write a line to standard error, above a progress bar.

    A reader that went away, a terminal that hung up or a full disk is no reason to lose a run, so
    errors of the stream are ignored.
    """
    if sys.stderr is None:  # the process was started without one
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        tqdm.write(text, file=sys.stderr)


def bar_is_shown(wanted: bool) -> bool:
    """Whether to show a progress bar: only where it is wanted and standard error is a terminal."""
    try:
        return wanted and sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # the stream is closed
        return False
