"""Warnings about a dataset, and fingerprints that tell datasets apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, Subset

from adapruner import Pruner, as_source
from adapruner.errors import PruningWarning

image = pytest.importorskip("PIL.Image")


class Bare(Dataset[Any]):
    """Samples that only reading tells about, with any attributes."""

    def __init__(self, length: int, **attributes: Any) -> None:
        self.length = length
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(2), index % 2


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(5):
            image.new("RGB", (8, 8), (i, 0, 0)).save(root / name / f"{i}.png")
    return root


def test_parts_of_a_dataset_taken_for_classes_are_warned_of(tmp_path: Path) -> None:
    parts = as_source(str(folder(tmp_path / "whole", "train", "Test")))
    pruner = Pruner(10, 0.5, 12)
    with pytest.warns(PruningWarning, match="the folders Test, train are taken for classes"):
        pruner.loader(parts, 4)
    assert "folders" in pruner.warnings
    assert as_source(str(folder(tmp_path / "classes", "train", "bus"))).doubts == {}


def test_a_fingerprint_of_name_and_length_alone_is_warned_of() -> None:
    source = as_source(Bare(10))
    assert source.fingerprint() == as_source(Bare(10)).fingerprint()
    with pytest.warns(PruningWarning, match="rests on its class name and length alone"):
        Pruner(10, 0.5, 12).loader(source, 4)
    assert as_source(Subset(Bare(10), range(4))).doubts == source.doubts
    assert as_source(Bare(10), fingerprint="mine").doubts == {}
    assert as_source(Bare(10, targets=[0, 1] * 5)).doubts == {}


@pytest.mark.parametrize(
    "form",
    [
        lambda paths: {"paths": paths},
        lambda paths: {"files": [Path(path) for path in paths]},
        lambda paths: {"samples": [(path, None) for path in paths]},
        lambda paths: {"imgs": tuple(paths)},
    ],
)
def test_paths_tell_datasets_apart_wherever_they_lie(form: Any) -> None:
    def made(root: str, kind: str) -> Any:
        return as_source(Bare(6, **form([f"{root}/{kind}/{i % 2}/{i}.png" for i in range(6)])))

    here = made("/data", "a").fingerprint()
    assert made("/data", "a").doubts == {}
    assert made("/elsewhere/deep", "a").fingerprint() == here  # moved
    renamed = [f"/data/a/{i % 2}/{9 * i}.png" for i in range(6)]
    assert as_source(Bare(6, **form(renamed))).fingerprint() != here
    assert as_source(Bare(6)).fingerprint() != here
