"""What an epoch takes besides time: bytes read, as the kernel counts them, and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from adapruner.data.sources.base import Source


def processes() -> Iterator[Path]:
    """The folders in /proc of this process and its children."""
    own = Path("/proc/self").resolve()
    yield own
    for task in (own / "task").iterdir():
        with suppress(OSError):  # a thread that ended meanwhile
            for child in (task / "children").read_text().split():
                yield Path("/proc") / child


def memory() -> int:
    """Bytes of memory held, what processes share counted once."""
    return sum(_number(process / "smaps_rollup", "Pss:") * 1024 for process in processes())


def bytes_read(source: Source, epoch: Callable[[], int]) -> tuple[int, dict[str, int]]:
    """What an epoch gives and reads: from the "disk", its files not being in the page cache, and by
    "calls" of read.

    What is mapped into memory is read without calls; reading ahead is the kernel's own choice.
    """
    _forget(source)
    before = {name: _counted(field) for name, field in _COUNTERS.items()}
    images = epoch()
    return images, {name: _counted(field) - before[name] for name, field in _COUNTERS.items()}


_COUNTERS = {"disk": "read_bytes:", "calls": "rchar:"}


def _counted(field: str) -> int:
    return sum(_number(process / "io", field) for process in processes())


def _number(path: Path, field: str) -> int:
    return int(path.read_text().split(field)[1].split()[0])


def _forget(source: Source) -> None:
    """Have the files of ``source`` leave the page cache."""
    root = Path(source.root)
    for path in [*root.rglob("*"), *root.parent.glob(f"{root.name}.*")]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
