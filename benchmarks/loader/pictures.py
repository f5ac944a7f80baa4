"""The images to read: CIFAR-10, and larger ones made of it, as folders and as shards."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapruner import as_source
from adapruner.data.sources.base import Source
from adapruner.data.sources.shard_index import scan, write_index
from adapruner.vision import training_transform

SHARDS = 8  # as many for each of two workers
SEED = 0
KEPT_IN = Path(__file__).resolve().parents[2] / "build" / "benchmarks" / "images"


@cache
def cifar() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The packed JPEGs, (offset, length, label) of each in random order, and the class names."""
    folder = Path(os.environ.get("ADAPRUNER_DATA", "/nonexistent")) / "cifar10"
    if not folder.is_dir():
        pytest.skip("CIFAR-10 is not there: ADAPRUNER_DATA says where")
    packed = np.memmap(folder / "train.jpegs", dtype=np.uint8, mode="r")
    # Shuffled, or the first ones would be of a few classes.
    index = np.random.default_rng(SEED).permutation(np.load(folder / "train.index.npy"))
    return packed, index, (folder / "classes.txt").read_text().split()


def jpeg(number: int, large: bool) -> tuple[bytes, int]:
    """An image and its class: one of CIFAR-10, or that one at 256 to 512 pixels a side."""
    packed, index, _ = cifar()
    offset, length, label = (int(value) for value in index[number])
    encoded = packed[offset : offset + length].tobytes()
    if not large:
        return encoded, label
    size = np.random.default_rng([SEED, number]).integers(256, 513, 2)
    image = Image.open(io.BytesIO(encoded)).convert("RGB").resize(size.tolist(), Image.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue(), label


@cache
def made(kind: str, count: int, large: bool) -> Source:
    """``count`` images as a "folder" or as "shards", with the usual augmentation.

    They are made once and stay, in the folder of what is built.
    """
    root = KEPT_IN / f"{kind}-{count}{'-large' if large else ''}"
    if not root.exists():
        unfinished = root.with_name(f"{root.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        (make_folder if kind == "folder" else make_shards)(unfinished, count, large)
        unfinished.rename(root)
    return as_source(root, transform=training_transform(224 if large else 32))


def make_folder(root: Path, count: int, large: bool) -> None:
    names = cifar()[2]
    for name in names:
        (root / name).mkdir(parents=True)
    for number in range(count):
        encoded, label = jpeg(number, large)
        (root / names[label] / f"{number:06d}.jpg").write_bytes(encoded)


def make_shards(root: Path, count: int, large: bool) -> None:
    root.mkdir(parents=True)
    for shard in range(SHARDS):
        path = root / f"{shard:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
                encoded, label = jpeg(number, large)
                for extension, content in (("jpg", encoded), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        write_index(path.with_suffix(".idx"), scan(path))
