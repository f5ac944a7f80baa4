"""The DALI operators between the file of an image and the batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from adapruner._util.extras import require
from adapruner.data.dali.finish import Wait, ZoomOnCpu, unchanged
from adapruner.vision.augmentation import Crop, Inputs, Shapes, Uniforms, Zoom

UserGraph: TypeAlias = Callable[[Any, Any], Any]


def inspect_files() -> tuple[Any, ...]:
    """The outputs of :func:`inspect_bytes` for files. ``path`` is uint8 ``[B, L]``, zero-padded."""
    fn, types = _dali()
    path = fn.external_source(name="path", dtype=types.UINT8, ndim=1)
    # If a mapped file were cut off meanwhile, the process would be killed.
    return _inspected(fn, fn.io.file.read(path, dont_use_mmap=True))


def inspect_bytes() -> tuple[Any, ...]:
    """``stored``, and the shapes ``[B, 3]`` of the images."""
    return _inspected(_dali()[0], Encoded("cpu").stored)


class Images(Protocol):
    """The nodes for the images of a batch.

    Attributes:
        stored: the node of the input images.
    """

    stored: Any

    def whole(self) -> Any:
        """The RGB images, ``[H, W, 3]``."""

    def window(self, start: Any, extent: Any) -> Any:
        """A window of each image. ``start`` and ``extent`` are nodes of (height, width)."""


class Encoded:
    """Images that enter the pipeline as the bytes of their files.

    Args:
        device: device of the decoder, "cpu" or "mixed".
    """

    def __init__(self, device: str) -> None:
        self.stored = _stored(ndim=1)
        self._device = device

    def whole(self) -> Any:
        fn, types = _dali()
        # Like Pillow, ignore the orientation in the metadata of a JPEG or a PNG.
        return fn.decoders.image(
            self.stored, device=self._device, output_type=types.RGB, adjust_orientation=False
        )

    def window(self, start: Any, extent: Any) -> Any:
        """Only the window is decoded."""
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
    """Images that enter the pipeline as arrays.

    Args:
        axes: axes of the arrays, "HWC", "CHW" or "HW".
        device: "cpu", or "mixed" to copy the arrays to the GPU.
    """

    def __init__(self, axes: str, device: str) -> None:
        stored = _stored(ndim=len(axes), layout=axes)
        self.stored = stored if device == "cpu" else stored.gpu()
        self._axes = axes

    def whole(self) -> Any:
        return self._in_colour(self.stored)

    def window(self, start: Any, extent: Any) -> Any:
        """Only the window is read."""
        window = _dali()[0].slice(self.stored, start=start, shape=extent, axis_names="HW")
        return self._in_colour(window)

    def _in_colour(self, image: Any) -> Any:
        fn, types = _dali()
        if self._axes == "HW":
            grey = fn.expand_dims(image, axes=2, new_axis_names="C")
            return fn.color_space_conversion(grey, image_type=types.GRAY, output_type=types.RGB)
        return fn.transpose(image, perm=[1, 2, 0]) if self._axes == "CHW" else image


class Graph(Protocol):
    """The operators from stored images to a batch.

    Attributes:
        draws: random numbers for each sample.
    """

    draws: int

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        """The inputs besides the images, by name. ``shapes`` of the images is ``[B, 2]``."""

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        """The output nodes. ``given`` holds the names of :meth:`inputs`."""

    def finish(self, outputs: Sequence[Any]) -> Wait:
        """Start the last step, from the outputs of the pipeline to the batch."""


class ZoomGraph:
    """The operators for ``Zoom``."""

    finish = staticmethod(unchanged)

    def __init__(self, zoom: Zoom, mean: Sequence[float], std: Sequence[float]) -> None:
        self.draws, self.inputs = zoom.draws, zoom.inputs
        self._size, self._mean, self._std = zoom.size, mean, std

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        fn, types = _dali()
        window = images.window(_given("start", types.INT32, 1), _given("extent", types.INT32, 1))
        image = fn.resize(window, size=(self._size, self._size), interp_type=types.INTERP_LINEAR)
        return (_normalized(image, self._mean, self._std, _given("mirror", types.INT32, 0)),)


class WindowGraph:
    """The operators for ``Zoom`` on the CPU. DALI only decodes windows."""

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
    """The operators for ``Crop``."""

    finish = staticmethod(unchanged)

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
    """The operators for whole images, scaled to [0, 1]. A batch must have images of one size."""

    draws, finish = 0, staticmethod(unchanged)

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        if (shapes != shapes[:1]).any():
            sizes = sorted({(int(width), int(height)) for height, width in shapes})
            raise ValueError(
                "images of a batch must have one size; found "
                + ", ".join(f"{width} x {height}" for width, height in sizes[:4])
                + (", …" if len(sizes) > 4 else "")
                + ": pass a transform that makes their sizes equal"
            )
        return {}

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        return (_normalized(images.whole(), [0.0] * 3, [1.0] * 3, None),)


class CustomGraph:
    """The user's function of the node of stored images and a node of random numbers."""

    draws, finish = 16, staticmethod(unchanged)

    def __init__(self, function: UserGraph) -> None:
        self._function = function

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        return {"random": drawn.astype(np.float32)}

    def define(self, images: Images, given: Collection[str]) -> tuple[Any, ...]:
        random = _given("random", _dali()[1].FLOAT, 1)
        # DALI removes an unused input, and then refuses its values. An output counts as a use.
        return self._function(images.stored, random), random


def _dali() -> tuple[Any, Any]:
    return require("nvidia.dali.fn", extra="dali"), require("nvidia.dali.types", extra="dali")


def _given(name: str, dtype: Any, ndim: int) -> Any:
    return _dali()[0].external_source(name=name, dtype=dtype, ndim=ndim)


def _stored(ndim: int, layout: str | None = None) -> Any:
    fn, types = _dali()
    # No copy is needed, because the loader keeps the bytes until the batch is done.
    return fn.external_source(
        name="stored", dtype=types.UINT8, ndim=ndim, layout=layout, no_copy=True
    )


def _inspected(fn: Any, encoded: Any) -> tuple[Any, ...]:
    return encoded, fn.peek_image_shape(encoded, adjust_orientation=False)


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
