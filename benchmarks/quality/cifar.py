"""CIFAR-10 as JPEG files that lie packed, one after another.

They are read from ``$ADAPRUNER_DATA``: a folder that has ``cifar10/SPLIT.jpegs`` and
``cifar10/SPLIT.index.npy``, or a single file that :func:`write_file` made of such a folder. The
single file holds the same bytes in a third of the space, because the files' headers are alike and
compression finds that.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "test")


class Packed(NamedTuple):
    """One split."""

    files: np.ndarray  # uint8: the JPEG files, one after another
    index: np.ndarray  # int64 [N, 3]: offset, length, label

    def digest(self) -> str:
        """The first 16 digits of the SHA-256 of both arrays."""
        found = hashlib.sha256(np.ascontiguousarray(self.files))
        found.update(np.ascontiguousarray(self.index))
        return found.hexdigest()[:16]


class Images(NamedTuple):
    """One split, decoded."""

    x: Tensor  # uint8 [N, H, W, 3]
    y: Tensor  # int64 [N]
    source: str  # which files they are


def source() -> Path:
    """Where the images come from; FileNotFoundError where there are none."""
    named = os.environ.get("ADAPRUNER_DATA", "")
    path = Path(named)
    if not named or not (path.is_file() or (path / "cifar10").is_dir()):
        raise FileNotFoundError(
            "ADAPRUNER_DATA must name a folder that has cifar10/, or a file that "
            f"benchmarks.quality.gpu wrote; found ADAPRUNER_DATA={named!r}"
        )
    return path


def read(path: Path, split: str) -> Packed:
    """One split of a folder or of a single file."""
    if path.is_dir():
        folder = path / "cifar10"
        files = np.fromfile(folder / f"{split}.jpegs", np.uint8)
        return Packed(files, np.load(folder / f"{split}.index.npy"))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Packed(arrays[f"{split}_files"], arrays[f"{split}_index"])
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be a file that benchmarks.quality.gpu wrote; reading it found: {error}"
        ) from None


def write_file(path: Path, origin: Path) -> None:
    """Both splits of ``origin`` as one compressed .npz; it appears whole or not at all."""
    arrays = {}
    for split in SPLITS:
        packed = read(origin, split)
        arrays |= {f"{split}_files": packed.files, f"{split}_index": packed.index}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def write_folder(path: Path, origin: Path, each: int) -> None:
    """The first ``each`` images of each class as path/SPLIT/CLASS/POSITION.jpg.

    The folder appears whole or not at all.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}")
    for split in SPLITS:
        packed = read(origin, split)
        for label in np.unique(packed.index[:, 2]):
            folder = part / split / str(label)
            folder.mkdir(parents=True)
            for position in np.flatnonzero(packed.index[:, 2] == label)[:each]:
                offset, size = packed.index[position, :2]
                file = folder / f"{position:05d}.jpg"
                file.write_bytes(packed.files[offset : offset + size].tobytes())
    part.replace(path)


def images(split: str) -> Images:
    """The images of ``$ADAPRUNER_DATA``, in the order of their index."""
    return _images(source(), split)


@functools.lru_cache(maxsize=2)
def _images(path: Path, split: str) -> Images:
    packed = read(path, split)
    pixels = decoded(packed.files, packed.index)
    labels = torch.from_numpy(packed.index[:, 2].astype(np.int64))
    about = f"CIFAR-10 as JPEG files, {split} {packed.digest()}"
    return Images(torch.from_numpy(np.stack(pixels)), labels, about)


def decoded(files: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    """Packed JPEG files as arrays, uint8 ``[H, W, 3]``. The index begins with offset and length."""
    from PIL import Image

    pixels = []
    for offset, size in index[:, :2].tolist():
        file = io.BytesIO(files[offset : offset + size].tobytes())
        pixels.append(np.asarray(Image.open(file, formats=["JPEG"]).convert("RGB")))
    return pixels
