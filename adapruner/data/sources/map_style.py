"""Samples of a map-style dataset, and of a Subset of any source."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from adapruner.data.sources.base import (
    Array,
    IntArray,
    Location,
    Source,
    Transform,
    integer_targets,
    new_digest,
    numeric_array,
    update_with_array,
    viewable,
)

_TARGET_ATTRIBUTES = ("targets", "labels", "y")


class DatasetSource(Source):
    """The samples of a map-style dataset whose items are ``(input, target)``.

    ``targets`` are the dataset's attribute ``targets``, ``labels`` or ``y`` if it holds N integers
    and there is no ``target_transform``. The fingerprint covers the name of the class, the length
    and this attribute. It does not cover the module, because a class can move from ``__main__`` to
    a module. If the fingerprint must say more, pass ``fingerprint``.

    Raises:
        TypeError: the dataset has no length or cannot be indexed.
        ValueError: its length is 0.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Transform | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        self._length = checked_length(dataset)
        self.dataset = dataset
        self._stored_targets = _stored_targets(dataset, self._length)
        if getattr(dataset, "target_transform", None) is None:
            self.targets = integer_targets(self._stored_targets, self._length)
        self.class_names = _class_names(dataset)

    def __len__(self) -> int:
        return self._length

    def _read(self, index: int) -> tuple[Any, Any]:
        return checked_pair(self.dataset[index], index, self.dataset)

    def read_batch(self, indices: list[int]) -> list[tuple[Any, Any]] | None:
        """The samples from the dataset's own ``__getitems__``, or None if it has none."""
        if not hasattr(self.dataset, "__getitems__"):
            return None
        samples = self.dataset.__getitems__(indices)
        return [
            checked_pair(sample, index, self.dataset)
            for sample, index in zip(samples, indices, strict=True)
        ]

    def image(self, index: int) -> Any | None:
        """Sample ``index`` as a picture. The transform of a torchvision dataset is left out."""
        dataset = _without_transform(self.dataset)
        return viewable(checked_pair(dataset[self._checked(index)], index, dataset)[0])

    def _identify(self) -> str:
        digest = new_digest(self.kind)
        digest.update(f"{type(self.dataset).__qualname__}\n{self._length}\n".encode())
        if self._stored_targets is not None:
            update_with_array(digest, self._stored_targets)
        return digest.hexdigest()


