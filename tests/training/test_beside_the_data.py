"""Data beside the training data: validation data, evaluation transforms, checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.labelled import Coarse, Model, folder_of
from support.pictures import make_pictures
from torch import nn
from torch.utils.data import Subset, TensorDataset

from adapruner import PruneResult, fast_prune
from adapruner.data.sources.find import as_source
from adapruner.errors import PruningWarning

NAMES = ["cat", "dog", "eel"]


def test_checkpoints_must_lie_outside_the_image_folder(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", "ape", "bee")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    for place in (root / "checkpoints", root / "ape", root):
        with pytest.raises(ValueError, match="checkpoint_dir must be outside the image folder"):
            fast_prune(model, root, 0.5, 1, checkpoint_dir=place, progress=False)
    assert sorted(path.name for path in root.iterdir()) == ["ape", "bee"]
    fast_prune(model, root, 0.5, 1, checkpoint_dir=root / ".hidden", progress=False)
    assert (root / ".hidden").is_dir()  # no class


def run_with(validation: Any, **options: Any) -> PruneResult:
    data = (torch.eye(3).repeat(10, 1), NAMES * 10)
    return fast_prune(
        nn.Linear(3, 3), data, 0.5, 1, validation_data=validation, progress=False, **options
    )


@pytest.mark.parametrize("names", [["cat", "eel"], ["ant", "cat", "dog"]])
def test_validation_data_that_number_a_class_otherwise_are_refused(names: list[str]) -> None:
    validation = (torch.eye(3)[: len(names)], names)
    with pytest.raises(ValueError, match=r"found '\w+' to be class \d in data and class \d in"):
        run_with(validation)
    with pytest.warns(PruningWarning, match="must number the classes as data does"):
        run_with(validation, loss=lambda outputs, targets: outputs.square().mean(1))


@pytest.mark.parametrize("names", [NAMES, NAMES[:2], ["kitten", "puppy"]])
def test_validation_data_may_have_fewer_classes_or_other_names(names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*number the classes")
        result = run_with((torch.eye(3)[: len(names)], names))
    assert result.history[0]["validation_loss"] > 0


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


class Own(Subset[Any]):
    """A Subset that makes its items itself."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)

    def __getitems__(self, indices: list[int]) -> Any:
        return super().__getitems__(indices)


@pytest.mark.parametrize("kind", ["arrays", "folder"])
def test_evaluation_transform_is_in_the_place_of_the_one_below_a_subset(
    tmp_path: Path, kind: str
) -> None:
    reads = {"train": 0, "evaluation": 0}

    def counting(name: str) -> Any:
        def transform(x: Any) -> torch.Tensor:
            reads[name] += 1
            return torch.zeros(3)

        return transform

    data: Any = (torch.rand(500, 3), torch.arange(500) % 2)
    if kind == "folder":
        data = make_pictures(tmp_path / "f", counts=(250, 250), size=(4, 4))
    source = as_source(data, transform=counting("train"))
    result = fast_prune(
        nn.Linear(3, 2),
        Subset(source, range(50, 450)),
        0.5,
        2,
        evaluation_transform=counting("evaluation"),
        progress=False,
    )
    assert reads["evaluation"] == sum(entry["samples_evaluated"] for entry in result.history) > 0
    assert reads["train"] == sum(entry["samples_read"] for entry in result.history)


def test_evaluation_transform_of_a_subset_that_makes_its_items() -> None:
    seen = []

    def evaluation(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    dataset = Own(TensorDataset(torch.rand(500, 3), torch.arange(500) % 2), range(400))
    result = fast_prune(
        nn.Linear(3, 2), dataset, 0.5, 2, evaluation_transform=evaluation, progress=False
    )
    assert len(seen) == sum(entry["samples_evaluated"] for entry in result.history) > 0
