"""Where the samples of a WebDataset shard lie: DALI's text index, read from a tar or from a file.

The format is the one of DALI's ``wds2idx``, version 1.2: a line ``v1.2 N``, then N lines, one per
sample, with ``EXTENSION OFFSET SIZE NAME`` for each of its components. White space in a name would
break it and is written as ``%20`` and the like. DALI reads no further than N lines; two more hold
what only adapruner asks for: the size of the shard, and the class of every sample, with the column
that it comes from.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adapruner._util.files import replace_atomically
from adapruner.data.sources.base import IntArray

BLOCK = 512  # of a tar: a header takes one, and what follows it a whole number of them
CLASS = "cls"
UNKNOWN = -1  # a class that is missing, or not a whole number

_VERSION = b"v1.2"
_TRAILER = b"# adapruner 1 shard-bytes"
_SPACE = re.compile(rb"[ \t\n\v\f\r]")
_WHOLE_NUMBER = re.compile(rb"\s*(\d{1,9})\s*")
_LONGEST_CLASS, _LONGEST_JSON = 64, 1 << 20  # bytes


class IndexMismatchError(ValueError):
    """An index is not one, or does not belong to its shard."""


class ClassColumn(NamedTuple):
    """Where the class of a sample stands: in the component of an extension.

    As text, "cls", or "json:label" for what stands in the object of a JSON file under a key.
    """

    extension: str
    key: str | None = None

    @classmethod
    def of(cls, text: str) -> ClassColumn:
        """The column that ``text`` says.

        Raises:
            ValueError: the key is none that an index can name.
        """
        extension, colon, key = text.partition(":")
        if colon and (not extension or not key or key != " ".join(key.split())):
            raise ValueError(
                f"a class in JSON is EXTENSION:KEY, such as json:label; found {text!r}"
            )
        return cls(extension.lower(), key if colon else None)

    def __str__(self) -> str:
        return self.extension if self.key is None else f"{self.extension}:{self.key}"

    def describe(self) -> str:
        """What a sample must have."""
        under = "" if self.key is None else f" under the key {self.key!r}"
        return f"component {self.extension} that holds a whole number{under}"

    @property
    def longest(self) -> int:
        """Bytes of a component beyond which it is not looked at."""
        return _LONGEST_CLASS if self.key is None else _LONGEST_JSON

    def number(self, content: bytes) -> int:
        """The class that a component spells, ``UNKNOWN`` where it spells none."""
        if self.key is not None:
            try:
                found = json.loads(content)
            except (ValueError, RecursionError):
                return UNKNOWN
            # A whole number, or one as text; what else there may be is no class.
            value = found.get(self.key) if isinstance(found, dict) else None
            content = str(value).encode(errors="replace") if type(value) in (int, str) else b""
        match = _WHOLE_NUMBER.fullmatch(content)
        return UNKNOWN if match is None else int(match[1])


class Component(NamedTuple):
    """A member of a tar: the part after the dot of its name, and where its bytes lie."""

    extension: str
    offset: int
    size: int
    name: bytes


@dataclass
class ShardIndex:
    """The samples of one shard.

    Attributes:
        lines: one per sample, as the index file has them.
        classes: of every sample, int64, ``UNKNOWN`` where there is none; None where it takes
            reading the shard.
        column: where the classes were found.
        damage: why the shard could not be read to its end, else None.
    """

    lines: list[bytes] = field(default_factory=list)
    classes: IntArray | None = None
    column: str = CLASS
    damage: str | None = None

    def components(self, sample: int) -> list[Component]:
        """The members that make up ``sample``."""
        return parse_line(self.lines[sample])


def parse_line(line: bytes) -> list[Component]:
    """The components of one sample.

    Raises:
        ValueError: the line is no list of ``EXTENSION OFFSET SIZE NAME``.
    """
    fields = line.split()
    if not fields or len(fields) % 4:
        raise ValueError("a sample needs EXTENSION OFFSET SIZE NAME for each of its components")
    components = [
        Component(os.fsdecode(extension), int(offset), int(size), name)
        for extension, offset, size, name in zip(*[iter(fields)] * 4, strict=True)
    ]
    if any(c.offset % BLOCK or c.offset < BLOCK or c.size < 0 for c in components):
        raise ValueError(f"an offset must be a multiple of {BLOCK} above 0, a size not negative")
    return components


def scan(path: str | os.PathLike[str], column: str = CLASS) -> ShardIndex:
    """Read the headers of a tar, in one pass, and the classes on the way.

    A shard that is cut off or otherwise broken gives the samples up to there, and ``damage``.
    Members that are no plain files, hidden, or without an extension are no components. Those of a
    sample stand next to each other and are called alike up to the first dot.

    Args:
        path: the shard.
        column: where the class stands, as a :class:`ClassColumn` says it.
    """
    index, classes = ShardIndex(column=column), []
    try:
        members = list(_members(path, ClassColumn.of(column)))
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
    text: bytes  # as the index has it
    number: int | None  # the class that it holds


class _Damage(Exception):
    def __init__(self, reason: str, members: list[_Member]) -> None:
        super().__init__(reason)
        self.members = members


def _members(path: str | os.PathLike[str], column: ClassColumn) -> Iterator[_Member]:
    found: list[_Member] = []
    try:
        for info, handle in walk(path):
            member = _member(info, handle, column)
            if member is not None:
                found.append(member)
    except OSError as error:
        raise _Damage(str(error), found) from error
    return iter(found)


def walk(path: str | os.PathLike[str]) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """The plain files of a tar, each with the open shard, which stands at the file's first byte.

    Iterating a ``TarFile`` would take a broken header for the end, and say nothing.

    Raises:
        OSError: it cannot be opened, is no tar, or breaks off; the message has ``path``.
    """
    shard, length, offset = os.fspath(path), os.path.getsize(path), 0
    try:
        # Neither compressed nor extracted: ranges of bytes are read, nothing else.
        with tarfile.open(shard, "r:", encoding="utf-8") as tar:
            handle = tar.fileobj
            assert handle is not None
            while True:
                handle.seek(offset)
                try:
                    info = tarfile.TarInfo.fromtarfile(tar)
                except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                    return
                end = info.offset_data + info.size
                if info.size < 0 or tar.offset <= offset:
                    raise tarfile.ReadError(f"member {info.name} has the size {info.size}")
                if end > length:
                    raise tarfile.ReadError(
                        f"cut off: {info.name} goes on to byte {end}, the file to {length}"
                    )
                if info.isreg() and not info.issparse():
                    handle.seek(info.offset_data)
                    yield info, handle
                offset = tar.offset
    except OSError as error:
        if error.filename is not None:
            raise  # the system's own
        raise OSError(f"cannot read {shard}: {error}") from error
    except Exception as error:  # tarfile's own, and what a broken number or name leads to
        what = "it is cut off" if offset + BLOCK > length else "it breaks off"
        text = str(error) or type(error).__name__
        raise OSError(f"cannot read {shard}: {what} at byte {offset} ({text})") from error


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
    """Write ``index`` as a file, atomically; with the shard's size, what is adapruner's own too.

    Raises:
        ValueError: there is no sample: DALI takes no such index.
        OSError: the file cannot be written.
    """
    if not index.lines:
        raise ValueError(f"cannot write {os.fspath(path)}: the shard has no sample")
    content = [b"%s %d" % (_VERSION, len(index.lines)), *index.lines]
    if shard_bytes is not None and index.classes is not None:
        content.append(b"%s %d %s" % (_TRAILER, shard_bytes, os.fsencode(index.column)))
        content.append(b" ".join(b"%d" % number for number in index.classes.tolist()))
    replace_atomically(path, lambda temporary: _write_lines(temporary, content))


def _write_lines(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"\n".join(lines) + b"\n")


def read_index(path: str | os.PathLike[str], shard: str | os.PathLike[str]) -> ShardIndex:
    """Read the index file of ``shard`` and check that it belongs to it.

    An index that is older than its shard is compared with the shard's headers. Any other one is
    taken if the size and the headers of the first and the last sample fit; the header of every
    other one is checked as it is read.

    Raises:
        IndexMismatchError: it is no such index, or not of this shard; the message says why.
        OSError: the index or the shard cannot be opened.
    """
    index, shard_bytes = _parse_index(path)
    try:
        _check_index(index, shard_bytes, path, shard)
    except IndexMismatchError as error:
        raise IndexMismatchError(
            f"the index {os.fspath(path)} does not belong to {os.fspath(shard)}: {error}; "
            "make it anew with: adapruner index"
        ) from error
    return index


def _parse_index(path: str | os.PathLike[str]) -> tuple[ShardIndex, int | None]:
    *lines, cut = Path(path).read_bytes().split(b"\n")
    lines = lines or [cut]  # a last line without its end is no whole one
    head = lines[0].split()
    if len(head) != 2 or head[0] != _VERSION or not head[1].isdigit():
        raise IndexMismatchError(
            f"{os.fspath(path)} is no index of a shard: it must start with "
            f"{_VERSION.decode()!r} and the number of samples, found {lines[0][:40]!r}"
        )
    count = int(head[1])
    index, rest = ShardIndex(lines[1 : 1 + count]), lines[1 + count :]
    if len(index.lines) < count or not count:
        raise IndexMismatchError(
            f"{os.fspath(path)} is cut off: it has {len(index.lines)} of {count} lines"
        )
    if len(rest) < 2 or not rest[0].startswith(_TRAILER):
        return index, None
    try:
        index.classes = np.array(rest[1].split(), dtype=np.int64)
        size, _, column = rest[0].removeprefix(_TRAILER).strip().partition(b" ")
        shard_bytes, index.column = int(size), os.fsdecode(column) or CLASS
    except (ValueError, OverflowError) as error:
        raise IndexMismatchError(f"{os.fspath(path)} is broken at its end: {error}") from error
    if len(index.classes) != count or (index.classes < UNKNOWN).any():
        raise IndexMismatchError(
            f"{os.fspath(path)} is broken at its end: {count} classes were expected"
        )
    return index, shard_bytes


def _check_index(
    index: ShardIndex,
    shard_bytes: int | None,
    path: str | os.PathLike[str],
    shard: str | os.PathLike[str],
) -> None:
    with open(shard, "rb") as handle:
        status = os.fstat(handle.fileno())
        if shard_bytes not in (None, status.st_size):
            raise IndexMismatchError(
                f"it was made for a shard of {shard_bytes} bytes, this one has {status.st_size}"
            )
        for sample in (0, len(index.lines) - 1):
            try:
                components = index.components(sample)
            except ValueError as error:
                raise IndexMismatchError(f"line {sample + 2}: {error}") from error
            for component in components:
                block = os.pread(handle.fileno(), BLOCK, component.offset - BLOCK)
                check_header(block, component.size)
                _check_name(block, component.name)
    if status.st_mtime_ns > os.stat(path).st_mtime_ns:
        _compare_headers(index, shard)


def check_header(block: bytes, size: int) -> None:
    """Raise IndexMismatchError unless ``block`` is a header of a plain file of ``size`` bytes.

    Size and type are enough, and cheap: any other place in a tar has other bytes there.
    """
    if len(block) < BLOCK:
        raise IndexMismatchError("the shard ends before a range of the index")
    stated = block[124:136].strip(b" \0")
    if block[156:157] not in (b"0", b"\0") or (stated.isdigit() and int(stated, 8) != size):
        raise IndexMismatchError("a range of the index is not that of a member of the shard")


def _check_name(block: bytes, name: bytes) -> None:
    """The same of the name, as far as a header has it: longer ones stand in a block before."""
    found = block[:100].rstrip(b"\0")
    if block[257:263] == b"ustar\0" and block[345] and found:
        found = block[345:500].rstrip(b"\0") + b"/" + found
    if name.isascii() and len(name) < 100 and _escaped(found) != name:
        raise IndexMismatchError(f"the shard has {found!r} where it has {name!r}")


def _compare_headers(index: ShardIndex, shard: str | os.PathLike[str]) -> None:
    found = scan(shard, index.column)
    known = dict(zip(found.lines, found.classes.tolist(), strict=True))  # type: ignore[union-attr]
    classes = [UNKNOWN] * len(index.lines) if index.classes is None else index.classes.tolist()
    for line, number in zip(index.lines, classes, strict=True):
        if line not in known or (index.classes is not None and known[line] != number):
            raise IndexMismatchError("the shard was changed after the index was made")
