"""A torch DataLoader that reads what each epoch selects, and gives the ids along."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from adapruner._util.seeds import epoch_seed, sample_seed
from adapruner.data.sources.base import Source
from adapruner.data.unreadable import Failures, Unreadable, describe_error
from adapruner.pruning.order import batches
from adapruner.pruning.sampler import EpochSource, PrunedBatchSampler


class PrunedLoader:
    """Yields ``(inputs, targets, ids)`` for the samples that the current epoch reads.

    Each iteration is one epoch: it asks the pruner what to read, in the batches of
    :func:`adapruner.pruning.order.epoch_batches`. A sample that cannot be read is left out of its
    batch and reported to the pruner.

    Random augmentation is seeded by (seed, epoch, index), through the generators of torch, NumPy
    and ``random`` of the process that reads the sample; the caller's are left as they were. A
    dataset's own ``__getitems__`` reads a batch as one, seeded as its first sample; a source's
    transform is seeded for each sample all the same.

    Args:
        source: the samples.
        pruner: decides what each epoch reads.
        batch_size: samples in a batch.
        num_workers: reading processes, kept from epoch to epoch; 0 reads in this one.
        collate_fn: makes a batch of a list of ``(input, target)``.
        pin_memory: as in :class:`torch.utils.data.DataLoader`.
        drop_last: leave out a last batch that is not full.
        block_size: samples that stand next to each other in the data and are read at about the
            same time, instead of all being mixed: see :func:`adapruner.pruning.order.block_order`.
        on_error: "skip" or "raise".
    """

    def __init__(
        self,
        source: Source,
        pruner: EpochSource,
        batch_size: int,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        pin_memory: bool = False,
        drop_last: bool = False,
        block_size: int | None = None,
        on_error: str = "skip",
    ) -> None:
        # Knows nothing of this loader: the workers of one in a reference cycle end late and slowly.
        self.sampler = PrunedBatchSampler(pruner, batch_size, drop_last, block_size=block_size)
        self._failures = Failures(pruner, len(source), on_error)
        self.source = source
        self.batch_size = self.sampler.batch_size
        self.drop_last = drop_last
        pruner.note_samples(source)
        self._loader = _SeededLoader(
            _Reader(source, pruner.seed, whole=collate_fn is default_collate),
            batch_sampler=_Keyed(self.sampler),
            num_workers=num_workers,
            collate_fn=_Collate(collate_fn),
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # Its own, so that the caller's generator is not drawn from.
            generator=torch.Generator().manual_seed(epoch_seed(pruner.seed, 0)),
        )

    def __len__(self) -> int:
        """Number of batches in the current epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Any, Any, torch.Tensor]]:
        self.sampler.begin()
        for batch, ids, unreadable in self._loader:
            self._failures.note(unreadable, len(ids))
            self.sampler.deliver()
            if len(ids):
                inputs, targets = batch
                yield inputs, targets, ids

    def state_dict(self) -> dict[str, int]:
        """Where in its epoch this loader is: the batches that it has delivered, however many are
        read ahead."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Have the next iteration go on where a saved one was, bit for bit.

        The pruner's state, saved at the same moment, is to be loaded too.

        Raises:
            ValueError: the loader saved had other settings than this one.
        """
        self.sampler.load_state_dict(state)


def evaluation_loader(
    source: Source,
    indices: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
) -> _SeededLoader:
    """Reads ``indices`` in order, the same way every time: (batch, ids, unreadable samples)."""
    keys = [[(0, index) for index in batch.tolist()] for batch in batches(indices, batch_size)]
    return _SeededLoader(
        _Reader(source, seed, whole=collate_fn is default_collate),
        batch_sampler=keys,
        num_workers=num_workers if keys else 0,
        collate_fn=_Collate(collate_fn),
        generator=torch.Generator().manual_seed(epoch_seed(seed, 0)),
    )


class _Keyed:
    """The batches of a sampler with the epoch at each index, since workers live for many epochs."""

    def __init__(self, sampler: PrunedBatchSampler) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._sampler.epoch
        for batch in self._sampler.batches():
            yield [(epoch, index) for index in batch.tolist()]


