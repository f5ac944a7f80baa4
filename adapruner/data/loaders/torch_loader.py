"""A torch DataLoader that reads the read set of each epoch, with ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from adapruner._util.seeds import (
    epoch_seed,
    generators_restored,
    sample_seed,
    seed_generators,
)
from adapruner.data.sources.base import Source
from adapruner.data.sources.items import described
from adapruner.data.unreadable import (
    Failures,
    Unreadable,
    describe_error,
    no_sample_readable,
)
from adapruner.data.with_ids import joined
from adapruner.errors import UnreachableError
from adapruner.pruning.distributed import Ranks
from adapruner.pruning.order import batches, share
from adapruner.pruning.sampler import EpochSource, PrunedBatchSampler


class PrunedLoader:
    """Yields batches with ids for the samples that the current epoch reads.

    Pairs (input, target) give ``(inputs, targets, ids)``. Items without a separate target are
    collated whole, and the ids are joined to them as :func:`adapruner.with_ids` does: a dict gets
    the key "ids", a tuple one more element, a namedtuple the field ``ids``.

    An iteration is one epoch. The order is that of :class:`adapruner.PrunedBatchSampler`. An
    unreadable sample is left out of its batch and reported to the pruner. A batch without a
    readable sample is left out. One of many ranks cannot leave out a batch, because the others wait
    for it; it yields another sample of the epoch without ids, which counts for nothing.

    Random augmentation is seeded by (seed, epoch, index), through the generators of torch, NumPy
    and ``random`` in the process that reads the sample. The caller's generators stay as they were.
    A dataset's own ``__getitems__`` reads a whole batch with the seed of its first sample. The
    transform of a source still has a seed for each sample.

    Args:
        source: the samples.
        pruner: decides which samples each epoch reads.
        batch_size: samples in a batch.
        num_workers: processes that read. They live for all epochs. 0 reads in this process.
        collate_fn: makes a batch from a list of ``(input, target)``.
        pin_memory: as in :class:`torch.utils.data.DataLoader`.
        drop_last: leave out a last batch that is not full.
        block_size: samples in a block of the block order, in which neighbouring samples are read
            at about the same time. None mixes all samples.
        on_error: "skip" or "raise".
        triples: yield ``(inputs, None, ids)`` for items without a target.
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
        triples: bool = False,
    ) -> None:
        # The sampler has no reference to this loader. In a reference cycle, workers end late.
        self.sampler = PrunedBatchSampler(pruner, batch_size, drop_last, block_size=block_size)
        self._failures = Failures(pruner, len(source), on_error)
        self.source = source
        self._triples = triples
        self.batch_size = self.sampler.batch_size
        self.drop_last = drop_last
        pruner.note_samples(source)
        self._reader = _Reader(source, pruner.seed, whole=collate_fn is default_collate)
        self._collate = _Collate(collate_fn)
        self._loader = _SeededLoader(
            self._reader,
            batch_sampler=_Keyed(self.sampler),
            num_workers=num_workers,
            collate_fn=self._collate,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # DataLoader would draw from the caller's generator.
            generator=torch.Generator().manual_seed(epoch_seed(pruner.seed, 0)),
        )

    def __len__(self) -> int:
        """Number of batches in the current epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self.sampler.begin()
        for batch, ids, unreadable in self._loader:
            self._failures.note(unreadable, len(ids))
            self.sampler.deliver()
            if not len(ids) and not self.sampler.ranks.alone:
                batch = self._stand_in()
            if batch is not None:
                inputs, targets = batch
                whole = targets is None and not self._triples
                yield joined(inputs, ids) if whole else (inputs, targets, ids)

    def _stand_in(self) -> Any:
        """A batch of one sample, the first of the epoch that can be read."""
        for index in self.sampler.order():
            samples = self._reader.__getitems__([(self.sampler.epoch, index)])
            batch, _, _ = self._collate(samples)
            if batch is not None:
                return batch
        raise no_sample_readable()

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch: batches delivered. Batches read ahead do not count."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next iteration go on at a saved position, bit for bit.

        Load the state of the pruner from the same moment too.

        Raises:
            ValueError: the saved loader had other settings.
        """
        self.sampler.load_state_dict(state)


def evaluation_loader(
    source: Source,
    indices: np.ndarray,
    batch_size: int,
    *,
    ranks: Ranks,
    seed: int,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
) -> _SeededLoader:
    """Yields (batch, ids, unreadable samples) for ``indices``, in order, equal in each epoch.

    Each rank gets its share of each batch of W·``batch_size`` samples. The batch is None where no
    sample of the share can be read.
    """
    whole = batches(indices, batch_size * ranks.size)
    shares = [share(batch, ranks.rank, ranks.size) for batch in whole]
    keys = [[(0, index) for index in batch.tolist()] for batch in shares]
    return _SeededLoader(
        _Reader(source, seed, whole=collate_fn is default_collate),
        batch_sampler=keys,
        num_workers=num_workers if keys else 0,
        collate_fn=_Collate(collate_fn),
        generator=torch.Generator().manual_seed(epoch_seed(seed, 0)),
    )


class _Keyed:
    """The batches of a sampler as (epoch, index) keys, because workers live for all epochs."""

    def __init__(self, sampler: PrunedBatchSampler) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._sampler.epoch
        for batch in self._sampler.batches():
            yield [(epoch, index) for index in batch.tolist()]


