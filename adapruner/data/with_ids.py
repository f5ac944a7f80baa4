"""A dataset whose samples carry their dataset index."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, IterableDataset


def with_ids(dataset: Any) -> Dataset[Any]:
    """``dataset`` with the index added to each sample, so any collate passes the ids on.

    ============  ===========================================
    sample        sample with its index
    ============  ===========================================
    tuple, list   the index is one more element
    mapping       a dict with the index at the key ``"ids"``
    namedtuple    a namedtuple with one more field, ``ids``
    other         the tuple (sample, index)
    ============  ===========================================

    Args:
        dataset: a map-style dataset. Its ``__getitems__`` is used if it has one.

    Raises:
        TypeError: ``dataset`` has no length or cannot be indexed.
        ValueError: a sample is a mapping or namedtuple that already has ``ids``.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> dataset = TensorDataset(torch.rand(6, 2), torch.arange(6) % 3)
        >>> inputs, targets, ids = next(iter(DataLoader(with_ids(dataset), batch_size=4)))
        >>> ids
        tensor([0, 1, 2, 3])
    """
    mapped = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not mapped or isinstance(dataset, IterableDataset):
        raise TypeError(
            "expected a map-style dataset, with __len__ and __getitem__; found "
            f"{type(dataset).__name__}"
        )
    return _WithIds(dataset)


def joined(batch: Any, ids: Any) -> Any:
    """``batch`` with its ids, by the table of :func:`with_ids`.

    A ``PackedSequence`` is a namedtuple with a fixed meaning, and gives (batch, ids).

    Raises:
        ValueError: ``batch`` is a mapping or namedtuple that already has ``ids``.
    """
    return (batch, ids) if isinstance(batch, PackedSequence) else _joined(batch, ids)


class _WithIds(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return _joined(self.dataset[index], index)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            samples = self.dataset.__getitems__(indices)
        else:
            samples = [self.dataset[index] for index in indices]
        return [_joined(sample, index) for sample, index in zip(samples, indices, strict=True)]


def _joined(sample: Any, index: Any) -> Any:
    if isinstance(sample, Mapping):
        if "ids" in sample:
            where = "a batch" if isinstance(index, Tensor) else f"sample {index}"
            raise ValueError(f"expected samples without a key 'ids'; found one in {where}")
        return {**sample, "ids": index}
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return _named(type(sample), (*sample, index))
    if isinstance(sample, tuple):
        return (*sample, index)
    if isinstance(sample, list):
        return [*sample, index]
    return sample, index


def _named(base: type, values: tuple[Any, ...]) -> Any:
    return _with_field(base)(*values)


@cache
def _with_field(base: Any) -> type:
    """The namedtuple ``base`` with one more field, ``ids``."""
    if "ids" in base._fields:
        raise ValueError(f"expected samples without a field 'ids'; found one in {base.__name__}")
    make: Any = namedtuple
    fields = make(base.__name__, (*base._fields, "ids"))
    # Pickle finds no module for this type. A receiving process makes it again from ``base``.
    reduce = {"__reduce__": lambda self: (_named, (base, tuple(self))), "__slots__": ()}
    return type(base.__name__, (fields,), reduce)
