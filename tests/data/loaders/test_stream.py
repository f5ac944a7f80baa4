"""The recipe of a stream: what the pruner reads, less what this epoch has trained on already."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from adapruner import Pruner

N, BATCH, EPOCHS = 103, 8, 12


class Stream(IterableDataset[int]):
    """Ids in a fixed order, without those that the epoch leaves out. Workers share them."""

    reads: np.ndarray

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, N, step):
            if self.reads[index]:
                yield index


class Run:
    def __init__(self, workers: int) -> None:
        self.stream = Stream()
        self.loader = DataLoader(self.stream, BATCH, num_workers=workers)
        self.pruner = Pruner(N, 0.5, EPOCHS)
        self.done = torch.zeros(N, dtype=torch.bool)  # trained in this epoch

    def train(self, stop: tuple[int, int] | None = None) -> list[list[int]]:
        """Train to the end, or to a number of batches of an epoch. Returns the ids of batches."""
        losses = torch.rand(N, generator=torch.Generator().manual_seed(0))
        read = []
        while not self.pruner.finished:
            self.stream.reads = self.pruner.reads() & ~self.done.numpy()
            batches = None if stop is None or stop[0] != self.pruner.epoch else stop[1]
            for ids in islice(self.loader, batches):
                self.pruner.weigh(losses[ids] + self.pruner.epoch / 100, ids)
                self.done[ids] = True
                read.append(ids.tolist())
            if batches is not None:
                return read
            self.pruner.step()
            self.done.zero_()
        return read


@pytest.mark.parametrize(("workers", "stop"), [(0, (0, 3)), (0, (6, 0)), (0, (6, 5)), (2, (6, 3))])
def test_a_stream_goes_on_with_the_ids_that_are_left(workers: int, stop: tuple[int, int]) -> None:
    whole, stopped, again = (Run(workers) for _ in range(3))
    expected = whole.train()
    first, file = stopped.train(stop), io.BytesIO()
    torch.save({"pruner": stopped.pruner.state_dict(), "done": stopped.done}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again.pruner.load_state_dict(state["pruner"])
    again.done = state["done"]
    rest = again.train()
    if workers == 0:
        assert first + rest == expected
        assert torch.equal(again.pruner.result().gate_logits, whole.pruner.result().gate_logits)
    # Two workers may deliver their batches in another order. The batches are the same.
    assert sorted(first + rest) == sorted(expected)
    assert np.array_equal(again.pruner.result().indices, whole.pruner.result().indices)
