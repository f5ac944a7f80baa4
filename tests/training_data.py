"""Datasets, networks and loops that the tests of training share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from adapruner import Pruner


class Counted(Dataset[tuple[Tensor, int]]):
    """Sample i is ([i, …], label of i); notes how often each one is asked for, in this process."""

    def __init__(
        self,
        num_samples: int,
        num_classes: int = 3,
        bad: Iterable[int] = (),
        error: type[Exception] = OSError,
    ) -> None:
        self.targets = [index % num_classes for index in range(num_samples)]
        self.bad = frozenset(bad)
        self.error = error
        self.reads = np.zeros(num_samples, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        if index in self.bad:
            raise self.error(f"no such luck with {index}")
        return torch.full((4,), float(index)), self.targets[index]


class Augmented(Dataset[tuple[Tensor, int]]):
    """Random numbers of all three generators that augmentations draw from; the target is the index."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return torch.tensor([index, *drawn], dtype=torch.float64), index


def generator_states() -> tuple[bytes, Any, Any]:
    """The states of the global generators of torch, NumPy and random, to compare."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    torch_state = torch.get_rng_state().numpy().tobytes()
    return torch_state, (name, keys.tobytes(), rest), random.getstate()


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: float ``[1797, 1, 8, 8]`` in [0, 1], labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    held = datasets.load_digits()
    return torch.from_numpy(held.images).float().unsqueeze(1) / 16, torch.from_numpy(held.target)


def convolutional(dropout: float = 0.0) -> nn.Module:
    """A small network for 8×8 images of ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )


def blobs(num_samples: int, num_classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points in 5 dimensions around one centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(num_samples) % num_classes
    centres = 2 * torch.randn(num_classes, 5, generator=generator)
    return centres[y] + torch.randn(num_samples, 5, generator=generator), y


def drive(
    pruner: Pruner,
    losses: Callable[[int], Tensor],
    validation: Callable[[int], float | None] = lambda epoch: None,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """Run ``pruner`` to its end on given losses ``[N]`` of each epoch; what each epoch kept."""
    kept = []
    while not pruner.finished:
        epoch = pruner.epoch
        kept.append(pruner.selection.kept_indices().numpy())
        for ids in torch.from_numpy(np.flatnonzero(pruner.reads())).split(batch_size):
            pruner.weigh(losses(epoch)[ids], ids)
        pruner.step(validation(epoch))
    return kept
