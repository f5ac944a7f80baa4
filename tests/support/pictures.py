"""Small image folders that a tiny model can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def picture(seed: int, width: int, height: int, channel: int = 0) -> np.ndarray:
    """Noise, uint8 ``[height, width, 3]``, brighter in one channel."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3), dtype=np.uint8)
    noise[:, :, channel] += 100
    return noise


def make_pictures(
    root: Path,
    counts: tuple[int, ...] = (30, 20),
    size: tuple[int, int] = (16, 16),
    names: tuple[str, ...] = ("cat", "dog", "owl"),
) -> Path:
    """Write ``root``/CLASS/NUMBER.png: ``counts[j]`` images of class j, ``size`` wide and high."""
    image = pytest.importorskip("PIL.Image")
    for channel, (name, count) in enumerate(zip(names, counts, strict=False)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            array = picture(1000 * channel + number, *size, channel)
            image.fromarray(array).save(root / name / f"{number:03d}.png")
    return root
