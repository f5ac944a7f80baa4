"""A user's DataLoader, made to read what a pruner chooses and to yield ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from adapruner._util.checks import check_same_dataset
from adapruner.data.sources.find import identified
from adapruner.data.sources.timm import TimmSource, is_timm
from adapruner.data.with_ids import joined
from adapruner.pruning.sampler import EpochSource, PrunedBatchSampler

# Options of a DataLoader that have nothing to do with the choice of samples.
_KEPT_OPTIONS = (
    *("num_workers", "pin_memory", "pin_memory_device", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers", "in_order"),
)


def pruned_loader(loader: DataLoader[Any], pruner: EpochSource) -> DataLoader[Any]:
    """A DataLoader like ``loader`` that reads the samples of the pruner's epoch, with their ids.

    It has the dataset, the ``collate_fn``, the batch size, ``drop_last``, the workers and the other
    options of ``loader``. A :class:`adapruner.PrunedBatchSampler` takes the place of its sampler,
    so the order is seeded by the pruner. The ids join the batch that the ``collate_fn`` makes:

    ============  ===========================================
    batch         batch with ids
    ============  ===========================================
    tuple, list   the ids are one more element
    mapping       a dict with the ids at the key ``"ids"``
    namedtuple    a namedtuple with one more field, ``ids``
    other         the tuple (batch, ids)
    ============  ===========================================

    A sample that cannot be read ends the loop, as in any DataLoader. The loader of
    :meth:`adapruner.Pruner.loader` skips and lists such samples.

    Args:
        loader: a DataLoader over a map-style dataset of N samples. It is not changed.
        pruner: a :class:`adapruner.Pruner` of N samples.

    Raises:
        DatasetMismatchError: the dataset has another length than N.
        TypeError: ``loader`` is not a DataLoader, or its dataset is an ``IterableDataset``.
        ValueError: ``loader`` does not make batches of a fixed size.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> dataset = TensorDataset(torch.randn(64, 5), torch.arange(64) % 3)
        >>> from adapruner import Pruner
        >>> loader = pruned_loader(DataLoader(dataset, batch_size=16), Pruner(64, epochs=2))
        >>> inputs, targets, ids = next(iter(loader))
    """
    batches, dataset = batches_of(loader), _Indexed(_reader(loader.dataset))
    if pruner.samples is None:
        pruner.note_samples(identified(loader.dataset))
    check_same_dataset("this pruner", "number of samples", pruner.num_samples, len(dataset))
    batch_sampler = PrunedBatchSampler(
        pruner, batches.batch_size, getattr(batches, "drop_last", False)
    )
    options = {name: getattr(loader, name) for name in _KEPT_OPTIONS}
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=_CollateWithIds(loader.collate_fn),
        **options,
    )


def batches_of(loader: Any) -> Any:
    """The batch sampler of ``loader``, which knows the batch size.

    Raises:
        TypeError, ValueError: as :func:`pruned_loader`.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a torch DataLoader; found {type(loader).__name__}")
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


def _reader(dataset: Any) -> Any:
    """The dataset, or a source where the dataset puts other samples in place of unreadable ones."""
    return TimmSource(dataset) if is_timm(dataset) else dataset


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
