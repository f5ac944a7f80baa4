"""Image augmentation as numbers: which window of an image, and whether it is mirrored.

Drawn in NumPy from (seed, epoch, index) and handed to DALI with each batch, so that a sample is
augmented in the same way whatever batch it is in and wherever an epoch is taken up again.
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
    """Any part of the image, of ``area`` and ``ratio`` (width to height), zoomed to ``size``.

    Torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``.
    """

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    tries = 10
    draws = 2 * tries + 3

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        """``start`` and ``extent`` of the windows (height, width) ``[B, 2]``, ``mirror`` ``[B]``.

        Args:
            shapes: of the images, ``[B, 2]``, height and width.
            drawn: ``[B, draws]``.
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
        """Where no window drawn fits: the largest one of an allowed ratio."""
        height, width = shapes[:, 0], shapes[:, 1]
        low, high = self.ratio
        heights = np.minimum(height, np.rint(width / low).astype(np.int64))
        widths = np.minimum(width, np.rint(height * high).astype(np.int64))
        return np.maximum(np.stack([heights, widths], 1), 1)


@dataclass(frozen=True)
class Crop:
    """A window of ``size`` of the image whose shorter side is ``shorter``.

    With ``margin``, at random from the image with that many black pixels around it, mirrored or
    not: torchvision's ``RandomCrop(size, padding=margin)`` and ``RandomHorizontalFlip``. Without,
    its middle: ``CenterCrop(size)``.
    """

    size: int
    shorter: int
    margin: int | None = None

    draws = 3

    def inputs(self, shapes: Shapes, drawn: Uniforms) -> Inputs:
        """``start`` (height, width) ``[B, 2]`` and ``mirror`` ``[B]``; where an image is not of its
        size already, ``resized`` ``[B, 2]`` too.

        Args:
            shapes: of the images, ``[B, 2]``, height and width.
            drawn: ``[B, draws]``.
        """
        shorter = shapes.min(1, keepdims=True)
        resized = shapes * self.shorter // shorter
        room = resized - self.size
        if self.margin is None:
            # Half of an odd room as torchvision rounds it: to the even one.
            start = np.rint(room / 2)
            mirror = np.zeros(len(shapes), dtype=np.int32)
        else:
            places = np.maximum(room + 2 * self.margin, 0) + 1
            start = np.floor(drawn[:, :2] * places) - self.margin
            mirror = _coins(drawn[:, 2])
        inputs: Inputs = {"start": start.astype(np.int32), "mirror": mirror}
        if (shorter != self.shorter).any():
            # Not done for nothing: DALI takes as long for it as for decoding 32 x 32 pixels.
            inputs["resized"] = resized.astype(np.float32)
        return inputs


def _coins(drawn: Uniforms) -> npt.NDArray[np.int32]:
    return (drawn < 0.5).astype(np.int32)
