"""A user's DataLoader, made to read what a pruner chooses and to yield ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from adapruner._util.checks import check_same_dataset
from adapruner.data.sources.find import identified
from adapruner.data.sources.timm import TimmSource, reads_as_timm
from adapruner.data.with_ids import joined
from adapruner.pruning.sampler import Deliveries, EpochSource, PrunedBatchSampler

# Options of a DataLoader that have nothing to do with the choice of samples.
_KEPT_OPTIONS = (
    *("num_workers", "pin_memory", "pin_memory_device", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
)


def pruned_loader(loader: DataLoader[Any], pruner: EpochSource) -> ResumableLoader:
    """A DataLoader like ``loader`` that reads the samples of the pruner's epoch, with their ids.

    It has the dataset, the ``collate_fn``, the batch size, ``drop_last``, the workers and the other
    options of ``loader``, but for ``in_order=False``: a position in an epoch needs batches in
    order. A :class:`adapruner.PrunedBatchSampler` takes the place of its sampler, so the order is
    seeded by the pruner. The pruner warns of a sampler that does more than shuffle.
    The ids join the batch that the ``collate_fn`` makes:

    ============  ===========================================
    batch         batch with ids
    ============  ===========================================
    tuple, list   the ids are one more element
    mapping       a dict with the ids at the key ``"ids"``
    namedtuple    a namedtuple with one more field, ``ids``
    other         the tuple (batch, ids)
    ============  ===========================================

    It resumes in the middle of an epoch: ``state_dict()`` counts the batches that the caller got,
    and ``load_state_dict`` makes the next iteration continue after them. Save and load the state of
    the pruner with it. Augmentation draws from the generators of the reading processes, which no
    state holds, so it is not repeated. The loader of :meth:`adapruner.Pruner.loader` repeats it.

    A sample that cannot be read ends the loop, as in any DataLoader. The loader of
    :meth:`adapruner.Pruner.loader` skips and lists such samples.

    Args:
        loader: a DataLoader over a map-style dataset of N samples. It is not changed.
        pruner: a :class:`adapruner.Pruner` of N samples.

    Raises:
        DatasetMismatchError: the dataset has another length than N.
        TypeError: ``loader`` is not a DataLoader, it is pruned already, or its dataset is an
            ``IterableDataset``.
        ValueError: ``loader`` does not make batches of a fixed size.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> dataset = TensorDataset(torch.randn(64, 5), torch.arange(64) % 3)
        >>> from adapruner import Pruner
        >>> loader = pruned_loader(DataLoader(dataset, batch_size=16), Pruner(64, epochs=2))
        >>> inputs, targets, ids = next(iter(loader))
    """
    batches, dataset = batches_of(loader), _Indexed(_reader(loader.dataset))
    pruner.warn("sampler", _replaced(batches, len(dataset)))
    if getattr(pruner.samples, "dataset", None) is not loader.dataset:
        pruner.note_samples(identified(loader.dataset))
    check_same_dataset("this pruner", "number of samples", pruner.num_samples, len(dataset))
    batch_sampler = PrunedBatchSampler(
        pruner, batches.batch_size, getattr(batches, "drop_last", False)
    )
    options = {name: getattr(loader, name) for name in _KEPT_OPTIONS}
    return ResumableLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=_CollateWithIds(loader.collate_fn),
        **options,
    )


class ResumableLoader(DataLoader[Any]):
    """The DataLoader of :func:`pruned_loader`, which can be resumed."""

    def __init__(
        self, dataset: Dataset[Any], batch_sampler: PrunedBatchSampler, **options: Any
    ) -> None:
        self._deliveries = Deliveries(batch_sampler)
        super().__init__(dataset, batch_sampler=batch_sampler, **options)

    def __iter__(self) -> Any:
        self._deliveries.begin()
        for batch in super().__iter__():
            self._deliveries.deliver()
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch: batches that the caller got, without those read ahead."""
        return self._deliveries.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next iteration continue at a saved position.

        Load the state of the pruner from the same moment too.

        Raises:
            ValueError: the saved loader had other settings.
        """
        self._deliveries.load_state_dict(state)


def batches_of(loader: Any) -> Any:
    """The batch sampler of ``loader``, which knows the batch size.

    Raises:
        TypeError, ValueError: as :func:`pruned_loader`.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a torch DataLoader; found {type(loader).__name__}")
    if isinstance(loader, ResumableLoader):
        raise TypeError("loader must be the ordinary DataLoader; found one of pruned_loader")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "loader must have a map-style dataset, whose samples have an index; found the "
            f"IterableDataset {type(loader.dataset).__name__}"
        )
    batches = loader.batch_sampler
    if getattr(batches, "batch_size", None) is None:
        raise ValueError(
            "loader must make batches of a fixed size; found one whose batch sampler, "
            f"{type(batches).__name__}, has no batch_size"
        )
    return batches


def _replaced(batches: Any, num_samples: int) -> str | None:
    """The warning for a sampler that does more than shuffle or share out samples, or None."""
    while hasattr(batches, "batch_sampler"):  # Accelerate wraps batch samplers
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", batches)
    if isinstance(sampler, RandomSampler):
        shuffles = not sampler.replacement and sampler.num_samples == num_samples
    else:
        shuffles = isinstance(sampler, (SequentialSampler, DistributedSampler))
    if shuffles:
        return None
    return (
        "the pruner chooses and orders the samples of an epoch; found a loader whose "
        f"{type(sampler).__name__} does so too, and is left out"
    )


def _reader(dataset: Any) -> Any:
    """The dataset, or a source where the dataset puts other samples in place of unreadable ones."""
    return TimmSource(dataset) if reads_as_timm(dataset) else dataset


class _Indexed(Dataset[Any]):
    """Pairs (index, sample) of a dataset. Its ``__getitems__`` is used if it has one."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        read = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[index] for index in indices] if read is None else read(indices)
        return list(zip(indices, samples, strict=True))


class _CollateWithIds:
    """Makes a batch of samples by ``collate_fn``, and joins their ids to it."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, pairs: list[tuple[int, Any]]) -> Any:
        ids = torch.tensor([index for index, _ in pairs], dtype=torch.int64, device="cpu")
        return joined(self._collate_fn([sample for _, sample in pairs]), ids)
