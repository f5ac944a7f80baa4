"""The index of a WebDataset shard, read from the tar or from an index file.

The file has the format of DALI's ``wds2idx``, version 1.2: a line ``v1.2 N``, then one line for
each of the N samples, with ``EXTENSION OFFSET SIZE NAME`` for each component. White space in a name
is escaped, as in ``%20``. DALI stops after N lines. Two more lines are adapruner's: the size of the
shard with the column of the classes, and the class of every sample.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from adapruner._util.files import replace_atomically
from adapruner.data.sources.base import IntArray
from adapruner.data.sources.tar_members import BLOCK, Shard, walk
from adapruner.errors import UnreachableError

CLASS = "cls"
UNKNOWN = -1  # the class is missing, or is not a whole number

_VERSION = b"v1.2"
_TRAILER = b"# adapruner 1 shard-bytes"
_SPACE = re.compile(rb"[ \t\n\v\f\r]")
_WHOLE_NUMBER = re.compile(rb"\s*(\d{1,9})\s*")
_LONGEST_CLASS, _LONGEST_JSON = 64, 1 << 20  # bytes


class IndexMismatchError(ValueError):
    """A file is not an index, or does not belong to its shard."""


class ClassColumn(NamedTuple):
    """The component that holds the class of a sample.

    As text: "cls" for a component, "json:label" for the value of a key in a JSON object.
    """

    extension: str
    key: str | None = None

    @classmethod
    def of(cls, text: str) -> ClassColumn:
        """Parse EXTENSION or EXTENSION:KEY.

        Raises:
            ValueError: a part is empty, or an index file could not hold the key.
        """
        extension, colon, key = text.partition(":")
        if colon and (not extension or not key or key != " ".join(key.split())):
            raise ValueError(
                f"a class in JSON must be EXTENSION:KEY, such as json:label; found {text!r}"
            )
        return cls(extension.lower(), key if colon else None)

    def __str__(self) -> str:
        return self.extension if self.key is None else f"{self.extension}:{self.key}"

    def describe(self) -> str:
        """The component as words for a message."""
        under = "" if self.key is None else f" under the key {self.key!r}"
        return f"component {self.extension} that holds a whole number{under}"

    @property
    def longest(self) -> int:
        """The most bytes that the component may have."""
        return _LONGEST_CLASS if self.key is None else _LONGEST_JSON

    def number(self, content: bytes) -> int:
        """The class in the bytes of the component, or ``UNKNOWN``."""
        if self.key is not None:
            try:
                found = json.loads(content)
            except (ValueError, RecursionError):
                return UNKNOWN
            # A class is a whole number, or text that spells a whole number.
            value = found.get(self.key) if isinstance(found, dict) else None
            content = str(value).encode(errors="replace") if type(value) in (int, str) else b""
        match = _WHOLE_NUMBER.fullmatch(content)
        return UNKNOWN if match is None else int(match[1])


class Component(NamedTuple):
    """A member of a tar: its extension, its byte range and its full name."""

    extension: str
    offset: int
    size: int
    name: bytes


@dataclass
class ShardIndex:
    """The samples of one shard.

    Attributes:
        lines: the line of each sample in the index file.
        classes: class of every sample, int64; ``UNKNOWN`` if it has none. None if the index file
            has no classes.
        column: the column of the classes.
        damage: why the shard could not be read to its end, or None.
    """

    lines: list[bytes] = field(default_factory=list)
    classes: IntArray | None = None
    column: str = CLASS
    damage: str | None = None

    def components(self, sample: int) -> list[Component]:
        """The members of ``sample``."""
        return parse_line(self.lines[sample])


def parse_line(line: bytes) -> list[Component]:
    """The components of one sample.

    Raises:
        ValueError: the line is not a list of ``EXTENSION OFFSET SIZE NAME``.
    """
    fields = line.split()
    if not fields or len(fields) % 4:
        raise ValueError("expected EXTENSION OFFSET SIZE NAME for each component")
    components = [
        Component(os.fsdecode(extension), int(offset), int(size), name)
        for extension, offset, size, name in zip(*[iter(fields)] * 4, strict=True)
    ]
    if any(c.offset % BLOCK or c.offset < BLOCK or c.size < 0 for c in components):
        raise ValueError(f"offsets must be multiples of {BLOCK} above 0, sizes at least 0")
    return components


def scan(shard: Shard, column: str = CLASS) -> ShardIndex:
    """Read the headers and the classes of a tar in one pass.

    The index of a broken shard has the samples before the damage, and ``damage`` says what is
    wrong. A component is a regular file. Its name has an extension and does not start with a dot.
    The components of a sample are neighbours with equal names up to the first dot.

    Args:
        shard: the shard, by its path or as an open file.
        column: the column of the class, as in :class:`ClassColumn`.

    Raises:
        UnreachableError: the store of the shard did not answer.
    """
    index, classes = ShardIndex(column=column), []
    try:
        members = list(_members(shard, ClassColumn.of(column)))
    except _Damage as damage:
        members, index.damage = damage.members, str(damage)
    for _, sample in groupby(members, key=lambda member: member.key):
        parts = list(sample)
        index.lines.append(b" ".join(part.text for part in parts))
        known = [part.number for part in parts if part.number is not None]
        classes.append(known[0] if len(known) == 1 else UNKNOWN)
    index.classes = np.array(classes, dtype=np.int64)
    return index


class _Member(NamedTuple):
    key: bytes
    text: bytes  # its part of the line in the index
    number: int | None  # the class that it holds


class _Damage(Exception):
    def __init__(self, reason: str, members: list[_Member]) -> None:
        super().__init__(reason)
        self.members = members


def _members(shard: Shard, column: ClassColumn) -> Iterator[_Member]:
    found: list[_Member] = []
    try:
        for info, handle in walk(shard):
            member = _member(info, handle, column)
            if member is not None:
                found.append(member)
    except UnreachableError:
        raise
    except OSError as error:
        raise _Damage(str(error), found) from error
    return iter(found)


def _member(info: tarfile.TarInfo, handle: Any, column: ClassColumn) -> _Member | None:
    folder, slash, name = info.name.encode("utf-8", "surrogateescape").rpartition(b"/")
    stem, _, extension = name.partition(b".")
    if not stem or not extension:
        return None
    extension = _escaped(extension)
    number = None
    if extension.lower() == os.fsencode(column.extension):
        small = info.size <= column.longest
        number = column.number(handle.read(info.size)) if small else UNKNOWN
    text = b"%s %d %d %s" % (
        extension,
        info.offset_data,
        info.size,
        _escaped(folder + slash + name),
    )
    return _Member(folder + slash + stem, text, number)


def _escaped(name: bytes) -> bytes:
    return _SPACE.sub(lambda space: b"%%%02X" % ord(space[0]), name)


def write_index(
    path: str | os.PathLike[str], index: ShardIndex, shard_bytes: int | None = None
) -> None:
    """Write ``index`` to a file, atomically. ``shard_bytes`` adds the two lines of adapruner.

    Raises:
        ValueError: there is no sample. DALI refuses an empty index.
        OSError: the file cannot be written.
    """
    if not index.lines:
        raise ValueError(
            f"cannot write {os.fspath(path)}: expected at least one sample; found none"
        )
    content = index_content(index, shard_bytes)
    replace_atomically(path, lambda temporary: _write_bytes(temporary, content))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def index_content(index: ShardIndex, shard_bytes: int | None) -> bytes:
    """The content of an index file. ``shard_bytes`` adds the two lines of adapruner."""
    lines = [b"%s %d" % (_VERSION, len(index.lines)), *index.lines]
    if shard_bytes is not None and index.classes is not None:
        lines.append(b"%s %d %s" % (_TRAILER, shard_bytes, os.fsencode(index.column)))
        lines.append(b" ".join(b"%d" % number for number in index.classes.tolist()))
    return b"\n".join(lines) + b"\n"


def read_index(path: str | os.PathLike[str], shard: str | os.PathLike[str]) -> ShardIndex:
    """Read the index file of ``shard`` and check that the two belong together.

    The size of the shard and the headers of the first and last sample must fit. If the index is
    older than the shard, all headers are compared. Other headers are checked when samples are read.

    Raises:
        IndexMismatchError: the file is not an index, or not of this shard. The message says why.
        OSError: the index or the shard cannot be opened.
    """
    name = os.fspath(path)
    index, shard_bytes = parse_index(Path(path).read_bytes(), name)
    with open(shard, "rb") as handle:
        status = os.fstat(handle.fileno())
        check_index(index, shard_bytes, name, handle, status.st_size)
    if status.st_mtime_ns > os.stat(path).st_mtime_ns:
        with _mismatch_named(name, os.fspath(shard)):
            _compare_headers(index, shard)
    return index


def parse_index(content: bytes, name: str) -> tuple[ShardIndex, int | None]:
    """The index in the content of an index file, and the size that it states for its shard.

    Raises:
        IndexMismatchError: the content is not an index. The message has ``name``.
    """
    *lines, cut = content.split(b"\n")
    lines = lines or [cut]  # a last line without a line feed is cut off
    head = lines[0].split()
    if len(head) != 2 or head[0] != _VERSION or not head[1].isdigit():
        raise IndexMismatchError(
            f"{name} is not an index of a shard: it must start with "
            f"{_VERSION.decode()!r} and the number of samples; found {lines[0][:40]!r}"
        )
    count = int(head[1])
    index, rest = ShardIndex(lines[1 : 1 + count]), lines[1 + count :]
    if len(index.lines) < count or not count:
        raise IndexMismatchError(
            f"{name} is cut off: expected {count} lines; found {len(index.lines)}"
        )
    if len(rest) < 2 or not rest[0].startswith(_TRAILER):
        return index, None
    try:
        index.classes = np.array(rest[1].split(), dtype=np.int64)
        size, _, column = rest[0].removeprefix(_TRAILER).strip().partition(b" ")
        shard_bytes, index.column = int(size), os.fsdecode(column) or CLASS
    except (ValueError, OverflowError) as error:
        raise IndexMismatchError(f"{name} is broken at its end: {error}") from error
    if len(index.classes) != count or (index.classes < UNKNOWN).any():
        raise IndexMismatchError(
            f"{name} is broken at its end: expected {count} classes from {UNKNOWN} up; "
            f"found {index.classes.tolist()[:8]} of length {len(index.classes)}"
        )
    return index, shard_bytes


def check_index(
    index: ShardIndex, shard_bytes: int | None, name: str, shard: BinaryIO, size: int
) -> None:
    """Check that an index belongs to a shard of ``size`` bytes, by its first and last sample.

    Args:
        index: the index.
        shard_bytes: the size that the index states for its shard, or None.
        name: the name of the index file.
        shard: the open shard.
        size: the size of the shard.

    Raises:
        IndexMismatchError: it does not. The message says why.
    """
    with _mismatch_named(name, shard.name):
        if shard_bytes not in (None, size):
            raise IndexMismatchError(f"expected a shard of {shard_bytes} bytes; found {size} bytes")
        for sample in (0, len(index.lines) - 1):
            try:
                components = index.components(sample)
            except ValueError as error:
                raise IndexMismatchError(f"line {sample + 2}: {error}") from error
            for component in components:
                if component.offset > size:
                    raise IndexMismatchError("the shard ends before a range of the index")
                shard.seek(component.offset - BLOCK)
                block = shard.read(BLOCK)
                check_header(block, component.size)
                _check_name(block, component.name)


@contextmanager
def _mismatch_named(name: str, shard: str) -> Iterator[None]:
    try:
        yield
    except IndexMismatchError as error:
        raise IndexMismatchError(
            f"the index {name} does not belong to {shard}: {error}; make a new index with: "
            "adapruner index"
        ) from error


def check_header(block: bytes, size: int) -> None:
    """Raise IndexMismatchError unless ``block`` is a header of a regular file of ``size`` bytes.

    Size and type are cheap to check, and a block that is not a header has other bytes there.
    """
    if len(block) < BLOCK:
        raise IndexMismatchError("the shard ends before a range of the index")
    stated = block[124:136].strip(b" \0")
    if block[156:157] not in (b"0", b"\0", b"7") or (stated.isdigit() and int(stated, 8) != size):
        raise IndexMismatchError("a range of the index is not a member of the shard")


def _check_name(block: bytes, name: bytes) -> None:
    """Check a name that the header holds. Longer names are in an earlier block, unchecked."""
    found = block[:100].rstrip(b"\0")
    if block[257:263] == b"ustar\0" and block[345] and found:
        found = block[345:500].rstrip(b"\0") + b"/" + found
    if name.isascii() and len(name) < 100 and _escaped(found) != name:
        raise IndexMismatchError(f"expected the member {name!r}; found {found!r}")


def _compare_headers(index: ShardIndex, shard: str | os.PathLike[str]) -> None:
    found = scan(shard, index.column)
    known = dict(zip(found.lines, found.classes.tolist(), strict=True))  # type: ignore[union-attr]
    classes = [UNKNOWN] * len(index.lines) if index.classes is None else index.classes.tolist()
    for line, number in zip(index.lines, classes, strict=True):
        if line not in known or (index.classes is not None and known[line] != number):
            raise IndexMismatchError("the shard has changed since the index was made")
