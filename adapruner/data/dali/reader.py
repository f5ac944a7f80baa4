"""The first half of the DALI loader: the stored images of a batch, and their sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from adapruner.data.dali import graphs
from adapruner.data.dali.stage import BatchError, Stage
from adapruner.data.sources.base import Source
from adapruner.data.sources.map_style import origin
from adapruner.data.unreadable import Unreadable, describe_error
from adapruner.vision.decoding import MAX_PIXELS

_JPEG_START, _JPEG_END = (0xFF, 0xD8), (0xFF, 0xD9)

_Read = list["npt.NDArray[np.uint8] | str"]


@dataclass
class Batch:
    """A batch on its way through the loader.

    Attributes:
        epoch: the epoch, which seeds the augmentation.
        ids: dataset indices of the samples in the batch, int64.
        unreadable: the samples that were taken out.
        stored: the stored images, as a DALI list or a list of arrays.
        shapes: height and width of the images, ``[B, 2]``.
        feeds: the other inputs of the second half, by name.
    """

    epoch: int
    ids: npt.NDArray[np.int64]
    unreadable: list[Unreadable] = field(default_factory=list)
    stored: Any = None
    shapes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    feeds: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Take out the samples at the places in ``reasons``."""
        if not reasons:
            return
        self.unreadable += [Unreadable(int(self.ids[at]), why) for at, why in reasons.items()]
        kept = [at for at in range(len(self.ids)) if at not in reasons]
        self.ids = self.ids[kept]
        self.stored = [self.stored[at] for at in kept]
        self.shapes = self.shapes[kept] if len(self.shapes) else self.shapes
        self.feeds = {name: value[kept] for name, value in self.feeds.items()}


class Reader(Protocol):
    """Reads the images of batches, in the order in which the batches were started."""

    def start(self, batch: Batch) -> Batch:
        """Start to read a batch. Many batches can be started before the first is finished."""

    def finish(self, batch: Batch) -> Batch:
        """Set the images of the oldest started batch, and take out undecodable ones."""

    def reason(self, index: int, error: BatchError) -> str:
        """The reason why sample ``index`` failed."""


class PixelReader:
    """Images that are arrays. Rows of a memory map are read from the disk when they are used."""

    def __init__(self, source: Source) -> None:
        self._source = source
        axes = source.pixel_axes or ""
        shape = source.pixels(0).shape
        self._shape = np.array([shape[axes.index("H")], shape[axes.index("W")]])

    def start(self, batch: Batch) -> Batch:
        """Nothing to start. All arrays have one known size."""
        return batch

    def finish(self, batch: Batch) -> Batch:
        rows = map(self._source.pixels, batch.ids.tolist())
        batch.stored = [np.ascontiguousarray(row) for row in rows]  # usually not a copy
        batch.shapes = np.tile(self._shape, (len(batch.ids), 1))
        return batch

    def reason(self, index: int, error: BatchError) -> str:
        return f"BatchError: DALI cannot process the image of sample {index}: {error}"


