"""A second try for reads that can fail by chance."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

_Read = TypeVar("_Read")

# A network disk that was away for a moment, or too many files open at this moment.
PASSING = frozenset((errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EMFILE, errno.ENFILE))
PAUSE = 0.1  # seconds


def read_twice(read: Callable[[], _Read]) -> _Read:
    """The value of ``read()``. It is called once more if its error is in ``PASSING``.

    Raises:
        OSError: the second call failed too. For too many open files, the message has a hint.
    """
    try:
        return read()
    except OSError as error:
        if error.errno not in PASSING:
            raise
    time.sleep(PAUSE)
    try:
        return read()
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        hint = "too many open files; raise the limit (ulimit -n) or use fewer workers"
        raise OSError(error.errno, hint, error.filename) from error
