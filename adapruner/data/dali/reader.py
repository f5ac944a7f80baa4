"""The first half of the DALI loader: the stored images of a batch, and their sizes.

DALI decodes the images that :func:`adapruner.data.dali.formats.dali_decodes` names, if it can.
The source reads every other image with Pillow, as it does for the torch loader. So both loaders
read the same images and refuse the same images, for the same reasons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from adapruner.data.dali import graphs
from adapruner.data.dali.formats import as_ppm, dali_decodes
from adapruner.data.dali.stage import BatchError, Stage
from adapruner.data.sources.base import Source
from adapruner.data.sources.map_style import origin
from adapruner.data.unreadable import Unreadable, describe_error
from adapruner.errors import UnreachableError
from adapruner.vision.decoding import MAX_PIXELS, in_rgb, to_picture

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

    def read_again(self, batch: Batch, places: Sequence[int]) -> None:
        """Read the images at ``places`` without DALI, or take them out, after DALI failed."""

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

    def read_again(self, batch: Batch, places: Sequence[int]) -> None:
        """Nothing to read. DALI does not decode arrays."""

    def reason(self, index: int, error: BatchError) -> str:
        return f"BatchError: DALI cannot process the image of sample {index}: {error}"


class FileReader:
    """Reads encoded images and their sizes, and decodes the images that DALI must not decode.

    DALI reads whole files by path. The source reads byte ranges, in a thread.

    Args:
        source: encoded images.
        batch_size: the largest number of samples in a batch.
        num_threads: threads that decode with Pillow.
    """

    def __init__(self, source: Source, batch_size: int, num_threads: int) -> None:
        self._source = source
        self._max_pixels = getattr(origin(source), "max_pixels", MAX_PIXELS)
        self._by_path = _are_whole_files(source)
        define = graphs.inspect_files if self._by_path else graphs.inspect_bytes
        # Reading is a small part of the work. A second thread would slow the decoding.
        self._stage = Stage(define, batch_size, 1, None)
        self._thread = None if self._by_path else ThreadPoolExecutor(1, "adapruner-read")
        self._read: dict[int, Future[_Read]] = {}
        self._pillow = ThreadPoolExecutor(num_threads, "adapruner-pillow")

    def start(self, batch: Batch) -> Batch:
        indices = batch.ids.tolist()
        if not indices:  # a rank without a share
            return batch
        if self._thread is not None:
            self._read[id(batch)] = self._thread.submit(self._bytes, indices)
            return batch
        paths = np.array([os.fsencode(self._source.location(i).path) for i in indices], np.bytes_)
        self._stage.push({"path": paths.view(np.uint8).reshape(len(paths), -1)})
        return batch

    def finish(self, batch: Batch) -> Batch:
        if not len(batch.ids):
            return batch
        try:
            if self._thread is None:
                batch.stored, shapes = self._stage.pop()
            else:
                _fill(batch, self._read.pop(id(batch)).result())
                if not len(batch.ids):
                    return batch
                batch.stored, shapes = self._stage.do({"stored": batch.stored})
            batch.shapes = _sizes(shapes)
        except BatchError:
            if self._thread is None:
                _fill(batch, self._bytes(batch.ids.tolist()))
            batch.shapes = self._inspect_one_by_one(batch)
        pixels = batch.shapes.prod(1)
        fits = (pixels > 0) & (pixels <= self._max_pixels)
        places = [
            at
            for at, encoded in enumerate(batch.stored)
            if not (fits[at] and dali_decodes(np.asarray(encoded)))
        ]
        self.read_again(batch, places)
        return batch

    def read_again(self, batch: Batch, places: Sequence[int]) -> None:
        """Let the source read the images at ``places`` with Pillow, or take them out."""
        if not places:
            return
        indices = batch.ids[list(places)].tolist()
        # Bytes that are here already are not read again.
        fetched = [None if self._by_path else bytes(np.asarray(batch.stored[at])) for at in places]
        images = list(self._pillow.map(self._image, indices, fetched))
        batch.stored = [batch.stored[at] for at in range(len(batch.ids))]
        for at, image in zip(places, images, strict=True):
            if not isinstance(image, str):
                batch.stored[at], batch.shapes[at] = as_ppm(image), image.size[::-1]
        batch.leave_out(
            {at: why for at, why in zip(places, images, strict=True) if isinstance(why, str)}
        )

    def reason(self, index: int, error: BatchError) -> str:
        """The reason why DALI failed on an image that the source has read."""
        location = self._source.location(index)
        where = f" at byte {location.offset}" if location.size is not None else ""
        return f"OSError: DALI cannot decode {location.path}{where}: {error}"

    def _image(self, index: int, fetched: bytes | None) -> Any:
        """The image as the torch loader reads it, in RGB, or the reason why it cannot be read."""
        try:
            if fetched is None:
                image = self._source.image(index)
            else:
                image = self._source.picture(index, fetched)
            return in_rgb(to_picture(image))
        except UnreachableError:
            raise
        except Exception as error:  # the torch loader reports the same
            return describe_error(error)

    def _bytes(self, indices: list[int]) -> _Read:
        """For each sample, its encoded image or the reason why it cannot be read."""
        return [
            np.frombuffer(found, np.uint8) if isinstance(found, bytes) else describe_error(found)
            for found in self._source.encoded_each(indices)
        ]

    def _inspect_one_by_one(self, batch: Batch) -> npt.NDArray[np.int64]:
        """The sizes of the images. A size is 0 where DALI does not find it."""
        stage = Stage(graphs.inspect_bytes, 1, 1, None)
        seen = stage.try_each({"stored": [encoded]} for encoded in batch.stored)
        sizes = np.zeros((len(seen), 2), np.int64)
        for at, found in enumerate(seen):
            if not isinstance(found, BatchError):
                sizes[at] = _sizes(found[1])[0]
        return sizes


def _fill(batch: Batch, read: _Read) -> None:
    batch.stored = read
    batch.leave_out({at: why for at, why in enumerate(read) if isinstance(why, str)})


def _sizes(shapes: Any) -> npt.NDArray[np.int64]:
    """Height and width from the shapes that DALI found."""
    return np.array(shapes.as_array())[:, :2]


def _are_whole_files(source: Source) -> bool:
    try:
        return source.location(0).size is None
    except OSError:
        return False
