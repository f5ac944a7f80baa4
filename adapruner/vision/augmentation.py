"""Image augmentation as numbers: the window of an image, and whether to mirror it.

The numbers are drawn from (seed, epoch, index) in NumPy. DALI gets them with each batch. So the
augmentation of a sample depends neither on its batch nor on a resumed epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapruner._util.seeds import Stream, mix, stream_seed

Shapes = npt.NDArray[np.int64]
Uniforms = npt.NDArray[np.float64]
Inputs = dict[str, npt.NDArray[np.generic]]


def uniforms(seed: int, epoch: int, ids: npt.NDArray[np.int64], count: int) -> Uniforms:
    """``count`` numbers in [0, 1) for each sample, float64 ``[B, count]``.

    A pure function of (seed, epoch, index) for each sample.
    """
    key = np.uint64(stream_seed(seed, epoch, Stream.AUGMENTATION))
    states = mix(mix(ids.astype(np.uint64)) + key)
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mix(states[:, None] + steps) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Zoom:
    """A random window, resized to ``size`` and randomly mirrored.

    It draws as torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip`` do.

    Attributes:
        size: height and width of the result, in pixels.
        area: smallest and largest share of the image's area.
        ratio: smallest and largest ratio of width to height.
    """

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    tries = 10
    draws = 2 * tries + 3

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        """``start`` and ``extent`` of the windows (height, width) ``[B, 2]``, ``mirror`` ``[B]``.

        Args:
            shapes: height and width of the images, ``[B, 2]``.
            drawn: numbers in [0, 1), ``[B, draws]``.
        """
        height, width = shapes[:, :1], shapes[:, 1:2]
        low, high = self.area
        area = height * width * (low + (high - low) * drawn[:, : self.tries])
        low, high = np.log(self.ratio)
        ratio = np.exp(low + (high - low) * drawn[:, self.tries : 2 * self.tries])
        heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        fits = (heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width)
        first = fits.argmax(1)
        rows = np.arange(len(shapes))
        drawn_extent = np.stack([heights[rows, first], widths[rows, first]], 1)
        found = fits.any(1)[:, None]
        extent = np.where(found, drawn_extent, self._middle(shapes))
        room = shapes - extent
        start = np.where(found, np.floor(drawn[:, -3:-1] * (room + 1)).astype(np.int64), room // 2)
        return {
            "start": start.astype(np.int32),
            "extent": extent.astype(np.int32),
            "mirror": _coins(drawn[:, -1]),
        }

    def _middle(self, shapes: Shapes) -> Shapes:
        """The largest window of an allowed ratio, for images that no drawn window fits."""
        height, width = shapes[:, 0], shapes[:, 1]
        low, high = self.ratio
        heights = np.minimum(height, np.rint(width / low).astype(np.int64))
        widths = np.minimum(width, np.rint(height * high).astype(np.int64))
        return np.maximum(np.stack([heights, widths], 1), 1)


@dataclass(frozen=True)
class Crop:
    """A window of ``size`` pixels, after the shorter side of the image is resized to ``shorter``.

    With ``margin``, a random window, randomly mirrored: torchvision's ``RandomCrop(size,
    padding=margin)`` and ``RandomHorizontalFlip``. Without, the middle: ``CenterCrop(size)``.

    Attributes:
        size: height and width of the window.
        shorter: length of the shorter side of the resized image.
        margin: width of the black border around the image, or None.
    """

    size: int
    shorter: int
    margin: int | None = None

    draws = 3

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        """``start`` (height, width) ``[B, 2]``, ``mirror`` ``[B]``, perhaps ``resized`` ``[B, 2]``.

        ``resized`` is left out if all images have the right size.

        Args:
            shapes: height and width of the images, ``[B, 2]``.
            drawn: numbers in [0, 1), ``[B, draws]``.
        """
        shorter = shapes.min(1, keepdims=True)
        resized = shapes * self.shorter // shorter
        room = resized - self.size
        if self.margin is None:
            # Half of an odd number is rounded to even, as in torchvision.
            start = np.rint(room / 2)
            mirror = np.zeros(len(shapes), dtype=np.int32)
        else:
            places = np.maximum(room + 2 * self.margin, 0) + 1
            start = np.floor(drawn[:, :2] * places) - self.margin
            mirror = _coins(drawn[:, 2])
        inputs: Inputs = {"start": start.astype(np.int32), "mirror": mirror}
        if (shorter != self.shorter).any():
            # DALI resizes a 32 x 32 image as slowly as it decodes one, even to the same size.
            inputs["resized"] = resized.astype(np.float32)
        return inputs


def _coins(drawn: Uniforms) -> npt.NDArray[np.int32]:
    return (drawn < 0.5).astype(np.int32)
