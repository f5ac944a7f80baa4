"""Datasets, networks and loops that the tests of training share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from adapruner import Pruner, PruneResult, as_source, fast_prune
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.data.sources.base import Source
from adapruner.pruning import bitmask
from adapruner.pruning.distributed import Ranks
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method
from adapruner.pruning.order import epoch_batches


class Counted(Dataset[tuple[Tensor, int]]):
    """Sample i is ([i, …], label of i). Counts the reads of each sample in this process."""

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
    """Random numbers from the three generators that augmentations use. The target is i."""

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
    """Run ``pruner`` to its end on given losses ``[N]`` of each epoch. Returns the kept sets."""
    kept = []
    while not pruner.finished:
        epoch = pruner.epoch
        kept.append(bitmask.indices(pruner.selection.kept).numpy())
        for ids in torch.from_numpy(np.flatnonzero(pruner.reads())).split(batch_size):
            pruner.weigh(losses(epoch)[ids], ids)
        pruner.step(validation(epoch))
    return kept


def gates_with(logits: Tensor, keep_ratio: float) -> Gates:
    gates = Gates(len(logits), keep_ratio, find_method("sampled"))
    gates.exclude(torch.nonzero(logits == -torch.inf).flatten())
    gates.logits.copy_(logits)
    gates.set_slope(0.1)
    return gates


def random_logits(num_samples: int, seed: int = 0) -> Tensor:
    """Random logits with many ties, as after equal losses."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, (num_samples,), generator=generator).float() / 4


class Followed:
    """A pruner for a loader, which the test controls."""

    def __init__(self, num_samples: int, seed: int = 0) -> None:
        self.epoch = 0
        self.seed = seed
        self.num_samples = num_samples
        self.may_drop = 0
        self.ranks = Ranks()
        self.mask = np.ones(num_samples, dtype=bool)
        self.unreadable: list[tuple[int, str]] = []

    def note_samples(self, source: Source) -> None:
        assert len(source) == self.num_samples

    def read_mask(self) -> Tensor:
        return bitmask.pack(self.mask)

    def planned_reads(self) -> list[int]:
        return [self.num_samples]

    def note_share(self, ids: Tensor, weight: float) -> None:
        raise AssertionError("a process alone has no uneven shares")

    def exclude(self, unreadable: Sequence[tuple[int, str]]) -> None:
        self.unreadable += [(index, reason) for index, reason in unreadable]


def loader_of(
    dataset: Any, followed: Followed | None = None, batch_size: int = 8, **arguments: Any
) -> PrunedLoader:
    source = as_source(dataset)
    return PrunedLoader(source, followed or Followed(len(source)), batch_size, **arguments)


def order_of(reads: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The whole order of an epoch that reads the samples with True."""
    mask = bitmask.pack(reads)
    return np.concatenate([*epoch_batches(mask, len(reads), seed, epoch, 7), np.zeros(0, int)])


def all_ids(loader: PrunedLoader) -> list[int]:
    return [index for _, _, ids in loader for index in ids.tolist()]


def frozen(num_samples: int, seed: int = 0) -> Callable[[int], Tensor]:
    """Losses that are the same in each epoch."""
    losses = torch.rand(num_samples, generator=torch.Generator().manual_seed(seed)) * 3
    return lambda epoch: losses


def prune(data: Any, model: nn.Module | None = None, **arguments: Any) -> PruneResult:
    """A short run on points in 5 dimensions."""
    settings: dict[str, Any] = {"keep_ratio": 0.6, "epochs": 4, "batch_size": 16}
    settings |= {"progress": False, **arguments}
    return fast_prune(model or nn.Linear(5, 3), data, **settings)


def check_exact(result: PruneResult, count: int) -> None:
    indices = result.indices.tolist()
    assert len(indices) == count
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < result.num_samples


class Points(Dataset[Any]):
    """Blobs as a map-style dataset, with samples that fail or are NaN."""

    def __init__(self, num_samples: int, bad: tuple[int, ...] = (), nan: tuple[int, ...] = ()):
        self.x, self.y = blobs(num_samples)
        self.targets = self.y.tolist()
        self.bad = bad
        self.x[list(nan)] = torch.nan

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.bad:
            raise OSError("torn file")
        return self.x[index], self.targets[index]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))


class Stop(Exception):
    pass


def checkpointed(folder: Path | None, stop_at: int | None = None, **arguments: Any) -> Any:
    """A run of 6 epochs over 420 points, which stops at a batch if ``stop_at`` is given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = arguments.pop("model", network)()
    left = [stop_at or -1]

    def count(module: nn.Module, inputs: Any) -> None:
        left[0] -= module.training
        if left[0] == 0:
            raise Stop

    model.register_forward_pre_hook(count)
    settings = {"keep_ratio": 0.5, "epochs": 6, "batch_size": 64, "progress": False, **arguments}
    data = settings.pop("data", None) or blobs(420)
    return model, fast_prune(model, data, checkpoint_dir=folder, **settings)


def outcome(result: PruneResult) -> list[Any]:
    """All parts of a result, without seconds."""
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]
    return [
        result.indices.tolist(),
        result.gate_logits.numpy().tobytes(),
        result.sample_losses.numpy().tobytes(),
        history,
        result.selected_epoch,
        result.forced,
        result.config,
        result.fingerprint,
        result.saved["samples_read"],
    ]
