"""Data beside the training data: validation data, evaluation transforms, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.labelled import Coarse, Model, folder_of
from torch import nn
from torch.utils.data import Subset

from adapruner import fast_prune
from adapruner.data.sources.find import as_source


def test_checkpoints_must_lie_outside_the_image_folder(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", "ape", "bee")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    for place in (root / "checkpoints", root / "ape", root):
        with pytest.raises(ValueError, match="checkpoint_dir must be outside the image folder"):
            fast_prune(model, root, 0.5, 1, checkpoint_dir=place, progress=False)
    assert sorted(path.name for path in root.iterdir()) == ["ape", "bee"]


NAMES = ["cat", "dog", "eel"]


@pytest.mark.parametrize("given", [["cat", "eel"], ["dog", "cat", "eel"], ["ant", "cat", "dog"]])
def test_validation_data_number_the_classes_as_the_data_do(given: list[str]) -> None:
    data = (torch.eye(3).repeat(10, 1), NAMES * 10)
    x = torch.eye(3)[: len(given)]
    order = sorted(given)
    if order == NAMES:  # text is numbered in sorted order
        validation: Any = (x, given)
    else:
        validation = (x, given)
        with pytest.raises(ValueError, match=r"number the classes as data does; found class \d"):
            fast_prune(nn.Linear(3, 3), data, 0.5, 1, validation_data=validation, progress=False)
        return
    fast_prune(nn.Linear(3, 3), data, 0.5, 1, validation_data=validation, progress=False)


def test_validation_data_of_the_first_classes_alone() -> None:
    data = (torch.eye(3).repeat(10, 1), NAMES * 10)
    validation = (torch.eye(3)[:2], NAMES[:2])
    result = fast_prune(nn.Linear(3, 3), data, 0.5, 1, validation_data=validation, progress=False)
    assert result.history[0]["samples_evaluated"] == 0


def test_validation_data_of_another_form_than_the_data() -> None:
    seen = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(targets.clone())
        return outputs.square().mean(1)

    class Both(Model):
        def forward(self, x: Any, **_: Any) -> torch.Tensor:
            return self.layer(x)

    validation = (torch.zeros(4, 3), torch.tensor([3, 3, 3, 3]))
    fast_prune(
        Both(),
        Coarse(),
        0.5,
        1,
        target="label",
        loss=loss,
        validation_data=validation,
        progress=False,
    )
    assert [3, 3, 3, 3] in [targets.tolist() for targets in seen]


def test_evaluation_transform_is_in_the_place_of_the_one_below_a_subset() -> None:
    reads = {"train": 0, "evaluation": 0}

    def counting(name: str) -> Any:
        def transform(x: torch.Tensor) -> torch.Tensor:
            reads[name] += 1
            return x

        return transform

    source = as_source((torch.rand(500, 3), torch.arange(500) % 2), transform=counting("train"))
    result = fast_prune(
        nn.Linear(3, 2),
        Subset(source, range(400)),
        0.5,
        3,
        evaluation_transform=counting("evaluation"),
        progress=False,
    )
    assert reads["evaluation"] == sum(entry["samples_evaluated"] for entry in result.history) > 0
    assert reads["train"] == sum(entry["samples_read"] for entry in result.history)
