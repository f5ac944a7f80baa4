"""Items of datasets: the target of an item, and the targets that a dataset knows beforehand."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from adapruner.data.sources.base import Array, IntArray, integer_targets, numeric_array

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


def probed(length: int) -> list[int]:
    """The samples that are read to see the form of an item: at most 8, evenly spread."""
    return sorted({round(place * (length - 1) / 7) for place in range(8)})


def differs(target: Any, stored: int) -> bool:
    """Whether the target of an item is another one than the stored class, or no single number."""
    if target is None:
        return False  # the item has no target of its own
    size = target.numel() if isinstance(target, torch.Tensor) else np.size(target)
    value = target.item() if hasattr(target, "item") and size == 1 else target
    return not isinstance(value, (bool, int, float)) or value != stored


def stored_targets(dataset: Any, length: int, target: Target | None = None) -> Any | None:
    """The targets of all samples as the dataset holds them, an array or strings; or None.

    They are an attribute ``targets``, ``labels`` or ``y``, or in a known place of a dataset of
    torchvision or timm. A ``ConcatDataset`` joins the targets of its parts, and a ``Subset`` has
    those of its data. A ``TensorDataset`` has the tensor at ``target``, or the second of two.
    """
    if type(dataset) is ConcatDataset:
        sizes = np.diff([0, *dataset.cumulative_sizes]).tolist()
        parts = [
            _plain(stored_targets(part, size, target), size)
            for part, size in zip(dataset.datasets, sizes, strict=True)
            if size
        ]
        known = [part for part in parts if part is not None]
        kinds = {array.dtype.kind for array in known}
        return np.concatenate(known) if len(known) == len(parts) and len(kinds) == 1 else None
    if type(dataset) is Subset:
        base: Any = dataset.dataset
        whole = stored_targets(base, len(base), target)
        return None if whole is None else np.asarray(whole)[list(dataset.indices)]
    if type(dataset) is TensorDataset:
        place = target if target is not None else 1 if len(dataset.tensors) == 2 else None
        count = len(dataset.tensors)
        if not isinstance(place, int) or not -count <= place < count:
            return None
        return dataset.tensors[place]
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


def _plain(values: Any, length: int) -> npt.NDArray[Any] | None:
    """Stored targets as int64 ``[length]`` or as texts, or None for others."""
    if values is None:
        return None
    numbers = integer_targets(values, length)
    if numbers is not None or encode_labels(values, length) is None:
        return numbers
    return np.array(values, dtype=object)


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
