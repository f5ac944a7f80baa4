"""WebDataset shards: samples are members of tar files, and are read by byte ranges."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapruner.data.sources.base import IntArray, Location, Source, Transform, new_digest
from adapruner.data.sources.shard_index import (
    CLASS,
    UNKNOWN,
    ClassColumn,
    Component,
    IndexMismatchError,
    ShardIndex,
    parse_line,
)
from adapruner.data.sources.shard_paths import absolute
from adapruner.data.sources.stores import FileStore, Store, index_path
from adapruner.data.sources.tar_members import BLOCK
from adapruner.vision.decoding import (
    IMAGE_EXTENSIONS,
    MAX_PIXELS,
    check_max_pixels,
    check_mode,
    decode_image,
)


class ShardSource(Source):
    """The samples of WebDataset shards, in the order of the shards and of their members.

    The components of a sample are neighbouring members with equal names up to the first dot:
    ``0001.jpg``, ``0001.cls``. The image is the only component with the extension of an image. The
    class is the whole number in the component ``cls``. ``columns`` can name other components.
    Without a transform an input is a PIL image.

    The index of ``NAME.tar`` is ``NAME.idx`` beside it, made by ``adapruner index`` or DALI's
    ``wds2idx``. A shard without an index is read once, header by header. A sample is one read: the
    header and the bytes of its image. The header is checked. Shards in an object store are read in
    the same way (:mod:`~.remote`).

    Some samples are unreadable: no class, no image or several, a component twice, a path that
    climbs out of its folder. Reading such a sample raises, as for a corrupt image. A shard that
    cannot be opened or is cut off has one more sample at its end. Reading it raises the reason.
    Samples of equal keys that are not neighbours are different samples.

    The fingerprint covers the names of the shards, their indexes and the classes. In an object
    store it also covers the version of each shard, usually its ETag.

    Args:
        shards: paths or addresses of the tar files, uncompressed.
        transform: applied to the PIL image.
        fingerprint: a string that identifies the samples. The default hashes names and indexes.
        mode: the PIL mode that images are converted to. None leaves them as they are.
        max_pixels: an image with more pixels, width times height, is unreadable.
        columns: extensions of the image and of the class; the class as in :class:`ClassColumn`.
            None means a guess.
        index_folder: the folder of the indexes. None means beside the shards.
        pattern: the pattern that found the shards.
        store: where the shards lie; files of this machine where None.

    Attributes:
        class_column: the component that holds the class.

    Raises:
        FileNotFoundError: a shard is missing.
        IndexMismatchError: an index does not belong to its shard.
        UnreachableError: an object store did not answer.
        ValueError: there is no shard or no sample, or no sample has an image and a class.

    Warns:
        MissingEndMarkWarning: a shard may have been cut off between two members.
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
        store: Store | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        check_mode(mode)
        check_max_pixels(max_pixels)
        self.mode, self.max_pixels, self.root = mode, max_pixels, pattern
        self.index_folder = None if index_folder is None else absolute(index_folder)
        self.shards = [absolute(shard) for shard in shards]
        self.store: Store = FileStore() if store is None else store
        self._image_name = None if columns is None else columns[0].lower()
        self.class_column = ClassColumn.of(CLASS if columns is None else columns[1])
        self._columns = None if columns is None else list(columns)
        self._problems: dict[int, str] = {}
        self._check_index_names()
        parts = self._open()
        self.samples_in_shard = [len(part) for part in parts]
        if not sum(self.samples_in_shard):
            raise ValueError(f"expected at least one sample; found none in {len(shards)} shards")
        offsets, image_sizes, self.sizes, self.targets = np.concatenate(parts).T.copy()
        self._offsets, self._image_sizes = offsets, image_sizes
        self._shard = np.repeat(np.arange(len(parts), dtype=np.int32), self.samples_in_shard)
        if len(self._problems) == len(self):
            raise ValueError(
                f"expected samples with an image and a class; found none among the {len(self)} "
                f"samples in {_shown(self.shards)}; sample 0: {self._problems[0]}"
            )
        self.has_encoded = True
        self.deterministic = transform is None

    def __len__(self) -> int:
        return len(self._offsets)

    def location(self, index: int) -> Location:
        """The byte range of the image of sample ``index``."""
        index = self._checked(index)
        path = self.shards[self._shard[index]]
        if index in self._problems:
            raise OSError(f"{path}: {self._problems[index]}")
        return Location(path, int(self._offsets[index]), int(self._image_sizes[index]))

    def encoded(self, index: int) -> bytes:
        """The bytes of the image of sample ``index``. The shard stays open for the next read."""
        [content] = self.encoded_each([index])
        if isinstance(content, OSError):
            raise content
        return content

    def picture(self, index: int, encoded: bytes) -> Any:
        """See :meth:`Source.picture`."""
        return self._decoded(self._checked(index), encoded)[0]

    def encoded_each(self, indices: list[int]) -> list[bytes | OSError]:
        """The bytes of several images, read at the same time if the shards are in an object store.

        The reason stands in the place of an image that cannot be read.
        """
        found: list[bytes | OSError] = []
        places: list[Location] = []
        for index in indices:
            try:
                places.append(self.location(index))
                found.append(b"")
            except OSError as error:
                found.append(error)
        read = iter(self.store.read_members(places))
        return [next(read) if isinstance(content, bytes) else content for content in found]

    def read_batch(self, indices: list[int]) -> Sequence[tuple[Any, Any] | Exception] | None:
        """The samples, if the shards are in an object store; see :meth:`Source.read_batch`."""
        if not self.store.reads_many:
            return None
        return [
            content if isinstance(content, OSError) else self._attempt(index, content)
            for index, content in zip(indices, self.encoded_each(indices), strict=True)
        ]

    @property
    def bytes_read(self) -> int | None:
        """Bytes fetched from the object store, with all worker processes; None for files."""
        return self.store.bytes_read()

    def shard_index(self, shard: int) -> ShardIndex:
        """The index of shard number ``shard``, as it was when this source was made.

        Raises:
            OSError: the shard has changed, or cannot be read.
        """
        index = self._open_index(self.shards[shard])
        if _digest(index) != self._digests[shard]:
            raise OSError(f"{self.shards[shard]} has changed since it was opened")
        return index

    def member_names(self, indices: IntArray) -> list[str]:
        """SHARD.tar/MEMBER of the first member of each sample. ``indices`` must ascend.

        Raises:
            OSError: a shard has changed, or cannot be read.
        """
        starts = np.cumsum([0, *self.samples_in_shard])
        names = []
        for shard in np.unique(self._shard[indices]).tolist():
            index, name = self.shard_index(shard), os.path.basename(self.shards[shard])
            for position in (indices[self._shard[indices] == shard] - starts[shard]).tolist():
                names.append(f"{name}/{os.fsdecode(index.components(position)[0].name)}")
        return names

    def about(self) -> dict[str, Any]:
        """The description of any source, with the settings that find the shards again."""
        return super().about() | {"index_folder": self.index_folder, "columns": self._columns}

    def _check_index_names(self) -> None:
        """Raise if different shards have one index: its ranges may fit both, its classes not."""
        if self.index_folder is None:
            return
        owners: dict[str, str] = {}
        for shard in self.shards:
            name = index_path(shard, ".").name
            if owners.setdefault(name, shard) != shard:
                raise ValueError(
                    f"shards must have different names with an index_folder; found {shard} and "
                    f"{owners[name]}, which have one index, {name}"
                )

    def _open_index(self, shard: str) -> ShardIndex:
        return self.store.open_index(shard, self.index_folder, str(self.class_column))

    def _open(self) -> list[IntArray]:
        """For each shard, one row per sample: offset, size, bytes in the shard, class."""
        self._digests, parts, count = [], [], 0
        indexes = self.store.each(self._open_index, self.shards)
        for shard, index in zip(self.shards, indexes, strict=True):
            shard_bytes = self.store.size(shard)
            samples = [_components(line, shard, shard_bytes) for line in index.lines]
            numbers = self._find_classes(samples, index, shard)
            rows = np.empty((len(index.lines) + (index.damage is not None), 4), dtype=np.int64)
            for position, (components, number) in enumerate(zip(samples, numbers, strict=True)):
                image = self._find_image(components)
                if isinstance(image, str):
                    self._problems[count + position] = image
                    image = Component("", BLOCK, 0, b"")
                elif number == UNKNOWN:
                    self._problems[count + position] = (
                        f"{os.fsdecode(image.name)} has no class; expected a "
                        f"{self.class_column.describe()}"
                    )
                spans = (BLOCK - (-c.size // BLOCK) * BLOCK for c in components)
                # Classes are counted, so an unknown class of an unreadable sample is stored as 0.
                rows[position] = image.offset, image.size, sum(spans), max(number, 0)
            if index.damage is not None:
                self._problems[count + len(index.lines)] = index.damage
                rows[-1] = BLOCK, 0, 0, 0
            self._digests.append(_digest(index))
            parts.append(rows)
            count += len(rows)
        return parts

    def _find_image(self, components: list[Component]) -> Component | str:
        """The image among the components, or the reason why there is none."""
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
            return f"{shown} has a component twice, or two samples share a key: {', '.join(names)}"
        if len(found) != 1:
            return (
                f"{shown} must have one image, or columns must name it; found {len(found)} images "
                f"among the components {', '.join(names)}"
            )
        return found[0]

    def _find_classes(
        self, samples: list[list[Component]], index: ShardIndex, shard: str
    ) -> list[int]:
        """The class of each sample, from the index or else from the component that holds it."""
        column = self.class_column
        if index.column == str(column) and index.classes is not None:
            numbers: list[int] = index.classes.tolist()
            return numbers
        numbers, places = [UNKNOWN] * len(samples), {}
        for position, components in enumerate(samples):
            found = [c for c in components if c.extension.lower() == column.extension]
            if len(found) == 1 and found[0].size <= column.longest:
                places[position] = Location(shard, found[0].offset, found[0].size)
        contents = self.store.read_members(list(places.values()))
        for position, content in zip(places, contents, strict=True):
            if isinstance(content, bytes):
                numbers[position] = column.number(content)
        return numbers

    def _read(self, index: int) -> tuple[Any, int]:
        return self._decoded(index, self.encoded(index))

    def _decoded(self, index: int, encoded: bytes) -> tuple[Any, int]:
        path = self.shards[self._shard[index]]
        name = f"{path} (sample {index}, byte {self._offsets[index]})"
        return decode_image(encoded, name, self.mode, self.max_pixels), int(self.targets[index])

    def _attempt(self, index: int, encoded: bytes) -> tuple[Any, Any] | Exception:
        try:
            return self._decoded(index, encoded)
        except Exception as error:  # a broken image can raise anything
            return error

    def _identify(self) -> str:
        digest = new_digest(self.kind)
        for shard, count, part in zip(
            self.shards, self.samples_in_shard, self._digests, strict=True
        ):
            digest.update(os.fsencode(os.path.basename(shard)) + f"\0{count}\n".encode() + part)
            digest.update(self.store.version(shard).encode())
        digest.update(self.targets.astype("<i8").tobytes())
        return digest.hexdigest()


def _components(line: bytes, shard: str, shard_bytes: int) -> list[Component]:
    try:
        components = parse_line(line)
        if any(part.offset + part.size > shard_bytes for part in components):
            raise ValueError(f"a component ends after the {shard_bytes} bytes of the shard")
    except ValueError as error:
        raise IndexMismatchError(
            f"the index of {shard} does not belong to it: line {line[:80]!r}: {error}; make a new "
            "index with: adapruner index"
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
