"""A user's DataLoader with a pruner: its own samples, in the pruner's order, with ids."""

from __future__ import annotations

import time
from collections import namedtuple
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import frozen
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from adapruner import Pruner, pruned_loader
from adapruner.errors import DatasetMismatchError

N = 103
Pair = namedtuple("Pair", ["value", "label"])


class Forms(Dataset[Any]):
    """Samples of a form, whose values are ten times their index."""

    def __init__(self, form: Any, together: bool = False) -> None:
        self.form, self.reads = form, 0
        if together:
            self.__getitems__ = self.read_together

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.form(torch.tensor(10 * index), index % 3)

    def read_together(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def step(pruner: Pruner, batches: Iterable[torch.Tensor]) -> None:
    losses = frozen(N)(pruner.epoch)
    for ids in batches:
        pruner.weigh(losses[ids], ids)
    pruner.step()


FORMS: dict[str, tuple[Any, Any]] = {
    "tuple": (lambda x, y: (x, y), lambda batch: (batch[0], batch[2])),
    "mapping": (lambda x, y: {"x": x, "y": y}, lambda batch: (batch["x"], batch["ids"])),
    "namedtuple": (lambda x, y: Pair(x, y), lambda batch: (batch.value, batch.ids)),
    "tensor": (lambda x, y: x, lambda batch: batch),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("workers", "together"), [(0, False), (0, True), (2, True)])
def test_batches_are_those_of_the_pruner_with_its_ids(
    form: str, workers: int, together: bool
) -> None:
    make, parts = FORMS[form]
    pruner = Pruner(N, 0.4, 12)
    ordinary = DataLoader(Forms(make, together), 16, shuffle=True, num_workers=workers)
    loader = pruned_loader(ordinary, pruner)
    assert isinstance(loader, DataLoader)
    for _ in range(4):
        expected = list(pruner.batches(16))
        assert len(loader) == len(expected)
        found = [parts(batch) for batch in loader]
        assert [ids.tolist() for _, ids in found] == [ids.tolist() for ids in expected]
        assert all(torch.equal(values, 10 * ids) for values, ids in found)
        step(pruner, expected)


def test_options_and_the_collate_function_are_kept() -> None:
    def collate(samples: list[Any]) -> dict[str, Any]:
        assert not any("ids" in sample for sample in samples)
        return {"sum": sum(sample["x"] for sample in samples)}

    dataset = Forms(FORMS["mapping"][0])
    ordinary = DataLoader(
        dataset, 10, drop_last=True, collate_fn=collate, pin_memory=False, timeout=0
    )
    pruner = Pruner(N, 0.5, 12)
    loader = pruned_loader(ordinary, pruner)
    batches = list(loader)
    assert len(batches) == len(loader) == N // 10
    assert all(batch["sum"] == 10 * batch["ids"].sum() for batch in batches)
    assert pruner.may_drop == 9
    of_sampler = DataLoader(
        dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 7, True)
    )
    assert [len(b) for b in DataLoader.__iter__(pruned_loader(of_sampler, pruner))] == [3] * 14
    assert dataset.reads == N // 10 * 10 + 98


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_in_the_middle_of_an_epoch(workers: int) -> None:
    def start() -> tuple[Pruner, Any]:
        data = TensorDataset(torch.arange(N))
        pruner = Pruner(N, 0.5, 12)
        return pruner, pruned_loader(DataLoader(data, 10, num_workers=workers), pruner)

    losses = torch.rand(N, generator=torch.Generator().manual_seed(0))
    for epochs, stop in ((0, 0), (0, 1), (5, 3), (5, 6)):
        pruner, loader = start()
        for _ in range(epochs):
            step(pruner, [ids for _, ids in loader])
        whole = [ids.tolist() for _, ids in loader]
        batches = iter(loader)  # the workers read ahead
        for _, ids in islice(batches, stop):
            pruner.weigh(losses[ids], ids)
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (epochs, stop if stop else len(whole))
        again, other = start()
        again.load_state_dict(pruner.state_dict())
        other.load_state_dict(state | {"position": stop})
        assert other.state_dict()["position"] == stop
        assert [ids.tolist() for _, ids in other] == whole[stop:]
        assert [ids.tolist() for _, ids in other] == whole


def test_a_sampler_that_is_left_out_is_warned_of() -> None:
    data = TensorDataset(torch.rand(N))
    for sampler, name in (
        (WeightedRandomSampler(torch.rand(N).tolist(), N), "WeightedRandomSampler"),
        (RandomSampler(data, replacement=True), "RandomSampler"),
        (RandomSampler(data, num_samples=N // 2), "RandomSampler"),
        (SubsetRandomSampler(range(50)), "SubsetRandomSampler"),
    ):
        pruner = Pruner(N, 0.5, 12)
        with pytest.warns(UserWarning, match=f"found a loader whose {name} does so too"):
            pruned_loader(DataLoader(data, 8, sampler=sampler), pruner)
        assert "sampler" in pruner.warnings
    pruner = Pruner(N, 0.5, 12)
    for options in (
        {},
        {"shuffle": True},
        {"sampler": DistributedSampler(data, num_replicas=2, rank=0)},
    ):
        pruned_loader(DataLoader(data, 8, **options), pruner)
    assert pruner.warnings == {}


def test_the_pruner_learns_of_the_dataset() -> None:
    x, y = torch.rand(N, 2), torch.arange(N) % 3
    pruner = Pruner(N, 0.5, 12)
    pruned_loader(DataLoader(TensorDataset(x, y), 8), pruner)
    again = Pruner(N, 0.5, 12)
    again.loader((x, y), 8)
    assert pruner.fingerprint == again.fingerprint
    assert pruner.samples is not None
    assert np.array_equal(pruner.samples.targets, y.numpy())
    three = Pruner(N, 0.5, 12)
    pruned_loader(DataLoader(TensorDataset(x, y, y), 8), three)
    assert three.fingerprint != pruner.fingerprint
    assert "fingerprint" not in three.warnings


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(range(N))


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (lambda: [1, 2], TypeError, "must be a torch DataLoader; found list"),
        (lambda: DataLoader(Stream(), 4), TypeError, "found the IterableDataset Stream"),
        (
            lambda: DataLoader(TensorDataset(torch.rand(N, 2), torch.rand(N)), batch_size=None),
            ValueError,
            "found one whose batch sampler, NoneType, has no batch_size",
        ),
        (
            lambda: DataLoader(TensorDataset(torch.rand(9, 2), torch.rand(9)), 4),
            DatasetMismatchError,
            f"expected number of samples {N}, found 9",
        ),
        (
            lambda: DataLoader(Forms(lambda x, y: {"ids": x}), 4),
            ValueError,
            "expected samples without a key 'ids'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(loader: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        next(iter(pruned_loader(loader(), Pruner(N, 0.5, 12))))


class Slow(Dataset[Any]):
    """The first sample takes longer than the next batches."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 0:
            time.sleep(1.0)
        return torch.zeros(2), index


def test_batches_come_in_order_whatever_the_loader_was_asked_for() -> None:
    loader = DataLoader(Slow(), 4, num_workers=2, in_order=False)
    pruner = Pruner(32, epochs=4)
    pruned = pruned_loader(loader, pruner)
    read = [ids.tolist() for _, _, ids in pruned]
    assert read == [ids.tolist() for ids in pruner.batches(4)]
