"""with_ids: the dataset index in each sample, whatever the sample is and whatever collates it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from adapruner import with_ids


class Pair(NamedTuple):
    image: Tensor
    label: int


class WithIds(NamedTuple):
    image: Tensor
    ids: int


def image(index: int) -> Tensor:
    return torch.full((2,), float(index))


FORMS: dict[str, Any] = {
    "tuple": lambda i: (image(i), i % 3),
    "list": lambda i: [image(i), i % 3],
    "dict": lambda i: {"image": image(i), "label": i % 3},
    "namedtuple": lambda i: Pair(image(i), i % 3),
    "tensor": image,
}


class Samples(Dataset[Any]):
    def __init__(self, form: str) -> None:
        self.form = form

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return FORMS[self.form](index)


def ids_of(batch: Any) -> Tensor:
    return batch["ids"] if isinstance(batch, dict) else batch[-1]


def images_of(batch: Any) -> Tensor:
    return batch["image"] if isinstance(batch, dict) else batch[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_every_sample_has_its_index(form: str, workers: int) -> None:
    dataset = with_ids(Samples(form))
    assert len(dataset) == 10
    loader = DataLoader(
        dataset, 4, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(3)
    )
    seen = []
    for batch in loader:
        assert torch.equal(images_of(batch)[:, 0].long(), ids_of(batch))
        if form == "namedtuple":
            assert torch.equal(batch.ids, ids_of(batch))
            assert torch.equal(batch.label, batch.ids % 3)
        seen += ids_of(batch).tolist()
    assert sorted(seen) == list(range(10))


def test_the_sample_itself_is_as_it_was() -> None:
    original = Samples("namedtuple")[7]
    found = with_ids(Samples("namedtuple"))[7]
    assert type(found).__name__ == "Pair"
    assert found._fields == ("image", "label", "ids")
    assert torch.equal(found.image, original.image)
    assert (found.label, found.ids) == (1, 7)
    assert type(found) is type(with_ids(Samples("namedtuple"))[2])
    assert isinstance(with_ids(Samples("list"))[0], list)


def test_a_batch_is_read_as_one_where_the_dataset_can() -> None:
    asked = []

    class Together(TensorDataset):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            asked.append(indices)
            return [self[index] for index in indices]

    data = Together(torch.arange(9), torch.arange(9) % 2)
    batches = list(DataLoader(with_ids(data), batch_size=4))
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert [ids.tolist() for _, _, ids in batches] == asked


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"ids": 1}, "without a key 'ids'; found one in sample 0"),
        (WithIds(torch.zeros(1), 3), "without a field 'ids'; found one in WithIds"),
    ],
)
def test_a_name_that_is_taken_is_refused(sample: Any, message: str) -> None:
    class Taken(Samples):
        def __getitem__(self, index: int) -> Any:
            return sample

    with pytest.raises(ValueError, match=message):
        with_ids(Taken("tuple"))[0]


class Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize("data", [iter([1, 2]), 3, None, Stream()])
def test_what_is_not_a_dataset_is_refused(data: Any) -> None:
    with pytest.raises(TypeError, match=f"map-style dataset.*found {type(data).__name__}"):
        with_ids(data)
