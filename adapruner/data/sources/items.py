"""Items of datasets: the target of an item, and the targets that a dataset knows beforehand."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from adapruner.data.sources.base import Array, IntArray, numeric_array

# The key of a mapping, the field of a namedtuple, or the place in a tuple or list.
Target: TypeAlias = "str | int"

_ATTRIBUTES = ("targets", "labels", "y")
# Where datasets of torchvision hold classes: lists of classes, and lists of (path, class).
_TORCHVISION = ("_labels", "_samples", "samples")


def split_item(item: Any, target: Target | None, index: int, owner: Any) -> tuple[Any, Any]:
    """``item`` as ``(input, target)``; the target is None for an item without one.

    Without ``target`` a tuple or list of two elements is (input, target), and any other item is an
    input as a whole. With it, the input is the rest of the item: a mapping without that key, the
    other element, or a list of the other elements.

    Args:
        item: a sample of the dataset.
        target: where the target is in the item, or None.
        index, owner: the sample's index and the dataset, for messages.

    Raises:
        TypeError: ``item`` has no such target.
    """
    if target is None:
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return item[0], item[1]
        return item, None
    if isinstance(item, Mapping) and target in item:
        return {name: value for name, value in item.items() if name != target}, item[target]
    if isinstance(item, (tuple, list)):
        names = getattr(item, "_fields", ())
        place = names.index(target) if target in names else target
        if isinstance(place, int) and -len(item) <= place < len(item):
            rest = [value for j, value in enumerate(item) if j != place % len(item)]
            return (rest[0] if len(rest) == 1 else rest), item[place]
    raise TypeError(
        f"sample {index} of {type(owner).__name__} must have the target {target!r}; found "
        f"{described(item)}"
    )


def described(item: Any) -> str:
    """The form of an item, for messages."""
    name = type(item).__name__
    if isinstance(item, Mapping):
        keys = [repr(key) for key in item]
        return f"a {name} with keys {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}"
    if isinstance(item, (tuple, list)):
        return f"a {name} of {len(item)} elements"
    return f"a {name}"


def stored_targets(dataset: Any, length: int) -> Any | None:
    """The targets of all samples as the dataset holds them, an array or strings; or None.

    They are an attribute ``targets``, ``labels`` or ``y``, or in a known place of a dataset of
    torchvision or timm. A ``ConcatDataset`` joins the targets of its parts, and a ``Subset`` or
    a ``TensorDataset`` of two tensors has those of its data.
    """
    if type(dataset) is ConcatDataset:
        sizes = np.diff([0, *dataset.cumulative_sizes]).tolist()
        parts = [
            stored_targets(part, size)
            for part, size in zip(dataset.datasets, sizes, strict=True)
            if size
        ]
        arrays = [None if part is None else np.asarray(part) for part in parts]
        known = [array for array in arrays if array is not None]
        kinds = {array.dtype.kind in "iu" for array in known}
        return np.concatenate(known) if len(known) == len(parts) and len(kinds) == 1 else None
    if type(dataset) is Subset:
        base: Any = dataset.dataset
        whole = stored_targets(base, len(base))
        return None if whole is None else np.asarray(whole)[list(dataset.indices)]
    if type(dataset) is TensorDataset:
        return dataset.tensors[1] if len(dataset.tensors) == 2 else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for holder, names in _places(dataset):
        for name in names:
            values = getattr(holder, name, None)
            if name.endswith("samples"):
                values = _second_of_pairs(values)
            if values is None:
                continue
            array: Array | None = numeric_array(values, length)
            if array is not None:
                return array
            if encode_labels(values, length) is not None:
                return values
    return None


def _places(dataset: Any) -> list[tuple[Any, tuple[str, ...]]]:
    places: list[tuple[Any, tuple[str, ...]]] = [(dataset, _ATTRIBUTES)]
    torchvision = sys.modules.get("torchvision.datasets")
    if torchvision is not None and isinstance(dataset, torchvision.VisionDataset):
        places.append((dataset, _TORCHVISION))
    timm = sys.modules.get("timm.data.dataset")
    if timm is not None and isinstance(dataset, timm.ImageDataset):
        places.append((dataset.reader, ("samples",)))
    return places


def _second_of_pairs(values: Any) -> list[Any] | None:
    if not isinstance(values, (list, tuple)):
        return None
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in values):
        return None
    return [target for _, target in values]


def encode_labels(values: Any, length: int) -> tuple[IntArray, list[str]] | None:
    """Text labels as numbers: int64 ``[length]`` and the sorted names; or None.

    >>> encode_labels(["dog", "cat", "dog"], 3)
    (array([1, 0, 1]), ['cat', 'dog'])
    """
    if isinstance(values, (torch.Tensor, str, bytes)):
        return None
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # unequal rows
        return None
    if array.shape != (length,) or array.dtype.kind not in "UOT":
        return None
    texts = array.tolist()
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    names = sorted(set(texts))
    codes = {name: code for code, name in enumerate(names)}
    return np.array([codes[text] for text in texts], dtype=np.int64), names
