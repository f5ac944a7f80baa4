"""The last step from a DALI pipeline to a batch. Some batches are resized by torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Wait: TypeAlias = Callable[[], Tensor]


def unchanged(outputs: Sequence[Any]) -> Wait:
    """A function that returns the first output, the images ``[B, 3, S, S]``."""
    # The tensor keeps DALI's memory. DALI does not reuse the memory while the tensor lives.
    return lambda: torch.from_dlpack(outputs[0].as_tensor())


class ZoomOnCpu:
    """Resizes, mirrors and normalises windows of images in its own threads.

    On the CPU, torch's uint8 kernel is faster than DALI's. Its pixels equal Pillow's, and so those
    of the torch loader.

    Args:
        size: S, height and width of the resized images.
        mean: mean of each channel, where 1 is white.
        std: standard deviation of each channel, where 1 is white.
        num_threads: number of threads.
    """

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], num_threads: int
    ) -> None:
        self._size, self._num_threads = size, num_threads
        self._scale = (1 / (255 * np.array(std))).astype(np.float32)[:, None, None]
        self._shift = (-np.array(mean) / np.array(std)).astype(np.float32)[:, None, None]
        self._threads = ThreadPoolExecutor(num_threads, "adapruner-zoom")

    def start(self, outputs: Sequence[Any]) -> Wait:
        """Start on a batch of windows.

        Args:
            outputs: windows, uint8 ``[H, W, 3]`` of any sizes, and whether to mirror each.

        Returns:
            A function that waits for the images ``[B, 3, S, S]`` and returns them.
        """
        windows, mirror = outputs
        mirrored = np.array(mirror.as_array())
        # NumPy requests huge pages. Without them, page faults take longer than normalising.
        images = np.empty((len(windows), 3, self._size, self._size), np.float32)

        def share(first: int) -> None:
            for at in range(first, len(images), self._num_threads):
                self._zoom(np.asarray(windows[at]), bool(mirrored[at]), images[at])

        shares = [self._threads.submit(share, first) for first in range(self._num_threads)]

        def wait() -> Tensor:
            for done in shares:
                done.result()
            return torch.from_numpy(images)

        return wait

    def _zoom(
        self, window: npt.NDArray[np.uint8], mirrored: bool, image: npt.NDArray[np.float32]
    ) -> None:
        # A batch of one image in channels-last format, for which torch has a fast kernel.
        pixels = torch.from_numpy(window)[None].permute(0, 3, 1, 2)
        size = (self._size, self._size)
        zoomed = functional.interpolate(pixels, size, mode="bilinear", antialias=True)[0].numpy()
        # torch would start more threads here. NumPy does not.
        np.multiply(zoomed[:, :, ::-1] if mirrored else zoomed, self._scale, out=image)
        image += self._shift
