"""WebDataset shards: tar files whose members make up samples, read by ranges of bytes."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from adapruner.data.sources.base import IntArray, Location, Source, Transform, new_digest
from adapruner.data.sources.shard_index import (
    BLOCK,
    CLASS,
    UNKNOWN,
    ClassColumn,
    Component,
    IndexMismatchError,
    ShardIndex,
    check_header,
    parse_line,
    read_index,
    scan,
)
from adapruner.vision.decoding import (
    IMAGE_EXTENSIONS,
    MAX_PIXELS,
    check_max_pixels,
    check_mode,
    decode_image,
)

_OPEN_FILES = 64


class ShardSource(Source):
    """The samples of WebDataset shards, in the order of the shards and of their members.

    A sample is what stands next to each other in a shard and is called alike up to the first dot:
    ``0001.jpg``, ``0001.cls``. Its image is the one component with the extension of an image, its
    class the whole number in the component ``cls``, or where ``columns`` says. Without a transform
    an input is a PIL image.

    Where a shard lies beside an index (``NAME.idx`` for ``NAME.tar``; ``adapruner index`` and
    DALI's ``wds2idx`` make them) its samples are taken from there, otherwise from one pass over its
    headers. Reading a sample is one read of the bytes of its image, whose header is checked then.

    What is wrong with a sample (no class, no image or several, a component twice, a path that
    climbs out of its folder) is told when it is read, as for a corrupt image. A shard that cannot
    be opened or is cut off has one more sample, at its end, that cannot be read and says why.
    Samples of equal keys that do not stand next to each other are samples of their own.

    The fingerprint is over the names of the shards, their indexes and the classes.

    Args:
        shards: paths of the tar files, uncompressed.
        transform: applied to the PIL image.
        fingerprint: what identifies the samples, instead of names and indexes.
        mode: the PIL mode images are converted to; None leaves each as it is.
        max_pixels: an image of more, width times height, counts as unreadable.
        columns: extensions of the components with the image and the class, where these are not to
            be found by themselves; the class as :class:`ClassColumn` has it.
        index_folder: where the indexes are, if not beside the shards.
        pattern: what the shards were found by.

    Attributes:
        class_column: where the class of a sample stands.

    Raises:
        FileNotFoundError: a shard is missing.
        IndexMismatchError: an index does not belong to its shard.
        ValueError: there is no shard or no sample, or no sample has an image and a class.
    """

    kind = "shards"
    targets: IntArray
    sizes: IntArray

    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        transform: Transform | None = None,
        fingerprint: str | None = None,
        mode: str | None = "RGB",
        max_pixels: int = MAX_PIXELS,
        columns: tuple[str, str] | None = None,
        index_folder: str | os.PathLike[str] | None = None,
        pattern: str | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        check_mode(mode)
        check_max_pixels(max_pixels)
        self.mode, self.max_pixels, self.root = mode, max_pixels, pattern
        self.index_folder = None if index_folder is None else os.path.abspath(index_folder)
        self.shards = [os.path.abspath(os.path.expanduser(os.fspath(shard))) for shard in shards]
        self._image_name = None if columns is None else columns[0].lower()
        self.class_column = ClassColumn.of(CLASS if columns is None else columns[1])
        self._columns = None if columns is None else list(columns)
        self._problems: dict[int, str] = {}
        self._files = _OpenFiles()
        parts = self._open()
        self.samples_in_shard = [len(part) for part in parts]
        if not sum(self.samples_in_shard):
            raise ValueError(f"expected at least one sample, got {len(shards)} shards without any")
        offsets, image_sizes, self.sizes, self.targets = np.concatenate(parts).T.copy()
        self._offsets, self._image_sizes = offsets, image_sizes
        self._shard = np.repeat(np.arange(len(parts), dtype=np.int32), self.samples_in_shard)
        if len(self._problems) == len(self):
            raise ValueError(
                f"none of the {len(self)} samples in {_shown(self.shards)} can be used; "
                f"the first one: {self._problems[0]}"
            )
        self.has_encoded = True
        self.deterministic = transform is None

    def __len__(self) -> int:
        return len(self._offsets)

    def location(self, index: int) -> Location:
        """The range of bytes of the image of sample ``index``."""
        index = self._checked(index)
        path = self.shards[self._shard[index]]
        if index in self._problems:
            raise OSError(f"{path}: {self._problems[index]}")
        return Location(path, int(self._offsets[index]), int(self._image_sizes[index]))

    def encoded(self, index: int) -> bytes:
        """The bytes of the image of sample ``index``; the shard is kept open for the next."""
        return self._encoded(index)[0]

    def shard_index(self, shard: int) -> ShardIndex:
        """The index of shard number ``shard``, as it was when this source was made.

        Raises:
            OSError: the shard was changed since, or cannot be read.
        """
        index = self._open_index(self.shards[shard])
        if _digest(index) != self._digests[shard]:
            raise OSError(f"{self.shards[shard]} was changed since it was opened")
        return index

    def member_names(self, indices: IntArray) -> list[str]:
        """SHARD.tar/MEMBER of the first member of each sample of ``indices``, which ascend.

        Raises:
            OSError: a shard was changed since, or cannot be read.
        """
        starts = np.cumsum([0, *self.samples_in_shard])
        names = []
        for shard in np.unique(self._shard[indices]).tolist():
            index, name = self.shard_index(shard), os.path.basename(self.shards[shard])
            for position in (indices[self._shard[indices] == shard] - starts[shard]).tolist():
                names.append(f"{name}/{os.fsdecode(index.components(position)[0].name)}")
        return names

    def about(self) -> dict[str, Any]:
        """As of any source, with what it takes to find the shards again."""
        return super().about() | {"index_folder": self.index_folder, "columns": self._columns}

    def _open_index(self, shard: str) -> ShardIndex:
        return open_index(shard, self.index_folder, str(self.class_column))

    def _open(self) -> list[IntArray]:
        """Of each shard its samples as rows (offset, size, bytes in the shard, class)."""
        self._digests, parts, count = [], [], 0
        for shard in self.shards:
            index, shard_bytes = self._open_index(shard), os.path.getsize(shard)
            rows = np.empty((len(index.lines) + (index.damage is not None), 4), dtype=np.int64)
            for position, line in enumerate(index.lines):
                components = _components(line, shard, shard_bytes)
                image = self._find_image(components)
                number = self._find_class(components, index, position, shard)
                if isinstance(image, str):
                    self._problems[count + position] = image
                    image = Component("", BLOCK, 0, b"")
                elif number == UNKNOWN:
                    self._problems[count + position] = (
                        f"{os.fsdecode(image.name)} has no {self.class_column.describe()}, "
                        "its class"
                    )
                spans = (BLOCK - (-c.size // BLOCK) * BLOCK for c in components)
                # A class that is not known is none to count with either: 0 will do.
                rows[position] = image.offset, image.size, sum(spans), max(number, 0)
            if index.damage is not None:
                self._problems[count + len(index.lines)] = index.damage
                rows[-1] = BLOCK, 0, 0, 0
            self._digests.append(_digest(index))
            parts.append(rows)
            count += len(rows)
        return parts

    def _find_image(self, components: list[Component]) -> Component | str:
        """The component that is the image, or why there is none."""
        names = [component.extension.lower() for component in components]
        found = [
            component
            for component, name in zip(components, names, strict=True)
            if (name == self._image_name if self._image_name else _is_image(name))
        ]
        shown = f"{os.fsdecode(components[0].name)}, …" if components else ""
        if any(_climbs(component.name) for component in components):
            return f"{shown} has a path that climbs out of its folder"
        if len(set(names)) < len(names):
            return (
                f"{shown} has a component twice, or two samples have this key: {', '.join(names)}"
            )
        if len(found) != 1:
            which = "no image" if not found else f"{len(found)} images, and columns say not which"
            return f"{shown} has {which} among its components {', '.join(names)}"
        return found[0]

    def _find_class(
        self, components: list[Component], index: ShardIndex, position: int, shard: str
    ) -> int:
        column = self.class_column
        if index.column == str(column) and index.classes is not None:
            return int(index.classes[position])
        found = [c for c in components if c.extension.lower() == column.extension]
        if len(found) != 1 or found[0].size > column.longest:
            return UNKNOWN
        try:
            return column.number(self._files.read(shard, found[0].offset, found[0].size))
        except (OSError, IndexMismatchError):
            return UNKNOWN

    def _encoded(self, index: int) -> tuple[bytes, str]:
        path, offset, size = self.location(index)
        assert size is not None
        return self._files.read(path, offset, size), path

    def _read(self, index: int) -> tuple[Any, int]:
        encoded, path = self._encoded(index)
        name = f"{path} (sample {index}, byte {self._offsets[index]})"
        return decode_image(encoded, name, self.mode, self.max_pixels), int(self.targets[index])

    def _identify(self) -> str:
        digest = new_digest(self.kind)
        for shard, count, part in zip(
            self.shards, self.samples_in_shard, self._digests, strict=True
        ):
            digest.update(os.fsencode(os.path.basename(shard)) + f"\0{count}\n".encode() + part)
        digest.update(self.targets.astype("<i8").tobytes())
        return digest.hexdigest()


class _OpenFiles:
    """Files that stay open for the next read; those used last, so that there are never many."""

    def __init__(self) -> None:
        # Its own lock makes it safe for threads; a file that drops out closes after its last read.
        self._file = lru_cache(_OPEN_FILES)(_OpenFile)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """``size`` bytes of the member of a tar that start at ``offset``, its header checked.

        Raises:
            OSError: they cannot be read; the message has ``path``.
        """
        file = self._file(path)
        # By position, so that processes that share the open file do not disturb each other.
        content = os.pread(file.descriptor, BLOCK + size, offset - BLOCK)
        try:
            check_header(content[:BLOCK], size)
        except IndexMismatchError as error:
            raise OSError(f"cannot read {path} at byte {offset}: {error}") from error
        if len(content) < BLOCK + size:
            raise OSError(f"cannot read {path} at byte {offset}: it ends within the sample")
        return content[BLOCK:]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a process that is started anew opens its own


class _OpenFile:
    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def open_index(
    shard: str, folder: str | os.PathLike[str] | None = None, column: str = CLASS
) -> ShardIndex:
    """The index of ``shard``: from its file where there is one, else from its headers.

    A file may have the classes of another column than ``column``.

    A shard that cannot be opened gives an index without samples, whose ``damage`` says why.

    Raises:
        FileNotFoundError: the shard is missing.
        IndexMismatchError: the file does not belong to the shard.
    """
    if not os.path.exists(shard):
        raise FileNotFoundError(f"no such shard: {shard}")
    if not os.path.isfile(shard):  # a pipe would be waited for
        return ShardIndex(damage=f"{shard} is no regular file")
    file = index_path(shard, folder)
    if not file.is_file():
        return scan(shard, column)
    try:
        return read_index(file, shard)
    except OSError as error:
        return ShardIndex(damage=str(error))


def index_path(shard: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the index of ``shard`` is looked for: ``NAME.idx`` beside it, or in ``folder``."""
    path = Path(shard).with_suffix(".idx")
    return path if folder is None else Path(folder) / path.name


def find_shards(pattern: str | os.PathLike[str]) -> list[str]:
    """The shards that a path, a folder, a glob or a brace pattern stands for, in order.

    Raises:
        FileNotFoundError: one of them is missing, or a folder or a glob has none.
    """
    text = os.path.expanduser(os.fspath(pattern))
    if os.path.isdir(text):
        text = os.path.join(glob.escape(text), "*.tar")
    found: list[str] = []
    for path in [text] if os.path.lexists(text) else _expand_braces(text):
        if glob.has_magic(path) and not os.path.lexists(path):
            found += sorted(glob.glob(path))
        elif os.path.exists(path):
            found.append(path)
        else:  # told at once, of however many
            raise FileNotFoundError(f"no such shard: {path}")
    if not found:
        raise FileNotFoundError(f"no shard is found by {os.fspath(pattern)}")
    return found


def is_shards(data: Any) -> bool:
    """Whether ``data`` names shards: a path or pattern ending in .tar, or a folder with such."""
    if isinstance(data, (list, tuple)):
        return bool(data) and all(isinstance(p, (str, os.PathLike)) and is_shards(p) for p in data)
    if not isinstance(data, (str, os.PathLike)):
        return False
    text = os.path.expanduser(os.fspath(data))
    if not os.path.isdir(text):
        return text.endswith(".tar")
    with os.scandir(text) as entries:
        return any(entry.name.endswith(".tar") for entry in entries)


def _expand_braces(text: str) -> Iterator[str]:
    """``{000..012}`` and ``{a,b}``, as shells and webdataset have them."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if match is None:
        yield text
        return
    first, last, listed = match.groups()
    if listed is not None:
        parts: Iterator[str] = iter(listed.split(","))
    else:
        parts = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    for part in parts:
        yield from _expand_braces(text[: match.start()] + part + text[match.end() :])


def _components(line: bytes, shard: str, shard_bytes: int) -> list[Component]:
    try:
        components = parse_line(line)
        if any(part.offset + part.size > shard_bytes for part in components):
            raise ValueError(f"it goes beyond the {shard_bytes} bytes of the shard")
    except ValueError as error:
        raise IndexMismatchError(
            f"the index of {shard} does not belong to it: line {line[:80]!r}: {error}; make it "
            "anew with: adapruner index"
        ) from error
    return components


def _is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in IMAGE_EXTENSIONS


def _climbs(name: bytes) -> bool:
    return name.startswith(b"/") or b".." in name.split(b"/")


def _digest(index: ShardIndex) -> bytes:
    digest = hashlib.sha256(b"\n".join(index.lines))
    digest.update(b"\ndamaged" if index.damage is not None else b"")
    return digest.digest()


def _shown(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
