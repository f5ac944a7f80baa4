"""The torch loader: the samples of each epoch, random numbers, workers and arguments."""

from __future__ import annotations

import gc
import multiprocessing
import os
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import (
    Augmented,
    Counted,
    Followed,
    all_ids,
    blobs,
    drive,
    generator_states,
    loader_of,
    order_of,
)
from torch import Tensor
from torch.utils.data import Dataset

from adapruner import DatasetMismatchError, PrunedBatchSampler, Pruner, as_source
from adapruner.data.loaders.torch_loader import evaluation_loader
from adapruner.pruning import bitmask
from adapruner.pruning.distributed import Ranks
from adapruner.pruning.selection import keep_count

# --- order and ids


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ids_travel_with_the_data(num_workers: int) -> None:
    dataset, followed = Counted(61), Followed(61, seed=3)
    loader = loader_of(dataset, followed, num_workers=num_workers)
    random = np.random.default_rng(0)
    for epoch in range(3):
        followed.epoch, met = epoch, []
        for inputs, targets, ids in loader:
            assert ids.dtype == torch.int64
            assert torch.equal(inputs, ids[:, None].expand(-1, 4).float())
            assert torch.equal(targets, ids % 3)
            met += ids.tolist()
        assert met != sorted(met)
        assert met == order_of(followed.mask, 3, epoch).tolist()
        followed.mask = random.random(61) < 0.6