class FileReader:
    """Reads encoded images and their sizes. It does not decode.

    DALI reads whole files by path. The source reads byte ranges, in a thread.

    Args:
        source: encoded images.
        batch_size: the largest number of samples in a batch.
        careful: check that each JPEG is whole, because only a part of it may be decoded later.
    """

    def __init__(self, source: Source, batch_size: int, careful: bool) -> None:
        self._source, self._careful = source, careful
        self._max_pixels = getattr(origin(source), "max_pixels", MAX_PIXELS)
        self._by_path = _are_whole_files(source)
        define = graphs.inspect_files if self._by_path else graphs.inspect_bytes
        # Reading is a small part of the work. A second thread would slow the decoding.
        self._stage = Stage(define, batch_size, 1, None)
        self._thread = None if self._by_path else ThreadPoolExecutor(1, "adapruner-read")
        self._read: dict[int, Future[_Read]] = {}

    def start(self, batch: Batch) -> Batch:
        indices = batch.ids.tolist()
        if self._thread is not None:
            self._read[id(batch)] = self._thread.submit(self._bytes, indices)
            return batch
        paths = np.array([os.fsencode(self._source.location(i).path) for i in indices], np.bytes_)
        self._stage.push({"path": paths.view(np.uint8).reshape(len(paths), -1)})
        return batch

    def finish(self, batch: Batch) -> Batch:
        try:
            if self._thread is None:
                looks = self._stage.pop()
            else:
                _fill(batch, self._read.pop(id(batch)).result())
                if not len(batch.ids):
                    return batch
                looks = self._stage.do({"stored": batch.stored})
            batch.stored, shapes, starts, ends = looks[0], *map(_array, looks[1:])
        except BatchError:
            if self._thread is None:
                _fill(batch, self._bytes(batch.ids.tolist()))
            shapes, starts, ends = self._inspect_one_by_one(batch)
        batch.shapes = shapes[:, :2]
        self._leave_out_suspect(batch, starts, ends)
        return batch

    def reason(self, index: int, error: BatchError) -> str:
        """The reason from the source, or from DALI if the source can decode the image."""
        try:
            self._source.image(index)
        except Exception as reason:  # the torch loader reports the same
            return describe_error(reason)
        location = self._source.location(index)
        where = f" at byte {location.offset}" if location.size is not None else ""
        return f"OSError: DALI cannot decode {location.path}{where}: {error}"

    def _bytes(self, indices: list[int]) -> _Read:
        """For each sample, its encoded image or the reason why it cannot be read."""
        read: _Read = []
        for index in indices:
            try:
                read.append(np.frombuffer(self._source.encoded(index), np.uint8))
            except OSError as error:
                read.append(describe_error(error))
        return read

    def _inspect_one_by_one(self, batch: Batch) -> list[npt.NDArray[Any]]:
        stage = Stage(graphs.inspect_bytes, 1, 1, None)
        seen = stage.try_each({"stored": [encoded]} for encoded in batch.stored)
        indices = batch.ids.tolist()
        batch.leave_out(
            {
                at: self.reason(indices[at], found)
                for at, found in enumerate(seen)
                if isinstance(found, BatchError)
            }
        )
        looks = [found[1:] for found in seen if not isinstance(found, BatchError)]
        if not looks:
            return [np.zeros((0, 3), np.int64), np.zeros((0, 2)), np.zeros((0, 2))]
        return [np.concatenate([_array(look[part]) for look in looks]) for part in range(3)]

    def _leave_out_suspect(
        self, batch: Batch, starts: npt.NDArray[Any], ends: npt.NDArray[Any]
    ) -> None:
        too_large = batch.shapes.prod(1) > self._max_pixels
        cut_off = np.zeros_like(too_large)
        if self._careful:
            cut_off = (starts == _JPEG_START).all(1) & (ends != _JPEG_END).any(1) & ~too_large
        if not (too_large | cut_off).any():
            return
        indices = batch.ids.tolist()
        stage = Stage(graphs.decode, 1, 1, None)
        places = np.flatnonzero(cut_off).tolist()
        tried = stage.try_each({"stored": [batch.stored[at]]} for at in places)
        errors = {at: e for at, e in zip(places, tried, strict=True) if isinstance(e, BatchError)}
        for at in np.flatnonzero(too_large).tolist():
            errors[at] = BatchError(f"more than {self._max_pixels:,} pixels (max_pixels)")
        batch.leave_out({at: self.reason(indices[at], error) for at, error in errors.items()})


def _fill(batch: Batch, read: _Read) -> None:
    batch.stored = read
    batch.leave_out({at: why for at, why in enumerate(read) if isinstance(why, str)})


def _array(outputs: Any) -> npt.NDArray[Any]:
    return np.array(outputs.as_array())


def _are_whole_files(source: Source) -> bool:
    try:
        return source.location(0).size is None
    except OSError:
        return False
