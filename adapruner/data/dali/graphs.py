"""What DALI does to an image between its file and the batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from adapruner._util.extras import require
from adapruner.data.dali.finish import Wait, ZoomOnCpu, as_they_are
from adapruner.vision.augmentation import Crop, Inputs, Shapes, Uniforms, Zoom

UserGraph: TypeAlias = Callable[[Any, Any], Any]


def read_files() -> tuple[Any, ...]:
    """From ``path`` ``[B, L]``, bytes with zeros at the end: see :func:`look_at`."""
    fn, types = _dali()
    path = fn.external_source(name="path", dtype=types.UINT8, ndim=1)
    # A file mapped into memory that is cut off meanwhile would kill the process.
    return _looked_at(fn, fn.io.file.read(path, dont_use_mmap=True))


def look_at() -> tuple[Any, ...]:
    """From ``stored``: itself, the images' shapes ``[B, 3]``, first and last bytes ``[B, 2]``."""
    return _looked_at(_dali()[0], Encoded("cpu").stored)


def decode() -> tuple[Any, ...]:
    """From ``stored`` to the whole image: what tells whether a sample can be decoded."""
    return (Encoded("cpu").whole(),)


class Images(Protocol):
    """The nodes of the images of a batch.

    Attributes:
        stored: as they are fed.
    """

    stored: Any

    def whole(self) -> Any:
        """RGB, height by width by channels."""

    def window(self, start: Any, extent: Any) -> Any:
        """A part of each, from the nodes of its corners and sizes, height and width."""


class Encoded:
    """Images that are fed as the bytes of their files.

    Args:
        device: of the decoder, "cpu" or "mixed".
    """

    def __init__(self, device: str) -> None:
        self.stored = _stored(ndim=1)
        self._device = device

    def whole(self) -> Any:
        fn, types = _dali()
        # As Pillow does, an image is not turned to the orientation that its metadata ask for.
        return fn.decoders.image(
            self.stored, device=self._device, output_type=types.RGB, adjust_orientation=False
        )

    def window(self, start: Any, extent: Any) -> Any:
        """No more than the window is decoded."""
        fn, types = _dali()
        return fn.decoders.image_slice(
            self.stored,
            start=start,
            shape=extent,
            axis_names="HW",
            device=self._device,
            output_type=types.RGB,
            adjust_orientation=False,
        )


class Pixels:
    """Images that are fed as arrays of the axes "HWC", "CHW" or "HW".

    Args:
        axes: of the arrays.
        device: where they go, "cpu" or "mixed".
    """

    def __init__(self, axes: str, device: str) -> None:
        stored = _stored(ndim=len(axes), layout=axes)
        self.stored = stored if device == "cpu" else stored.gpu()
        self._axes = axes

    def whole(self) -> Any:
        return self._in_colour(self.stored)

    def window(self, start: Any, extent: Any) -> Any:
        """No more than the window is looked at."""
        window = _dali()[0].slice(self.stored, start=start, shape=extent, axis_names="HW")
        return self._in_colour(window)

    def _in_colour(self, image: Any) -> Any:
        fn, types = _dali()
        if self._axes == "HW":
            grey = fn.expand_dims(image, axes=2, new_axis_names="C")
            return fn.color_space_conversion(grey, image_type=types.GRAY, output_type=types.RGB)
        return fn.transpose(image, perm=[1, 2, 0]) if self._axes == "CHW" else image


class Graph(Protocol):
    """From stored images to a batch.

    Attributes:
        draws: how many random numbers a sample takes.
        partial: whether a part of an image may be all that is decoded of it.
    """

    draws: int
    partial: bool

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        """What it takes besides the images, of ``shapes`` ``[B, 2]``, by name."""

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        """The nodes, from those of the images and the names of :meth:`inputs`."""

    def finish(self, outputs: Sequence[Any]) -> Wait:
        """Start on what is left to do, from the pipeline's outputs to the batch."""


