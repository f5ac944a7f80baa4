"""Unreadable samples are left out and listed, or they end the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import Counted, Followed, all_ids, loader_of, order_of
from torch.utils.data import TensorDataset, default_collate

from adapruner import Pruner, UnreadableSampleError


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [OSError, ValueError, IndexError, StopIteration, RuntimeError])
def test_unreadable_samples_are_left_out_and_reported(
    num_workers: int, error: type[Exception]
) -> None:
    bad = [4, 17, 18, 19, 39]
    followed = Followed(40)
    loader = loader_of(Counted(40, bad=bad, error=error), followed, num_workers=num_workers)
    met = []
    for inputs, targets, ids in loader:
        assert torch.equal(inputs[:, 0], ids.float())
        assert torch.equal(targets, ids % 3)
        met += ids.tolist()
    assert sorted(met) == sorted(set(range(40)) - set(bad))
    assert sorted(followed.unreadable) == [
        (index, f"{error.__name__}: no such luck with {index}") for index in bad
    ]


def test_reason_has_no_address_in_memory() -> None:
    """Messages of Pillow and others contain addresses, which differ between runs."""

    class Objects(Counted):
        def __getitem__(self, index: int) -> Any:
            if index == 5:
                raise OSError(f"cannot identify {object()!r} at all")
            return super().__getitem__(index)

    followed = Followed(20)
    all_ids(loader_of(Objects(20), followed))
    assert followed.unreadable == [(5, "OSError: cannot identify <object object> at all")]


def test_sample_that_is_no_pair_is_unreadable() -> None:
    class Triples(Counted):
        def __getitem__(self, index: int) -> Any:
            return (1, 2, 3) if index == 5 else super().__getitem__(index)

    followed = Followed(20)
    assert 5 not in all_ids(loader_of(Triples(20), followed))
    [(index, reason)] = followed.unreadable
    assert index == 5
    assert "a tuple of 3 elements" in reason


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_sample_can_stop_the_run(num_workers: int) -> None:
    loader = loader_of(Counted(40, bad=[17]), num_workers=num_workers, on_error="raise")
    with pytest.raises(
        UnreadableSampleError, match="sample 17 cannot be read: OSError: no such luck with 17"
    ):
        all_ids(loader)


def test_batch_that_is_unreadable_as_a_whole_is_left_out() -> None:
    order = order_of(np.ones(40, dtype=bool), 0, 0)
    bad = order[8:16].tolist()
    followed = Followed(40)
    sizes = [len(ids) for _, _, ids in loader_of(Counted(40, bad=bad), followed)]
    assert sizes == [8] * 4
    assert sorted(index for index, _ in followed.unreadable) == sorted(bad)


def test_nothing_readable_is_an_error_at_once() -> None:
    dataset = Counted(4000, bad=range(4000))
    loader = loader_of(dataset, batch_size=32)
    first = order_of(np.ones(4000, dtype=bool), 0, 0)[0]
    with pytest.raises(
        UnreadableSampleError,
        match=f"none of the first 32 samples can be read; found for sample {first}: OSError",
    ):
        all_ids(loader)
    assert dataset.reads.sum() == 32


@pytest.mark.parametrize("batch_size", [1, 2])
def test_small_first_batch_may_be_unreadable(batch_size: int) -> None:
    first = order_of(np.ones(40, dtype=bool), 0, 0)[:3].tolist()
    followed = Followed(40)
    met = all_ids(loader_of(Counted(40, bad=first), followed, batch_size=batch_size))
    assert sorted(met) == sorted(set(range(40)) - set(first))
    assert sorted(index for index, _ in followed.unreadable) == sorted(first)


@pytest.mark.parametrize("num_samples", [3, 4000])
def test_nothing_readable_in_batches_of_one(num_samples: int) -> None:
    dataset = Counted(num_samples, bad=range(num_samples))
    with pytest.raises(UnreadableSampleError, match=r"none of the first \d+ samples can be read"):
        all_ids(loader_of(dataset, batch_size=1))
    assert dataset.reads.sum() <= 32


def test_pruner_lists_the_unreadable_and_keeps_exactly_among_the_rest() -> None:
    bad = list(range(0, 100, 7))
    dataset = Counted(100, bad=bad)
    pruner = Pruner(100, 0.8, epochs=5)
    loader = pruner.loader(dataset, batch_size=16)
    while not pruner.finished:
        dataset.reads[:] = 0
        for inputs, _, ids in loader:
            pruner.weigh(inputs[:, 0] / 50, ids)
        assert pruner.step()["samples_read"] == dataset.reads.sum() - (
            dataset.reads[bad].sum()  # failed reads do not count
        )
    result = pruner.result()
    assert result.unreadable == [(i, f"OSError: no such luck with {i}") for i in bad]
    assert len(result.indices) == 80
    assert not set(result.indices.tolist()) & set(bad)
    assert (result.gate_logits[bad] == -torch.inf).all()
    # Known unreadable samples are not tried again.
    assert [entry["kept"] for entry in pruner.history] == [100, 85, 85, 80, 80]


def test_too_few_readable_samples_are_an_error() -> None:
    pruner = Pruner(100, 0.8, epochs=5)
    loader = pruner.loader(Counted(100, bad=range(40, 66)), batch_size=16)
    for inputs, _, ids in loader:
        pruner.weigh(inputs[:, 0], ids)
    with pytest.raises(ValueError, match="needs 80 readable samples; found 74"):
        pruner.step()


class Torn:
    """An item that cannot be taken out of a worker's message, as if the worker had died."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


def _raise(error: type[Exception]) -> Any:
    raise error(104, "Connection reset by peer")


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_worker_that_dies_with_a_batch_in_its_hands_is_named(error: type[Exception]) -> None:
    loader = Pruner(8, 0.5, 2).loader(
        TensorDataset(torch.zeros(8, 2), torch.zeros(8).long()),
        4,
        num_workers=1,
        collate_fn=lambda samples: (Torn(error), default_collate([y for _, y in samples])),
    )
    with pytest.raises(RuntimeError, match="DataLoader worker exited unexpectedly") as caught:
        next(iter(loader))
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_connection_error_of_a_batch_stays_one(num_workers: int) -> None:
    def collate(samples: list[Any]) -> Any:
        raise ConnectionResetError("the store went away")

    loader = Pruner(8, 0.5, 2).loader(
        Counted(8), 4, num_workers=num_workers, collate_fn=collate, on_error="raise"
    )
    with pytest.raises(ConnectionResetError, match="the store went away"):
        list(loader)
