"""Sources of map-style datasets and of subsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import INPUTS, TARGETS, Pairs, double, make_image_folder, sha256, to_tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from adapruner.data import as_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


def test_dataset_of_pairs() -> None:
    dataset = Pairs([(i, i % 2) for i in range(4)], targets=[0, 1, 0, 1], classes=["even", "odd"])
    source = as_source(dataset, transform=double)
    assert (source.kind, len(source), source.deterministic) == ("dataset", 4, False)
    assert source[3] == (6, 1)
    assert source.class_names == ["even", "odd"]
    assert source.targets is not None
    assert source.targets.tolist() == [0, 1, 0, 1]
    assert source.image(0) is None
    assert as_source([(1, 2), [3, 4]])[1] == (3, 4)


@pytest.mark.parametrize("name", ["targets", "labels", "y"])
@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_targets_are_found(name: str, form: Any) -> None:
    source = as_source(Pairs([(0, 0)] * 3, **{name: form([2, 0, 1])}))
    assert source.targets is not None
    assert source.targets.dtype == np.int64
    assert source.targets.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"targets": [0, 1]},
        {"targets": [0.5, 1.0, 2.0]},
        {"targets": ["a", "b", "c"]},
        {"targets": "abc"},
        {"targets": [[0], [1, 2], []]},
        {"targets": [True, False, True]},
        {"targets": None},
        {"targets": [0, 1, 2], "target_transform": double},
    ],
)
def test_targets_that_are_not_known(attributes: dict[str, Any]) -> None:
    assert as_source(Pairs([(0, 0)] * 3, **attributes)).targets is None


def test_dataset_fingerprint_is_over_class_length_and_targets() -> None:
    samples = [(0, 0)] * 3
    assert as_source(Pairs(samples)).fingerprint() == sha256(b"adapruner dataset 1\nPairs\n3\n")
    assert as_source(Pairs(samples, targets=[2, 0, 1])).fingerprint() == sha256(
        b"adapruner dataset 1\nPairs\n3\nint64 [3]\n", np.array([2, 0, 1]).astype("<i8").tobytes()
    )

    class Other(Pairs):
        pass

    variants = [
        Pairs(samples),
        Other(samples),
        Pairs(samples * 2),
        Pairs(samples, targets=[2, 0, 1]),
        Pairs(samples, targets=[2, 0, 0]),
        Pairs(samples, labels=[0.5, 1.5, 2.5]),
    ]
    assert len({as_source(dataset).fingerprint() for dataset in variants}) == len(variants)
    changed = Pairs(samples, targets=[2, 0, 1], target_transform=double)
    assert (
        as_source(changed, transform=double).fingerprint() == as_source(variants[3]).fingerprint()
    )


@pytest.mark.parametrize("sample", [(1, 2, 3), (1,), {"a": 1}, torch.zeros(2), "ab"])
def test_an_item_that_is_no_pair_is_an_input_as_a_whole(sample: Any) -> None:
    inputs, target = as_source(Pairs([(0, 0), sample]))[1]
    assert inputs is sample
    assert target is None


def test_errors_of_a_dataset_pass_unchanged() -> None:
    class Failing(Pairs):
        def __getitem__(self, index: int) -> Any:
            raise ZeroDivisionError("from the dataset")

    with pytest.raises(ZeroDivisionError, match="from the dataset"):
        as_source(Failing([0]))[0]


def test_torchvision_dataset_in_memory() -> None:
    torchvision = pytest.importorskip("torchvision")

    class Small(torchvision.datasets.VisionDataset):  # type: ignore[misc, name-defined]
        targets = (1, 0)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Any, int]:
            from PIL import Image

            image = Image.new("L", (4, 4), index)
            return (self.transform(image) if self.transform else image), self.targets[index]

    dataset = Small("unused", transform=to_tensor)
    source = as_source(dataset)
    assert isinstance(source[1][0], torch.Tensor)
    assert source.image(1).getpixel((0, 0)) == 1  # type: ignore[union-attr]
    assert dataset.transform is to_tensor


def test_subset_of_arrays() -> None:
    source = as_source(Subset(TensorDataset(INPUTS, TARGETS), torch.tensor([4, 0, -1])))
    assert (len(source), source.kind, source.deterministic) == (3, "arrays", True)
    assert [sample[1].item() for sample in source] == [2, 0, 2]
    assert source.targets is not None
    assert source.targets.tolist() == [2, 0, 2]
    assert np.array_equal(source.image(0), INPUTS[4].numpy())  # type: ignore[arg-type]
    whole = as_source((INPUTS, TARGETS)).fingerprint()
    indices = np.array([4, 0, 5]).astype("<i8").tobytes()
    expected = sha256(f"adapruner subset 1\n{whole}\nint64 [3]\n".encode(), indices)
    assert source.fingerprint() == expected


def test_subset_of_subset_of_a_folder(folder: Path) -> None:
    whole = as_source(folder)
    inner: Subset[Any] = Subset(whole, range(0, 8, 2))
    source = as_source(Subset(inner, [3, 1]), transform=to_tensor)
    assert whole.paths is not None
    assert whole.sizes is not None
    assert source.sizes is not None
    assert source.paths == [whole.paths[6], whole.paths[2]]
    assert source.sizes.tolist() == whole.sizes[[6, 2]].tolist()
    assert (source.root, source.class_names) == (whole.root, whole.class_names)
    assert torch.equal(source[1][0], to_tensor(whole[2][0]))
    assert source.image(1).size == whole[2][0].size  # type: ignore[union-attr]


def test_subsets_differ_by_indices_and_by_base() -> None:
    other = TensorDataset(INPUTS + 1, TARGETS)
    data = TensorDataset(INPUTS, TARGETS)
    subsets = [
        Subset(data, [0, 1]),
        Subset(data, [1, 0]),
        Subset(data, [0, 1, 2]),
        Subset(other, [0, 1]),
        Subset(Subset(data, [0, 1]), [0, 1]),
    ]
    assert len({as_source(subset).fingerprint() for subset in subsets}) == len(subsets)
    split = torch.utils.data.random_split(data, [4, 2], torch.Generator().manual_seed(0))
    assert as_source(split[0]).fingerprint() != as_source(split[1]).fingerprint()


def test_subset_that_reads_in_its_own_way() -> None:
    class Doubled(Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            inputs, target = super().__getitem__(index)
            return inputs * 2, target + 1

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices]

    source = as_source(Doubled(TensorDataset(INPUTS, TARGETS), [3, 1]))
    assert torch.equal(source[1][0], 2 * INPUTS[1])
    assert source[1][1] == TARGETS[1] + 1
    assert source.targets is None
    assert not source.deterministic


def test_subset_index_out_of_range() -> None:
    with pytest.raises(IndexError, match="index 6 of the Subset is out of range for 6 samples"):
        as_source(Subset(TensorDataset(INPUTS, TARGETS), [0, 6]))


def test_the_order_of_joined_datasets_is_part_of_the_fingerprint() -> None:
    a, b = TensorDataset(INPUTS, TARGETS), TensorDataset(INPUTS + 1, TARGETS)
    first, second = as_source(ConcatDataset([a, b])), as_source(ConcatDataset([b, a]))
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == as_source(ConcatDataset([a, b])).fingerprint()
    assert first.fingerprint() != as_source(ConcatDataset([a, a])).fingerprint()
    assert first.fingerprint() != as_source(ConcatDataset([ConcatDataset([a, b])])).fingerprint()


def test_joined_datasets_of_equal_names_and_lengths_differ_by_their_parts() -> None:
    """Parts without any content that can be seen are told apart by their order at least."""
    a = Pairs([(0, 0)] * 3, targets=[0, 1, 2])
    b = Pairs([(1, 1)] * 3, targets=[2, 1, 0])
    assert (
        as_source(ConcatDataset([a, b])).fingerprint()
        != as_source(ConcatDataset([b, a])).fingerprint()
    )


def test_joined_datasets_have_the_samples_and_classes_of_their_parts(folder: Path) -> None:
    pairs = Pairs([(i, i % 2) for i in range(4)], targets=[0, 1, 0, 1])
    empty: Pairs = Pairs([])
    source = as_source(ConcatDataset([pairs, empty, Subset(pairs, [3, 1])]))
    assert [source[i] for i in range(len(source))] == [
        (0, 0),
        (1, 1),
        (2, 0),
        (3, 1),
        (3, 1),
        (1, 1),
    ]
    assert source.targets is not None
    assert source.targets.tolist() == [0, 1, 0, 1, 1, 1]
    images = as_source(folder)
    joined = as_source(ConcatDataset([images, images]))
    assert joined.class_names == images.class_names
    assert as_source(ConcatDataset([pairs, Pairs([(0, 0)])])).targets is None


def test_a_joined_dataset_that_reads_otherwise_keeps_no_classes_of_its_parts() -> None:
    class Swapped(ConcatDataset[Any]):
        def __getitem__(self, index: int) -> Any:
            inputs, target = super().__getitem__(index)
            return inputs, 1 - target

    pairs = Pairs([(i, i % 2) for i in range(4)], targets=[0, 1, 0, 1])
    assert as_source(Swapped([pairs, pairs])).targets is None
