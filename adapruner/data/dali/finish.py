"""From what a DALI pipeline gives to a batch: nothing to do, or the resizing that torch does."""

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


def as_they_are(outputs: Sequence[Any]) -> Wait:
    """What waits for the images ``[B, 3, S, S]``, where the first output is just that."""
    # The tensor holds on to DALI's memory, which is not used again before it is gone.
    return lambda: torch.from_dlpack(outputs[0].as_tensor())


class ZoomOnCpu:
    """Resizes windows of images, mirrors and normalises them, in threads of its own.

    By torch's kernel for bytes: a fraction of the time of DALI's on the CPU, and Pillow's pixels,
    which are the torch loader's.

    Args:
        size: S, of the images, height and width.
        mean: of the channels, where 1 is white.
        std: the same.
        num_threads: how many.
    """

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], num_threads: int
    ) -> None:
        self._size, self._num_threads = size, num_threads
        self._scale = (1 / (255 * np.array(std))).astype(np.float32)[:, None, None]
        self._shift = (-np.array(mean) / np.array(std)).astype(np.float32)[:, None, None]
        self._threads = ThreadPoolExecutor(num_threads, "adapruner-zoom")

    def start(self, outputs: Sequence[Any]) -> Wait:
        """Start on windows, uint8 ``[H, W, 3]`` of any sizes; and whether each is to be mirrored.

        Returns:
            What waits for the images ``[B, 3, S, S]``.
        """
        windows, mirror = outputs
        mirrored = np.array(mirror.as_array())
        # NumPy asks for huge pages, without which page faults take longer than normalising.
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
        # As a batch of one in torch's channels-last format, which is what its kernel is made for.
        pixels = torch.from_numpy(window)[None].permute(0, 3, 1, 2)
        size = (self._size, self._size)
        zoomed = functional.interpolate(pixels, size, mode="bilinear", antialias=True)[0].numpy()
        # NumPy, because torch would bring in threads of its own.
        np.multiply(zoomed[:, :, ::-1] if mirrored else zoomed, self._scale, out=image)
        image += self._shift
