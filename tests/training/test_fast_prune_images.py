"""fast_prune on images: without a transform they become tensors in [0, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.pictures import make_pictures
from torch import nn

from adapruner import fast_prune
from adapruner.vision import to_tensor

Image = pytest.importorskip("PIL.Image")


def linear_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "images", (20, 10), (8, 8))


def test_folder(folder: Path) -> None:
    result = fast_prune(linear_model(), folder, 0.5, 2, progress=False)
    assert result.indices.numel() == 15
    assert not result.unreadable
    assert result.source is not None
    inputs, _ = result.source[0]
    assert inputs.shape == (3, 8, 8)
    assert 0 <= inputs.min() < inputs.max() <= 1
    assert result.source.image(0).size == (8, 8)  # type: ignore[union-attr]


def test_validation_folder(folder: Path, tmp_path: Path) -> None:
    validation = make_pictures(tmp_path / "validation", (4, 4), (8, 8))
    result = fast_prune(linear_model(), folder, 0.5, 2, validation_data=validation, progress=False)
    assert all(entry["validation_loss"] is not None for entry in result.history)


def test_hugging_face(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = sorted(map(str, folder.rglob("*.png")))
    labels = [int("dog" in path) for path in paths]
    data = datasets.Dataset.from_dict({"image": paths, "label": labels})
    data = data.cast_column("image", datasets.Image())
    result = fast_prune(linear_model(), data, 0.5, 2, progress=False)
    assert result.indices.numel() == 15
    assert not result.unreadable


def test_a_transform_of_ones_own_is_left_alone(folder: Path) -> None:
    seen: list[Any] = []

    def transform(image: Any) -> torch.Tensor:
        seen.append(image)
        return torch.zeros(3, 8, 8)

    fast_prune(linear_model(), folder, 0.5, 2, transform=transform, progress=False)
    assert seen
    assert all(isinstance(image, Image.Image) for image in seen)


def test_a_collate_function_of_ones_own_gets_images(folder: Path) -> None:
    def collate(pairs: list[Any]) -> Any:
        assert all(isinstance(image, Image.Image) for image, _ in pairs)
        inputs = torch.stack([to_tensor(image) for image, _ in pairs])
        return inputs, torch.tensor([target for _, target in pairs])

    fast_prune(linear_model(), folder, 0.5, 2, collate_fn=collate, progress=False)


def test_torchvision_image_folder(folder: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    data = torchvision.datasets.ImageFolder(folder, transform=to_tensor)
    assert fast_prune(linear_model(), data, 0.5, 2, progress=False).indices.numel() == 15
    data = torchvision.datasets.ImageFolder(folder)
    assert fast_prune(linear_model(), data, 0.5, 2, progress=False).indices.numel() == 15
