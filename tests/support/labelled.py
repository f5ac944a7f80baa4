"""Datasets whose items have classes in several places, and small image folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from support.pictures import picture


class Coarse(Dataset[Any]):
    """Items with two kinds of classes. The attribute has the fine ones."""

    def __init__(self, count: int = 60) -> None:
        self.labels = [i % 5 for i in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = torch.full((3,), float(index % 2))
        return {"x": x, "label": self.labels[index], "coarse": index % 2}


class Model(nn.Module):
    """Takes the inputs of an item by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.layer(x)


def photo(seed: int) -> Image.Image:
    return Image.fromarray(picture(seed, 8, 8))


def folder_of(root: Path, *classes: str) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(3):
            photo(i).save(root / name / f"{i}.png")
    return root
