"""An IterableDataset: a stream that yields ids, and leaves out what the epoch does not read.

A stream has no random access, so it reads every sample, and only the training of the left out ones
is saved. The worker processes share the stream.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import adapruner


class Stream(IterableDataset):
    """Digits in a fixed order, with their ids. 15 % of the labels are wrong."""

    def __init__(self) -> None:
        held, generator = load_digits(), np.random.default_rng(0)
        self.x = torch.from_numpy(held.images).float().flatten(1) / 16
        self.y = torch.from_numpy(held.target)
        self.is_wrong = torch.from_numpy(generator.random(len(self.y)) < 0.15)
        self.y = torch.where(self.is_wrong, (self.y + 1) % 10, self.y)
        self.reads = np.ones(len(self.y), dtype=bool)  # what the epoch trains on

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, len(self.y), step):
            if self.reads[index]:
                yield self.x[index], self.y[index], index


def run(epochs: int = 20, workers: int = 2):
    """The result, and which training labels are wrong."""
    stream = Stream()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = adapruner.Pruner(len(stream.y), keep_ratio=0.7, epochs=epochs)
    loader = DataLoader(stream, batch_size=64, num_workers=workers)
    steps = sum(-(-reads // 64) + workers for reads in pruner.planned_reads())  # at most
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        stream.reads = pruner.reads()  # the workers of this epoch start with it
        for x, y, ids in loader:
            loss = pruner.loss(model(x), y, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        pruner.step()
    return pruner.result(), stream.is_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    torch.set_num_threads(1)  # the network is too small for more threads to help
    parser.add_argument("--epochs", type=int, default=20)
    result, is_wrong = run(parser.parse_args().epochs)
    print(f"kept {len(result.indices)} of {result.num_samples}")
    before, after = is_wrong.float().mean(), is_wrong[result.indices].float().mean()
    print(f"wrong labels: {before:.1%} of the training set, {after:.1%} of the kept set")


if __name__ == "__main__":
    main()
