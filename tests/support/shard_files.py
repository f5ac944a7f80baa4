"""WebDataset shards for tests, written member by member."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

Members = Iterable[tuple[str, bytes]]


def encoded_image(number: int, format: str = "PNG", width: int = 8, height: int = 6) -> bytes:
    """A noise image, uint8, different for every number."""
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = io.BytesIO()
    image.fromarray(noise).save(content, format)
    return content.getvalue()


def decoded_image(number: int, width: int = 8, height: int = 6) -> np.ndarray:
    """What :func:`encoded_image` as a PNG decodes to."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, classes: int = 3, key: str | None = None) -> list[tuple[str, bytes]]:
    """The members of a sample: an image and its class, ``number`` modulo ``classes``."""
    key = f"{number:04d}" if key is None else key
    return [(f"{key}.png", encoded_image(number)), (f"{key}.cls", b"%d" % (number % classes))]


def make_shards(folder: Path, counts: tuple[int, ...] = (5, 1, 7), classes: int = 3) -> list[Path]:
    """``folder``/train-00j.tar with ``counts[j]`` samples each, numbered through."""
    paths, number = [], 0
    for j, count in enumerate(counts):
        members = [m for n in range(number, number + count) for m in sample(n, classes)]
        paths.append(write_tar(folder / f"train-{j:03d}.tar", members))
        number += count
    return paths
