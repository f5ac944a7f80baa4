"""Exports of the kept samples of shards: filtered indexes and new shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from adapruner._util.files import new_folder
from adapruner._util.progress import bar_is_shown
from adapruner.data.sources.base import IntArray
from adapruner.data.sources.shard_index import ShardIndex, parse_line, scan, write_index
from adapruner.data.sources.shards import ShardSource
from adapruner.data.sources.stores import index_path
from adapruner.data.sources.tar_members import walk


def write_kept_indexes(source: ShardSource, kept: IntArray, destination: Path) -> None:
    """Write an index NAME.idx for each shard NAME.tar that has kept samples.

    Raises:
        ValueError: two shards have the same name.
        FileExistsError: ``destination`` is a file, or a folder that is not empty.
        OSError: ``destination`` cannot be written, or a shard was changed.
    """
    names = [index_path(shard).name for shard in source.shards]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"shards must have different names; found two indexes {double}")
    with new_folder(destination, "indexes") as folder:
        for shard, positions in _by_shard(source, kept):
            index, shard_bytes = source.shard_index(shard), source.store.size(source.shards[shard])
            lines = [index.lines[position] for position in positions]
            part = ShardIndex(lines, column=index.column)
            if index.classes is not None:
                part.classes = index.classes[positions]
            write_index(folder / names[shard], part, shard_bytes)


def write_kept_shards(source: ShardSource, kept: IntArray, destination: Path) -> None:
    """Write new shards kept-NNNNNN.tar with the kept samples in their order, and their indexes.

    A new shard holds as many samples as the largest old shard. The old shards are read once, from
    beginning to end, with one component in memory at a time.

    Raises:
        FileExistsError: ``destination`` is a file, or a folder that is not empty.
        OSError: ``destination`` cannot be written, the disk is full, or a shard was changed.
    """
    most = max(source.samples_in_shard)
    with (
        new_folder(destination, "shards") as folder,
        tqdm(total=len(kept), unit=" samples", disable=not bar_is_shown(True)) as bar,
    ):
        writer = _Writer(folder, most)
        try:
            for shard, positions in _by_shard(source, kept):
                lines = source.shard_index(shard).lines
                # By offset, because names in an index can differ from the names in the shard.
                sample_of = {
                    component.offset: position
                    for position in positions.tolist()
                    for component in parse_line(lines[position])
                }
                with source.store.open(source.shards[shard]) as file:
                    for info, handle in walk(file):
                        if info.offset_data in sample_of:
                            key = (shard, sample_of[info.offset_data])
                            bar.update(writer.add(key, info, handle.read(info.size)))
        finally:
            writer.close()
        for path in sorted(folder.glob("*.tar")):
            index = scan(path, str(source.class_column))
            write_index(path.with_suffix(".idx"), index, path.stat().st_size)


class _Writer:
    """Writes members to shards of at most ``most`` samples."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._count = 0
        self._last: tuple[int, int] | None = None
        self._tar: tarfile.TarFile | None = None

    def add(self, key: tuple[int, int], member: tarfile.TarInfo, content: bytes) -> bool:
        """Write a member of the sample ``key``. Returns whether it is the first of the sample."""
        first = key != self._last
        if first and self._count % self._most == 0:
            self.close()
            path = self._folder / f"kept-{self._count // self._most:06d}.tar"
            self._tar = tarfile.open(path, "w", encoding="utf-8")  # noqa: SIM115
        self._count, self._last = self._count + first, key
        info = tarfile.TarInfo(member.name)  # without the owner and the mode of the old member
        info.size, info.mtime = member.size, int(member.mtime)
        assert self._tar is not None
        self._tar.addfile(info, io.BytesIO(content))
        return first

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()


def _by_shard(source: ShardSource, kept: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Number and positions of the kept samples, for each shard that has kept samples."""
    starts = np.cumsum([0, *source.samples_in_shard])
    cuts = np.searchsorted(kept, starts)
    for shard, (begin, end) in enumerate(pairwise(cuts)):
        if begin < end:
            yield shard, kept[begin:end] - starts[shard]