class _SeededLoader(DataLoader[Any]):
    """A DataLoader that also works if torch's default device is not the CPU.

    A DataLoader draws a seed into a tensor on the default device. Its generator is on the CPU, so
    another default device would raise an error.
    """

    def __iter__(self) -> Any:
        with torch.device("cpu"):
            batches = super().__iter__()
        return batches if self.num_workers == 0 else _batches_of_workers(batches)


def _batches_of_workers(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches. An error says so if a worker dies while it hands one over."""
    try:
        yield from batches
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        # An error that a worker has sent says so; a socket that has gone has no name.
        if "DataLoader worker" in str(error) or getattr(error, "filename", None) is not None:
            raise
        raise RuntimeError(
            "DataLoader worker exited unexpectedly, while it handed over a batch. It may have been "
            "killed for the memory that it took"
        ) from error


class _Whole(NamedTuple):
    """A batch that the source has collated."""

    batch: tuple[Any, Any]
    ids: list[int]


class _Reader(TorchDataset[Any]):
    """Reads (epoch, index) keys, each with its own seed, and catches unreadable samples.

    Args:
        source: the samples.
        seed: seed of the run.
        whole: whether the source may collate a batch itself.
    """

    def __init__(self, source: Source, seed: int, whole: bool) -> None:
        self._source = source
        self._seed = seed
        self._whole = whole

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, keys: list[tuple[int, int]]) -> _Whole | list[Any]:
        indices = [index for _, index in keys]
        if not keys:  # a rank without a share
            return []
        if self._source.deterministic:
            return self._read_whole(indices) or self._read_each(indices)
        if get_worker_info() is not None:  # a worker process need not restore them
            return self._read_seeded(keys)
        with generators_restored():
            return self._read_seeded(keys)

    def _read_whole(self, indices: list[int]) -> _Whole | None:
        if not self._whole:
            return None
        try:
            batch = self._source.collated(indices)
        except Exception:  # read one by one, which finds the bad sample
            return None
        return None if batch is None else _Whole(batch, indices)

    def _read_each(self, indices: list[int]) -> list[Any]:
        pairs = self._read_batch(indices)
        if pairs is not None:
            return [
                Unreadable(index, describe_error(pair))
                if isinstance(pair, Exception)
                else (index, pair)
                for index, pair in zip(indices, pairs, strict=True)
            ]
        return [self._attempt(index, None) for index in indices]

    def _read_seeded(self, keys: list[tuple[int, int]]) -> list[Any]:
        # A batch read together has the seed of its first sample. Each transform has its own seed.
        self._begin(*keys[0])
        pairs = self._read_batch([index for _, index in keys])
        samples = []
        for place, (epoch, index) in enumerate(keys):
            self._begin(epoch, index)
            samples.append(self._attempt(index, None if pairs is None else pairs[place]))
        return samples

    def _read_batch(self, indices: list[int]) -> Sequence[tuple[Any, Any] | Exception] | None:
        """The samples before the transform, or None if they must be read one by one."""
        try:
            return self._source.read_batch(indices)
        except UnreachableError:
            raise
        except Exception:  # read one by one, which finds the bad sample
            return None

    def _begin(self, epoch: int, index: int) -> None:
        seed_generators(sample_seed(self._seed, epoch, index))

    def _attempt(self, index: int, pair: tuple[Any, Any] | Exception | None) -> Any:
        """A sample with its index, or an Unreadable. ``pair`` skips the reading."""
        if isinstance(pair, Exception):
            return Unreadable(index, describe_error(pair))
        try:
            source = self._source
            inputs, target = source[index] if pair is None else source.transformed(pair)
        except UnreachableError:
            raise
        except Exception as error:  # a dataset can raise anything
            return Unreadable(index, describe_error(error))
        return index, (inputs, target)


class _Collate:
    """Makes (batch, ids, unreadable samples) from the samples of a batch."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate_fn = collate_fn
        # Whether items have no separate target. Most samples of the first batch tell.
        self._whole: bool | None = None

    def __call__(self, samples: _Whole | list[Any]) -> tuple[Any, torch.Tensor, list[Unreadable]]:
        if isinstance(samples, _Whole):
            return list(samples.batch), _ids(samples.ids), []
        unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
        read = [sample for sample in samples if not isinstance(sample, Unreadable)]
        if self._whole is None and read:
            without = sum(target is None for _, (_, target) in read)
            self._whole = 2 * without > len(read)
        fitting = [sample for sample in read if (sample[1][1] is None) == self._whole]
        if len(fitting) < len(read):
            unreadable += [
                Unreadable(index, self._of_another_form(item))
                for index, (item, target) in read
                if (target is None) != self._whole
            ]
        ids = _ids([index for index, _ in fitting])
        return (self._batch([pair for _, pair in fitting]) if fitting else None), ids, unreadable

    def _of_another_form(self, item: Any) -> str:
        if self._whole:
            return "it has a target, but other samples have none"
        return f"it must be a pair (input, target), as others are; found {described(item)}"

    def _batch(self, pairs: list[Any]) -> Any:
        try:
            if self._whole:
                return self._collate_fn([item for item, _ in pairs]), None
            return self._collate_fn(pairs)
        except RuntimeError as error:
            shapes = {tuple(x.shape) for x, _ in pairs if isinstance(x, torch.Tensor)}
            if len(shapes) < 2:
                raise
            found = [" x ".join(map(str, shape)) for shape in sorted(shapes)]
            raise ValueError(
                f"inputs of a batch must have one size; found {found[0]} and {found[-1]}: pass a "
                "transform that makes their sizes equal, or a collate_fn"
            ) from error


def _ids(indices: list[int]) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.int64, device="cpu")
