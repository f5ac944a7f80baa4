"""Small data that the tests of sources, exports and loaders share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

INPUTS = torch.arange(24.0).reshape(6, 2, 2)
TARGETS = torch.tensor([0, 2, 1, 0, 2, 2])


class Pairs(Dataset[tuple[Any, Any]]):
    """A map-style dataset with any attributes that a test sets."""

    def __init__(self, held: list[Any], **attributes: Any) -> None:
        self.held = held
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> Any:
        return self.held[index]


def double(value: Any) -> Any:
    """A transform that can be sent to a worker process."""
    return value * 2


def to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


# In torchvision's order: by folder, as text ("-" < "." < "/"), then by file name.
PATHS = [
    "cat/z.png",
    "cat/a/10.bmp",
    "cat/a/9.ppm",
    "cat/a-b/1.png",
    "cat/a.b/3.tiff",
    "cat/a/x/2.webp",
    "dog/a.JPG",
    "dog/b.png",
]


def make_image_folder(root: Path) -> Path:
    """The images of PATHS, in two classes; image i is 3 + i pixels wide and 2 high."""
    image = pytest.importorskip("PIL.Image")
    for number, name in enumerate(PATHS):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (3 + number, 2), (10 * number, 0, 0)).save(path)
    (root / "dog" / "notes.txt").write_text("no image")
    (root / "readme.md").write_text("no class")
    return root
