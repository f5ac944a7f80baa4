"""A folder that only one run uses at a time."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapruner.errors import FolderInUseError

LOCK_NAME = ".adapruner.lock"

# The system's locks belong to a process, so they do not part two threads of one process. Closing
# any descriptor of a locked file would also free its lock, so no thread opens a file listed here.
_held: set[tuple[int, int]] = set()
_guard = threading.Lock()


def _forget() -> None:
    """A forked process holds no lock, and has no other thread."""
    global _guard
    _guard = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of ``folder`` until the end of the block.

    The lock is a POSIX lock on a file in the folder, which holds the number and the machine of the
    process. The system frees the lock when the process ends, in whatever way, so the file of a
    killed process stops nobody. Processes that were forked from the holder do not hold the lock.

    Raises:
        FolderInUseError: another process or thread holds the lock. The message names the process.
        OSError: the file cannot be made in ``folder``.

    Warns:
        UserWarning: the file system has no locks.
    """
    status = os.stat(folder)
    identity = status.st_dev, status.st_ino
    with _guard:
        if identity in _held:
            raise _in_use(folder, "another thread of this process")
        descriptor = _take(Path(folder) / LOCK_NAME, folder)
        _held.add(identity)
    try:
        yield
    finally:
        with _guard:
            _held.discard(identity)
            # Removed before it is unlocked; a process that waits for it sees that and starts anew.
            Path(folder, LOCK_NAME).unlink(missing_ok=True)
            os.close(descriptor)


def _take(path: Path, folder: str | os.PathLike[str]) -> int:
    """The descriptor of the locked file ``path``."""
    while True:
        # O_NOFOLLOW: the file is written to, and a link could lead anywhere.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            if _lock(descriptor, folder) and not _is_at(descriptor, path):
                os.close(descriptor)  # removed by a run that has just ended
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _lock(descriptor: int, folder: str | os.PathLike[str]) -> bool:
    """Lock the file. False, with a warning, if its file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
        holder = os.pread(descriptor, 200, 0).decode(errors="replace")
        raise _in_use(folder, holder or "another process") from None
    except OSError as error:
        warnings.warn(
            f"{os.fspath(folder)} cannot be locked ({error.strerror}); make sure that no other run "
            "uses it",
            stacklevel=5,
        )
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _in_use(folder: str | os.PathLike[str], holder: str) -> FolderInUseError:
    return FolderInUseError(
        f"{os.fspath(folder)} is in use: expected a folder that no other run writes checkpoints "
        f"to; found the lock of {holder}"
    )
