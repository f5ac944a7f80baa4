"""The classes that a source knows are those that its items give, whatever the dataset stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.labelled import Coarse, Model, folder_of
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from adapruner import fast_prune
from adapruner.data.sources.find import as_source


def test_stored_classes_count_only_where_items_have_them_as_targets() -> None:
    assert as_source(Coarse(), target="label").targets.tolist() == [i % 5 for i in range(60)]
    for dataset in (Coarse(), Subset(Coarse(), range(50)), ConcatDataset([Coarse(), Coarse()])):
        source = as_source(dataset, target="coarse")
        assert (source.targets, source.class_names) == (None, None)
    with pytest.raises(ValueError, match="balance"):
        fast_prune(Model(), Coarse(), 0.5, 2, target="coarse", balance="class", progress=False)
    result = fast_prune(Model(), Coarse(), 0.5, 2, target="coarse", progress=False)
    assert result.targets is None


@pytest.mark.parametrize(
    "form",
    [
        np.int64,
        np.array,
        torch.tensor,
        lambda number: torch.tensor([number], dtype=torch.uint8),
        float,
        lambda number: torch.full((3,), number),  # no single number
    ],
)
def test_targets_of_any_form_are_compared(form: Any) -> None:
    class Formed(Coarse):
        def __getitem__(self, index: int) -> dict[str, Any]:
            item = super().__getitem__(index)
            return item | {"coarse": form(item["coarse"]), "label": form(item["label"])}

    assert as_source(Formed(), target="coarse").targets is None
    known = as_source(Formed(), target="label").targets
    if np.size(np.asarray(form(1))) == 1:
        assert known.tolist() == Coarse().labels
    else:
        assert known is None


def test_a_sample_without_its_target_is_left_to_the_run() -> None:
    class Lacking(Coarse):
        def __getitem__(self, index: int) -> dict[str, Any]:
            item = super().__getitem__(index)
            return {"x": item["x"]} if index == 0 else item

    assert as_source(Lacking(), target="label").targets.tolist() == Lacking().labels
    result = fast_prune(Model(), Lacking(), 0.5, 2, target="label", progress=False)
    assert [index for index, _ in result.unreadable] == [0]


@pytest.mark.parametrize("place", [0, 1, 2, -1])
def test_the_targets_of_tensors_are_those_at_the_place(place: int) -> None:
    tensors = [torch.arange(6) + 10 * i for i in range(3)]
    source = as_source(TensorDataset(*tensors), target=place)
    assert source.targets.tolist() == tensors[place].tolist()
    assert [source[i][1].item() for i in range(6)] == tensors[place].tolist()
    part = as_source(Subset(TensorDataset(*tensors), [4, 1]), target=place)
    assert part.targets.tolist() == tensors[place][[4, 1]].tolist()
    two = as_source(ConcatDataset([TensorDataset(*tensors)] * 2), target=place)
    assert two.targets.tolist() == tensors[place].tolist() * 2


def test_a_place_that_items_lack_gives_no_targets() -> None:
    assert as_source(TensorDataset(torch.rand(4, 2), torch.arange(4)), target=5).targets is None


def test_texts_that_items_number_in_another_order_are_not_classes() -> None:
    class Own(Dataset[Any]):
        targets = ("b", "a", "c") * 4

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[int, Any]:
            return index, self.targets[(index + 1) % 12]

    assert as_source(Own()).targets is None


@pytest.mark.parametrize("labels", [[1, 2, 3], ["cat", "dog", "eel"]])
def test_a_transform_of_hugging_face_that_changes_labels(labels: list[Any]) -> None:
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_dict({"input": [[0.0]] * 30, "label": labels * 10})

    def changed(rows: dict[str, Any]) -> dict[str, Any]:
        torch.rand(1)  # as an augmentation would draw
        numbers = [2 - labels.index(value) for value in rows["label"]]
        return {"input": torch.tensor(rows["input"]), "label": numbers}

    def unchanged(rows: dict[str, Any]) -> dict[str, Any]:
        return {"input": torch.tensor(rows["input"]), "label": rows["label"]}

    state = torch.get_rng_state()
    source = as_source(plain.with_transform(changed))
    assert torch.equal(torch.get_rng_state(), state)
    assert (source.targets, source.class_names) == (None, None)
    assert source[0][1] == 2
    same = as_source(plain.with_transform(unchanged))
    assert same.targets.tolist() == as_source(plain).targets.tolist()
    assert same.class_names == as_source(plain).class_names


def test_joined_parts_that_number_their_classes_differently_are_warned_of() -> None:
    parts = [
        as_source((torch.zeros(6, 3), names * 3)) for names in (["cat", "dog"], ["dog", "eel"])
    ]
    joined = as_source(ConcatDataset(parts))
    assert "class 0 is 'cat' in part 0 and 'dog' in part 1" in joined.doubts["class_names"]
    assert "class_names" not in as_source(ConcatDataset(parts[:1] * 2)).doubts
    with pytest.warns(UserWarning, match="number their classes differently"):
        fast_prune(nn.Linear(3, 2), joined, 0.5, 1, progress=False)


def test_joined_targets_of_several_forms() -> None:
    flat = TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1]))
    column = TensorDataset(torch.zeros(2, 2), torch.tensor([[4], [3]], dtype=torch.uint8))
    assert as_source(ConcatDataset([flat, column])).targets.tolist() == [2, 0, 1, 4, 3]


def test_a_derived_subset_has_its_target_too() -> None:
    class Own(Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index)

        def __getitems__(self, indices: list[int]) -> Any:
            return super().__getitems__(indices)

    source = as_source(Own(Coarse(), range(20, 50)), target="coarse")
    assert source[1][1] == 1
    assert set(source[1][0]) == {"x", "label"}


def test_a_link_to_the_root_does_not_hold_all_images(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", "cat", "dog")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "deep").mkdir()
    (root / "dog" / "deep" / "up").symlink_to(root / "dog")
    assert np.bincount(as_source(root).targets).tolist() == [3, 3]


def test_a_class_folder_without_images_changes_the_fingerprint(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from torchvision.datasets import ImageFolder

    root = folder_of(tmp_path / "f", "ape", "zebra")
    before = as_source(root).fingerprint()
    (root / "bee").mkdir()
    with pytest.warns(UserWarning, match="1 of 3 class folders"):
        after = as_source(root)
    assert after.fingerprint() != before  # zebras are class 2 now
    other = as_source(ImageFolder(root, allow_empty=True))
    assert other.fingerprint() == after.fingerprint()
    (root / "bee").rmdir()
    assert as_source(root).fingerprint() == before
    assert as_source(ImageFolder(root)).fingerprint() == before