def test_length_is_the_number_of_batches() -> None:
    followed = Followed(61)
    loader = loader_of(Counted(61), followed)
    dropping = loader_of(Counted(61), followed, drop_last=True)
    for count in (61, 57, 56, 8, 7, 1):
        followed.mask = np.arange(61) < count
        assert len(loader) == len(list(loader)) == -(-count // 8)
        assert len(dropping) == len(list(dropping)) == count // 8
        assert all(len(ids) == 8 for _, _, ids in dropping)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_a_batch_must_not_be_larger_than_an_epoch(ratio: float) -> None:
    pruner = Pruner(61, ratio, 12)
    least = min(pruner.planned_reads())
    assert keep_count(ratio, 61) <= least <= keep_count(ratio, 61) + 2  # with explored ones
    PrunedBatchSampler(pruner, least, drop_last=True)
    PrunedBatchSampler(pruner, least + 1)
    with pytest.raises(ValueError, match=f"an epoch: it reads {least}, fewer than a batch of"):
        PrunedBatchSampler(pruner, least + 1, drop_last=True)


def test_no_batch_of_a_single_sample() -> None:
    sizes = [len(ids) for _, _, ids in loader_of(Counted(25), batch_size=8)]
    assert sizes == [8, 8, 5, 4]


def test_batches_of_a_pruner_are_those_of_its_loader() -> None:
    pruner = Pruner(200, 0.4, epochs=6, held_out=range(0, 200, 9), seed=4)
    loader = pruner.loader(Counted(200), batch_size=16)
    while not pruner.finished:
        batches = [ids.tolist() for ids in pruner.batches(16)]
        assert batches == [ids.tolist() for _, _, ids in loader]
        assert len(batches) == len(loader)
        assert sorted(i for ids in batches for i in ids) == np.flatnonzero(pruner.reads()).tolist()
        full = [index for ids in pruner.batches(16, drop_last=True) for index in ids.tolist()]
        assert full == [i for ids in batches for i in ids][: len(full)]
        assert len(full) == pruner.reads().sum() // 16 * 16
        blocks = pruner.loader(Counted(200), batch_size=16, block_size=5)
        assert [ids.tolist() for ids in pruner.batches(16, block_size=5)] == [
            ids.tolist() for _, _, ids in blocks
        ]
        for ids in pruner.batches(16):
            assert ids.dtype == torch.int64
            pruner.weigh(ids / 200, ids)
        pruner.step()
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1; found {batch_size}"):
            pruner.batches(batch_size)
        with pytest.raises(ValueError, match=f"block_size must be at least 1; found {batch_size}"):
            pruner.batches(16, block_size=batch_size)


def test_batches_go_on_as_they_began_when_the_selection_changes() -> None:
    pruner = Pruner(300, 0.3, epochs=3, warmup_epochs=0)
    begun = pruner.batches(10)
    met = next(begun).tolist()
    pruner.gates.age.zero_()
    pruner.step()
    met += [index for ids in begun for index in ids.tolist()]
    assert sorted(met) == list(range(300))


def test_dataset_is_read_as_it_is_iterated_and_no_more() -> None:
    dataset = Counted(40)
    loader = loader_of(dataset)
    assert dataset.reads.sum() == 0
    batches = iter(loader)
    next(batches)
    assert dataset.reads.sum() == 8


def test_broken_off_iteration_starts_anew() -> None:
    for num_workers in (0, 2):
        loader = loader_of(Counted(40), num_workers=num_workers)
        first = next(iter(loader))[2].tolist()
        ids = all_ids(loader)
        assert ids[:8] == first
        assert sorted(ids) == list(range(40))


def test_whole_run_reads_what_is_kept_and_explored_and_nothing_else() -> None:
    num_samples, held_out = 400, torch.arange(0, 400, 20)
    dataset = Counted(num_samples)
    pruner = Pruner(num_samples, 0.4, epochs=10, held_out=held_out, seed=1)
    loader = pruner.loader(dataset, batch_size=32)
    loss = torch.rand(num_samples, generator=torch.Generator().manual_seed(0)) * 3
    returned: set[int] = set()
    pruned_before: set[int] = set()
    while not pruner.finished:
        kept = bitmask.indices(pruner.selection.kept)
        trained = set(kept[~torch.isin(kept, held_out)].tolist())
        explored = set(bitmask.indices(pruner.selection.explored()).tolist())
        assert len(explored) <= num_samples // 50
        assert not explored & set(kept.tolist())
        dataset.reads[:] = 0
        for _, _, ids in loader:
            # Half way, the losses of pruned samples change, so that they should return.
            pruner.weigh(loss[ids] if pruner.epoch < 5 else 0.2 + 0 * loss[ids], ids)
        pruner.observe(loss[held_out], held_out)
        expected = np.zeros(num_samples, dtype=int)
        expected[sorted(trained | explored)] = 1
        assert dataset.reads.tolist() == expected.tolist()
        entry = pruner.step()
        assert entry["samples_read"] == dataset.reads.sum()
        assert entry["explored"] == len(explored)
        assert entry["samples_evaluated"] == 20
        returned |= pruned_before & trained
        pruned_before |= set(range(num_samples)) - set(kept.tolist())
    assert returned  # a pruned sample returns when its loss changes
    assert sum(entry["explored"] for entry in pruner.history) > 0
    assert len(pruner.result().indices) == 160


def test_sample_comes_back_after_it_was_explored() -> None:
    # Sample 7 has a large loss until epoch 5, and a small one after it.
    def losses(epoch: int) -> Tensor:
        loss = torch.linspace(0.2, 2.0, 100)
        loss[7] = 4.0 if epoch < 5 else 0.4
        return loss

    pruner = Pruner(100, 0.7, epochs=30, warmup_epochs=0)
    kept = [7 in each for each in drive(pruner, losses)]
    away = kept.index(False)
    assert True in kept[away:]
    assert 7 in pruner.result().indices.tolist()


# --- random numbers


def bits(batches: list[tuple[Tensor, Tensor, Tensor]]) -> list[list[bytes]]:
    return [[tensor.numpy().tobytes() for tensor in batch] for batch in batches]


def test_workers_give_the_same_batches_bit_for_bit() -> None:
    alone, shared = Followed(50, seed=9), Followed(50, seed=9)
    here = loader_of(Augmented(50), alone)
    there = loader_of(Augmented(50), shared, num_workers=2)
    for epoch in range(3):
        alone.epoch = shared.epoch = epoch
        alone.mask = shared.mask = np.random.default_rng(epoch).random(50) < 0.8
        assert bits(list(here)) == bits(list(there))


def drawn(followed: Followed) -> dict[int, list[float]]:
    loader = loader_of(Augmented(len(followed.mask)), followed)
    return {int(row[0]): row[1:].tolist() for inputs, _, _ in loader for row in inputs}


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    followed = Followed(30, seed=1)
    full = drawn(followed)
    assert full == drawn(followed)
    # Neither the place in the order nor the other samples of the batch matter.
    followed.mask = np.arange(30) % 3 == 0
    assert drawn(followed) == {index: full[index] for index in range(0, 30, 3)}
    followed.epoch = 1
    other_epoch = drawn(followed)
    followed.epoch, followed.seed = 0, 2
    other_seed = drawn(followed)
    for generator in range(3):
        values = [list(each.values()) for each in (full, other_epoch, other_seed)]
        numbers = [row[generator] for rows in values for row in rows]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_callers_generators_are_untouched(num_workers: int) -> None:
    before = generator_states()
    loader = loader_of(Augmented(30), num_workers=num_workers)
    for _ in loader:
        assert generator_states() == before
    next(iter(loader))  # an interrupted epoch
    evaluation = evaluation_loader(
        as_source(Augmented(30)), np.arange(30), 8, ranks=Ranks(), seed=0, num_workers=num_workers
    )
    assert sum(len(ids) for _, ids, _ in evaluation) == 30
    assert generator_states() == before


def test_callers_generators_come_back_after_an_error() -> None:
    class Broken(Augmented):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            super().__getitem__(index)
            raise KeyboardInterrupt

    before = generator_states()
    with pytest.raises(KeyboardInterrupt):
        next(iter(loader_of(Broken(10))))
    assert generator_states() == before


def test_evaluation_is_the_same_every_time() -> None:
    source, indices = as_source(Augmented(40)), np.array([3, 30, 7, 21, 5])
    rounds = []
    for num_workers in (0, 0, 2):
        batches = evaluation_loader(
            source, indices, 2, ranks=Ranks(), seed=4, num_workers=num_workers
        )
        rounds.append([(bits([(*batch, ids)]), ids.tolist(), bad) for batch, ids, bad in batches])
    assert rounds[0] == rounds[1] == rounds[2]
    assert [index for _, ids, _ in rounds[0] for index in ids] == indices.tolist()


# --- workers


class WorkerOf(Counted):
    """The target is the id of the process that reads."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return super().__getitem__(index)[0], os.getpid()


def test_persistent_workers_follow_the_next_selection_at_once() -> None:
    followed = Followed(60)
    loader = loader_of(WorkerOf(60), followed, num_workers=2)
    processes, random = set(), np.random.default_rng(0)
    for epoch in range(5):
        followed.epoch, met = epoch, []
        for _, pids, ids in loader:
            processes |= set(pids.tolist())
            met += ids.tolist()
        assert sorted(met) == np.flatnonzero(followed.mask).tolist()
        followed.mask = random.random(60) < 0.5
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_workers_end_with_their_loader() -> None:
    # This must not need the garbage collector, which can finalise the queues of workers first and
    # then has to wait for the workers.
    gc.disable()
    try:
        before = set(multiprocessing.active_children())
        loader = loader_of(Counted(30), num_workers=2)
        all_ids(loader)
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        del loader
        assert not workers & set(multiprocessing.active_children())
    finally:
        gc.enable()


# --- arguments


@pytest.mark.parametrize(
    ("batch_size", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), (None, TypeError)],
)
def test_batch_size_is_checked(batch_size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"batch_size must be.*found {batch_size!r}"):
        loader_of(Counted(10), batch_size=batch_size)


def test_batch_size_of_numpy() -> None:
    assert len(loader_of(Counted(10), batch_size=np.int64(5))) == 2


def test_on_error_is_checked() -> None:
    with pytest.raises(ValueError, match='on_error must be "skip" or "raise"; found \'ignore\''):
        loader_of(Counted(10), on_error="ignore")


def test_dataset_of_another_length_is_refused() -> None:
    with pytest.raises(DatasetMismatchError, match="number of samples 10, found 11"):
        Pruner(10, 0.5, epochs=3).loader(Counted(11))


def test_own_collate_function_gets_the_pairs() -> None:
    def longest(pairs: list[tuple[Tensor, Any]]) -> tuple[Tensor, list[Any]]:
        return torch.nn.utils.rnn.pad_sequence([x for x, _ in pairs]), [y for _, y in pairs]

    class Sequences(Dataset[Any]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> Any:
            return torch.ones(index + 1), {"number": index}

    for inputs, targets, ids in loader_of(Sequences(), batch_size=4, collate_fn=longest):
        assert inputs.shape[0] == ids.max() + 1
        assert [target["number"] for target in targets] == ids.tolist()


def test_arrays_need_no_reseeding() -> None:
    x, y = blobs(30)
    assert as_source((x, y)).deterministic
    for inputs, targets, ids in loader_of((x, y)):
        assert torch.equal(inputs, x[ids])
        assert torch.equal(targets, y[ids])