class SubsetSource(Source):
    """The samples of a :class:`torch.utils.data.Subset` of the dataset behind ``base``.

    Raises:
        IndexError: an index of the subset is out of range for its dataset.
        ValueError: the subset is empty.
    """

    def __init__(
        self,
        subset: Subset[Any],
        base: Source,
        transform: Transform | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        self.kind = base.kind
        self.dataset, self.base = subset, base
        self._indices = _subset_indices(subset, len(base))
        # A derived class with its own __getitem__ reads its own items.
        self._reads_base = type(subset).__getitem__ is Subset.__getitem__
        if base.targets is not None and self._reads_base:
            self.targets = base.targets[self._indices]
        self.class_names, self.root = base.class_names, base.root
        if base.paths is not None:
            self.paths = [base.paths[index] for index in self._indices]
        if base.sizes is not None:
            self.sizes = base.sizes[self._indices]
        self.deterministic = base.deterministic and self._reads_base and transform is None
        # A reader of encoded images would skip the transform of the base.
        if self._reads_base and base.transform is None:
            self.has_encoded, self.pixel_axes = base.has_encoded, base.pixel_axes

    def __len__(self) -> int:
        return len(self._indices)

    def _read(self, index: int) -> tuple[Any, Any]:
        if self._reads_base:
            return self.base[int(self._indices[index])]
        return checked_pair(self.dataset[index], index, self.dataset)

    def read_batch(self, indices: list[int]) -> Sequence[tuple[Any, Any] | Exception] | None:
        """The samples, read together by ``base``; see :meth:`Source.read_batch`."""
        if not self._reads_base or self.base.transform is not None:  # seeded per sample
            return None
        return self.base.read_batch(self._indices[indices].tolist())

    def collated(self, indices: list[int]) -> tuple[Tensor, Tensor] | None:
        """The samples, collated by ``base``; see :meth:`Source.collated`."""
        if not self._reads_base or self.transform is not None:
            return None
        return self.base.collated(self._indices[indices].tolist())

    def image(self, index: int) -> Any | None:
        """Sample ``index`` as a picture from ``base``, before its transform."""
        return self.base.image(int(self._indices[self._checked(index)]))

    def location(self, index: int) -> Location:
        """Where ``base`` has the encoded image of sample ``index``."""
        return self.base.location(int(self._indices[self._checked(index)]))

    def encoded(self, index: int) -> bytes:
        """The encoded image of sample ``index`` from ``base``."""
        return self.base.encoded(int(self._indices[self._checked(index)]))

    def encoded_each(self, indices: list[int]) -> list[bytes | OSError]:
        """The encoded images from ``base``, read together."""
        return self.base.encoded_each(self._indices[indices].tolist())

    @property
    def bytes_read(self) -> int | None:
        """Bytes that ``base`` fetched from an object store."""
        return self.base.bytes_read

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The stored image of sample ``index`` from ``base``."""
        return self.base.pixels(int(self._indices[self._checked(index)]))

    def _identify(self) -> str:
        digest = new_digest("subset")
        digest.update(f"{self.base.fingerprint()}\n".encode())
        update_with_array(digest, self._indices)
        return digest.hexdigest()


def origin(source: Source) -> Source:
    """``source`` itself, or the source at the bottom of a chain of Subsets."""
    while isinstance(source, SubsetSource):
        source = source.base
    return source


def checked_length(dataset: Any) -> int:
    """N of a map-style dataset.

    Raises:
        TypeError: it has no length or cannot be indexed by number.
        ValueError: its length is 0.
    """
    name = type(dataset).__name__
    expected = "expected a map-style dataset, with __len__ and __getitem__; found"
    if isinstance(dataset, IterableDataset) or not hasattr(type(dataset), "__getitem__"):
        raise TypeError(f"{expected} {name}, whose samples have no index")
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{expected} a {name} with keys {_shown(dataset)}; "
            "pass one of its values, or a tuple (inputs, targets)"
        )
    if isinstance(dataset, (np.ndarray, Tensor)):
        raise TypeError(f"{expected} a single {name}; pass a tuple (inputs, targets)")
    try:
        length = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(f"{expected} {name}, which has no length") from error
    if length == 0:
        raise ValueError(f"expected at least one sample; found a {name} of length 0")
    return length


def checked_pair(sample: Any, index: int, dataset: Any) -> tuple[Any, Any]:
    """``sample`` as ``(input, target)``.

    Raises:
        TypeError: it is not a tuple or list of exactly two elements.
    """
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        return sample[0], sample[1]
    found = type(sample).__name__
    if isinstance(sample, (tuple, list)):
        found = f"a {found} of {len(sample)} elements"
    elif isinstance(sample, Mapping):
        found = f"a {found} with keys {_shown(sample)}"
    raise TypeError(
        f"sample {index} of {type(dataset).__name__} must be a pair (input, target); found {found}"
    )


def _shown(mapping: Mapping[Any, Any]) -> str:
    names = [repr(key) for key in mapping]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _stored_targets(dataset: Any, length: int) -> Array | None:
    for name in _TARGET_ATTRIBUTES:
        array = numeric_array(getattr(dataset, name, None), length)
        if array is not None:
            return array
    return None


def _class_names(dataset: Any) -> list[str] | None:
    """The names in ``classes``. ImageNet has tuples of synonyms, which are joined."""
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, (list, tuple)) or not classes:
        return None
    names = [", ".join(name) if isinstance(name, tuple) else name for name in classes]
    return names if all(isinstance(name, str) for name in names) else None


def _without_transform(dataset: Any) -> Any:
    """A shallow copy of a torchvision dataset without transforms; other datasets unchanged."""
    torchvision = sys.modules.get("torchvision.datasets")
    if torchvision is None or not isinstance(dataset, torchvision.VisionDataset):
        return dataset
    plain = copy.copy(dataset)
    plain.transform = plain.target_transform = plain.transforms = None
    return plain


def _subset_indices(subset: Subset[Any], length: int) -> IntArray:
    indices = np.asarray([int(index) for index in subset.indices], dtype=np.int64)
    if indices.size == 0:
        raise ValueError("expected at least one sample; found a Subset of length 0")
    wrong = np.flatnonzero((indices < -length) | (indices >= length))
    if wrong.size:
        raise IndexError(
            f"index {indices[wrong[0]]} of the Subset is out of range for {length} samples"
        )
    return indices % length