class _SeededLoader(DataLoader[Any]):
    """A DataLoader with a generator on the CPU.

    Each epoch, a DataLoader draws a seed into a tensor on torch's default device. Another device
    than the generator's would be an error.
    """

    def __iter__(self) -> Any:
        with torch.device("cpu"):
            return super().__iter__()


class _Whole(NamedTuple):
    """A batch that was read as one, and needs no collating."""

    batch: tuple[Any, Any]
    ids: list[int]


class _Reader(TorchDataset[Any]):
    """Reads (epoch, index) keys, each under its own seed, and catches what cannot be read.

    Args:
        source: the samples.
        seed: of the run.
        whole: whether a batch may come as the source itself would collate it.
    """

    def __init__(self, source: Source, seed: int, whole: bool) -> None:
        self._source = source
        self._seed = seed
        self._whole = whole

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, keys: list[tuple[int, int]]) -> _Whole | list[Any]:
        indices = [index for _, index in keys]
        if self._source.deterministic:
            return self._read_whole(indices) or self._read_each(indices)
        with _own_generators():
            return self._read_seeded(keys)

    def _read_whole(self, indices: list[int]) -> _Whole | None:
        if not self._whole:
            return None
        try:
            batch = self._source.collated(indices)
        except Exception:  # to be found, and told, one by one
            return None
        return None if batch is None else _Whole(batch, indices)

    def _read_each(self, indices: list[int]) -> list[Any]:
        pairs = self._read_batch(indices)
        if pairs is not None:
            return list(zip(indices, pairs, strict=True))
        return [self._attempt(index, None) for index in indices]

    def _read_seeded(self, keys: list[tuple[int, int]]) -> list[Any]:
        # Read as one, the samples of a batch share the seed of the first; their transform does not.
        self._begin(*keys[0])
        pairs = self._read_batch([index for _, index in keys])
        samples = []
        for place, (epoch, index) in enumerate(keys):
            self._begin(epoch, index)
            samples.append(self._attempt(index, None if pairs is None else pairs[place]))
        return samples

    def _read_batch(self, indices: list[int]) -> list[tuple[Any, Any]] | None:
        """The samples before the transform, or None where each is to be read by itself."""
        try:
            return self._source.read_batch(indices)
        except Exception:  # to be found, and told, one by one
            return None

    def _begin(self, epoch: int, index: int) -> None:
        _seed_generators(sample_seed(self._seed, epoch, index))

    def _attempt(self, index: int, pair: tuple[Any, Any] | None) -> Any:
        """A sample, of which ``pair`` may have been read already."""
        try:
            source = self._source
            inputs, target = source[index] if pair is None else source.transformed(pair)
        except Exception as error:  # whatever a dataset raises for a sample that it cannot give
            return Unreadable(index, describe_error(error))
        return index, (inputs, target)


class _Collate:
    """A batch, its ids, and the samples that could not be read."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, samples: _Whole | list[Any]) -> tuple[Any, torch.Tensor, list[Unreadable]]:
        if isinstance(samples, _Whole):
            return list(samples.batch), _ids(samples.ids), []
        unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
        read = [sample for sample in samples if not isinstance(sample, Unreadable)]
        ids = _ids([index for index, _ in read])
        return (self._batch([pair for _, pair in read]) if read else None), ids, unreadable

    def _batch(self, pairs: list[Any]) -> Any:
        try:
            return self._collate_fn(pairs)
        except RuntimeError as error:
            shapes = {tuple(x.shape) for x, _ in pairs if isinstance(x, torch.Tensor)}
            if len(shapes) < 2:
                raise
            found = [" x ".join(map(str, shape)) for shape in sorted(shapes)]
            raise ValueError(
                f"inputs of different sizes make no batch, and these have {found[0]} and "
                f"{found[-1]}; give a transform that brings them to one size, or a collate_fn"
            ) from error


def _ids(indices: list[int]) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.int64, device="cpu")


def _seed_generators(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (augmentations draw from it)


@contextmanager
def _own_generators() -> Iterator[None]:
    """Keep the caller's generators as they are; in a worker they are its own to seed."""
    if get_worker_info() is not None:
        yield
        return
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
