"""Where shards lie: files of this machine, or an object store (:mod:`~.remote`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from adapruner._util.retry import read_twice
from adapruner.data.sources.base import Location
from adapruner.data.sources.shard_index import (
    CLASS,
    IndexMismatchError,
    ShardIndex,
    check_header,
    read_index,
    scan,
)
from adapruner.data.sources.tar_members import BLOCK

_OPEN_FILES = 64

_Answer = TypeVar("_Answer")


class Store(Protocol):
    """Shards by name, and the bytes in them.

    Attributes:
        reads_many: whether :meth:`read_members` is faster for many members than for one at a time.
    """

    reads_many: bool

    def size(self, shard: str) -> int:
        """Bytes of a shard."""

    def version(self, shard: str) -> str:
        """What tells two contents of a shard apart, beside its index; "" where nothing does."""

    def open(self, shard: str) -> BinaryIO:
        """A shard as a file that can seek. Its ``name`` is the shard."""

    def open_index(
        self, shard: str, folder: str | os.PathLike[str] | None, column: str
    ) -> ShardIndex:
        """The index of a shard, from its index file or else from its headers.

        The classes in an index file can come from another column than ``column``. A shard that
        cannot be opened has an index without samples. Its ``damage`` says why.

        Raises:
            FileNotFoundError: the shard is missing.
            IndexMismatchError: the index file does not belong to the shard.
        """

    def read_members(self, places: Sequence[Location]) -> list[bytes | OSError]:
        """The contents of tar members, each after a check of its header, or why it is unreadable.

        Raises:
            UnreachableError: the store did not answer.
        """

    def each(self, call: Callable[[Any], _Answer], items: Iterable[Any]) -> Iterator[_Answer]:
        """``call`` of each item, in order; at the same time where the store gains by it."""

    def bytes_read(self) -> int | None:
        """Bytes fetched so far, with all worker processes; None where they are not counted."""


class FileStore:
    """Shards that are files. They stay open for the next read."""

    reads_many = False

    def __init__(self) -> None:
        # lru_cache is safe for threads. A file that it drops closes after its last read.
        self._file = lru_cache(_OPEN_FILES)(_OpenFile)

    def size(self, shard: str) -> int:
        return os.path.getsize(shard)

    def version(self, shard: str) -> str:
        return ""

    def open(self, shard: str) -> BinaryIO:
        return open(shard, "rb")

    def open_index(
        self, shard: str, folder: str | os.PathLike[str] | None = None, column: str = CLASS
    ) -> ShardIndex:
        if not os.path.exists(shard):
            raise FileNotFoundError(f"no such shard: {shard}")
        if not os.path.isfile(shard):  # opening a pipe would block
            return ShardIndex(damage=f"{shard} is not a regular file")
        file = index_path(shard, folder)
        if not file.is_file():
            return scan(shard, column)
        try:
            return read_index(file, shard)
        except OSError as error:
            return ShardIndex(damage=str(error))

    def read_members(self, places: Sequence[Location]) -> list[bytes | OSError]:
        return [self._attempt(place) for place in places]

    def each(self, call: Callable[[Any], _Answer], items: Iterable[Any]) -> Iterator[_Answer]:
        return map(call, items)

    def bytes_read(self) -> int | None:
        return None

    def _attempt(self, place: Location) -> bytes | OSError:
        try:
            return read_twice(lambda: self._read(place))
        except OSError as error:
            return error

    def _read(self, place: Location) -> bytes:
        path, offset, size = place
        assert size is not None
        file = self._file(path)
        # pread does not move the position of a file that other processes share.
        try:
            content = os.pread(file.descriptor, BLOCK + size, offset - BLOCK)
        except OSError as error:  # it does not have the path
            raise OSError(error.errno, f"{error.strerror} at byte {offset}", path) from error
        return member_content(content, place)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a spawned process opens its own files


class _OpenFile:
    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def member_content(found: bytes, place: Location) -> bytes:
    """The content of the member at ``place``, from its header and content.

    Raises:
        OSError: the bytes are not this member. The message has the shard.
    """
    path, offset, size = place
    assert size is not None
    try:
        check_header(found[:BLOCK], size)
    except IndexMismatchError as error:
        raise OSError(f"cannot read {path} at byte {offset}: {error}") from error
    if len(found) < BLOCK + size:
        raise OSError(f"cannot read {path} at byte {offset}: the file ends within the sample")
    return found[BLOCK:]


def index_path(shard: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path:
    """The path of the index of ``shard``: ``NAME.idx`` beside the shard, or in ``folder``."""
    path = Path(shard).with_suffix(".idx")
    return path if folder is None else Path(folder) / path.name