class ZoomGraph:
    """:class:`adapruner.vision.augmentation.Zoom`."""

    partial, finish = True, staticmethod(as_they_are)

    def __init__(self, zoom: Zoom, mean: Sequence[float], std: Sequence[float]) -> None:
        self.draws, self.inputs = zoom.draws, zoom.inputs
        self._size, self._mean, self._std = zoom.size, mean, std

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        fn, types = _dali()
        window = images.window(_given("start", types.INT32, 1), _given("extent", types.INT32, 1))
        image = fn.resize(window, size=(self._size, self._size), interp_type=types.INTERP_LINEAR)
        return (_normalized(image, self._mean, self._std, _given("mirror", types.INT32, 0)),)


class WindowGraph:
    """The same on the CPU, where DALI gives the windows and what follows is done faster."""

    partial = True

    def __init__(
        self, zoom: Zoom, mean: Sequence[float], std: Sequence[float], num_threads: int
    ) -> None:
        self.draws, self.inputs = zoom.draws, zoom.inputs
        self.finish = ZoomOnCpu(zoom.size, mean, std, num_threads).start

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        types = _dali()[1]
        window = images.window(_given("start", types.INT32, 1), _given("extent", types.INT32, 1))
        return window, _given("mirror", types.INT32, 0)


class CropGraph:
    """:class:`adapruner.vision.augmentation.Crop`."""

    partial, finish = False, staticmethod(as_they_are)

    def __init__(self, crop: Crop, mean: Sequence[float], std: Sequence[float]) -> None:
        self.draws, self.inputs = crop.draws, crop.inputs
        self._size, self._mean, self._std = crop.size, mean, std

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        fn, types = _dali()
        image = images.whole()
        if "resized" in given:
            size = _given("resized", types.FLOAT, 1)
            image = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR)
        image = fn.slice(
            image,
            start=_given("start", types.INT32, 1),
            shape=(self._size, self._size),
            axis_names="HW",
            out_of_bounds_policy="pad",
            fill_values=0,
        )
        return (_normalized(image, self._mean, self._std, _given("mirror", types.INT32, 0)),)


class WholeGraph:
    """The image as it is, in [0, 1]; all of a batch must be of one size."""

    draws, partial, finish = 0, False, staticmethod(as_they_are)

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        if (shapes != shapes[:1]).any():
            sizes = sorted({(int(width), int(height)) for height, width in shapes})
            raise ValueError(
                "images of different sizes make no batch, and these have "
                + ", ".join(f"{width} x {height}" for width, height in sizes[:4])
                + (", …" if len(sizes) > 4 else "")
                + "; give a transform that brings them to one size"
            )
        return {}

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        return (_normalized(images.whole(), [0.0] * 3, [1.0] * 3, None),)


class CustomGraph:
    """The user's own: a function of the node of stored images and one of random numbers."""

    draws, partial, finish = 16, True, staticmethod(as_they_are)

    def __init__(self, function: UserGraph) -> None:
        self._function = function

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        return {"random": drawn.astype(np.float32)}

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        random = _given("random", _dali()[1].FLOAT, 1)
        # An output too: DALI drops an input that nothing depends on, and then refuses it.
        return self._function(images.stored, random), random


def _dali() -> tuple[Any, Any]:
    return require("nvidia.dali.fn", extra="dali"), require("nvidia.dali.types", extra="dali")


def _given(name: str, dtype: Any, ndim: int) -> Any:
    return _dali()[0].external_source(name=name, dtype=dtype, ndim=ndim)


def _stored(ndim: int, layout: str | None = None) -> Any:
    fn, types = _dali()
    # Not copied: the loader holds on to the bytes until the batch is done.
    return fn.external_source(
        name="stored", dtype=types.UINT8, ndim=ndim, layout=layout, no_copy=True
    )


def _looked_at(fn: Any, encoded: Any) -> tuple[Any, ...]:
    shapes = fn.peek_image_shape(encoded, adjust_orientation=False)
    return encoded, shapes, encoded[:2], encoded[-2:]


def _normalized(image: Any, mean: Sequence[float], std: Sequence[float], mirror: Any) -> Any:
    fn, types = _dali()
    return fn.crop_mirror_normalize(
        image,
        mirror=0 if mirror is None else mirror,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255.0 * value for value in mean],
        std=[255.0 * value for value in std],
    )
