"""Samples of a map-style dataset, and of a Subset of any source."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from adapruner._util.seeds import generators_restored, seed_generators
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
from adapruner.data.sources.items import (
    Target,
    differs,
    encode_labels,
    probed,
    split_item,
    stored_targets,
)
from adapruner.data.sources.paths import Paths

_TARGET_ATTRIBUTES = ("targets", "labels", "y")
_PATH_ATTRIBUTES = ("samples", "imgs", "paths", "files", "filenames")


class DatasetSource(Source):
    """The samples of a map-style dataset.

    An item is ``(input, target)``, or has its target at ``target``, or has none; see
    :func:`adapruner.data.sources.items.split_item`. ``targets`` are the classes that
    :func:`adapruner.data.sources.items.stored_targets` finds, unless ``target`` is given or labels
    are text, and a few items that are read have other targets. Labels that are text are numbered in
    the order of the sorted names. The fingerprint covers the name of the class, the length, this
    attribute and, without it, the paths in ``samples``, ``imgs``, ``paths``, ``files`` or
    ``filenames``, relative to their common folder. It does not cover the module, because a class
    can move from ``__main__`` to a module. If it must say more, pass ``fingerprint``.

    Raises:
        TypeError: the dataset has no length or cannot be indexed.
        ValueError: its length is 0.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Transform | None = None,
        fingerprint: str | None = None,
        target: Target | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        self._length = checked_length(dataset)
        self.dataset, self.target = dataset, target
        stored = stored_targets(dataset, self._length, target)
        self.class_names = _class_names(dataset)
        self._codes: dict[str, int] = {}
        self._hashed_names: list[str] = []
        self._hashed: Any = _attribute(dataset, self._length)
        encoded = encode_labels(stored, self._length)
        if encoded is None:
            self.targets = integer_targets(stored, self._length)
        else:
            self._hashed, self._hashed_names = encoded
            if self._gives_text():
                self.targets, self.class_names = encoded
                self._codes = {name: code for code, name in enumerate(self.class_names)}
        # Items that are pairs have their targets in a known place, so none is read.
        if self.targets is not None and (target is not None or self._codes) and self._differs():
            self.targets, self.class_names, self._codes = None, None, {}
        self._stored_paths = _stored_paths(dataset, self._length)
        unknown = self._hashed is None and self._stored_paths is None
        if fingerprint is None and unknown and type(dataset) is not TensorDataset:
            self.doubts["fingerprint"] = (
                f"the fingerprint of this {type(dataset).__name__} rests on its class name and "
                "length alone, so another dataset may have the same; pass fingerprint= to "
                "adapruner.as_source"
            )

    def __len__(self) -> int:
        return self._length

    def _read(self, index: int) -> tuple[Any, Any]:
        return self._split(self.dataset[index], index)

    def _probes(self) -> Iterator[tuple[int, Any]]:
        """(index, target) of a few samples that can be read."""
        for index in probed(self._length):
            try:
                with generators_restored():
                    item = self.dataset[index]
                target = split_item(item, self.target, index, self.dataset)[1]
            except Exception:  # a sample that cannot be read, or has no such target
                continue
            yield index, target

    def _gives_text(self) -> bool:
        """Whether the targets of items are text too. A dataset may number its labels itself."""
        return any(isinstance(target, str) for _, target in islice(self._probes(), 1))

    def _differs(self) -> bool:
        """Whether items have other targets than those that the dataset stores."""
        assert self.targets is not None
        for index, target in self._probes():
            number = self._codes.get(target, -1) if isinstance(target, str) else target
            if differs(number, int(self.targets[index])):
                return True
        return False

    def _split(self, item: Any, index: int) -> tuple[Any, Any]:
        inputs, target = split_item(item, self.target, index, self.dataset)
        if not isinstance(target, str):
            return inputs, target
        if target not in self._codes:
            raise TypeError(
                f"the target of sample {index} is text, {target!r}; expected a number, or a "
                "dataset whose attribute `targets` has the labels of all samples"
            )
        return inputs, self._codes[target]

    def read_batch(self, indices: list[int]) -> list[tuple[Any, Any]] | None:
        """The samples from the dataset's own ``__getitems__``, or None if it has none."""
        if not hasattr(self.dataset, "__getitems__"):
            return None
        samples = self.dataset.__getitems__(indices)
        return [self._split(sample, index) for sample, index in zip(samples, indices, strict=True)]

    def image(self, index: int) -> Any | None:
        """Sample ``index`` as a picture. The transform of a torchvision dataset is left out.

        A dataset that draws random numbers gives the same picture each time.
        """
        dataset = _without_transform(self.dataset)
        with generators_restored():
            seed_generators(self._checked(index))
            item = dataset[self._checked(index)]
        return viewable(split_item(item, self.target, index, dataset)[0])

    def _identify(self) -> str:
        digest = new_digest(self.kind)
        digest.update(f"{type(self.dataset).__qualname__}\n{self._length}\n".encode())
        if self._hashed_names:
            digest.update(f"{self._hashed_names}\n".encode("utf-8", "surrogatepass"))
        if self._hashed is not None:
            update_with_array(digest, self._hashed)
        elif self._stored_paths is not None:
            digest.update("\n".join(self._stored_paths).encode("utf-8", "surrogateescape"))
        for tensor in self.dataset.tensors if type(self.dataset) is TensorDataset else ():
            update_with_array(digest, tensor)
        return digest.hexdigest()

    def about(self) -> dict[str, Any]:
        """The description of any source, with the place of the target in an item."""
        return super().about() | {"target": self.target}


class ConcatSource(DatasetSource):
    """The samples of a :class:`torch.utils.data.ConcatDataset`.

    The fingerprint covers the fingerprints of the parts, in order. The names of the classes are
    those of the parts, if all parts have the same. Parts that give one number to different names
    are warned of.

    Args:
        dataset: the ``ConcatDataset``.
        parts: the source of each of its datasets, in order.
        transform, fingerprint, target: as in :class:`DatasetSource`.
    """

    def __init__(
        self,
        dataset: Any,
        parts: Sequence[Source],
        transform: Transform | None = None,
        fingerprint: str | None = None,
        target: Target | None = None,
    ) -> None:
        super().__init__(dataset, transform, fingerprint, target)
        self.parts = parts
        self.doubts.pop("fingerprint", None)
        for part in parts:
            self.doubts |= part.doubts
        names = [part.class_names for part in parts if self.targets is not None]
        if names and all(name == names[0] for name in names):
            self.class_names = names[0]
        elif not self._codes and (text := _other_numbers(names)):
            self.doubts["class_names"] = text

    def _identify(self) -> str:
        digest = new_digest("concatenation")
        digest.update(f"{type(self.dataset).__qualname__}\n{len(self.parts)}\n".encode())
        for part in self.parts:
            digest.update(f"{part.fingerprint()}\n".encode())
        return digest.hexdigest()


class SubsetSource(Source):
    """The samples of a :class:`torch.utils.data.Subset` of the dataset behind ``base``.

    ``target`` is where the items have their targets, for a derived class that makes items itself.

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
        target: Target | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        self.kind = base.kind
        self.dataset, self.base, self.target = subset, base, target
        self._indices = _subset_indices(subset, len(base))
        # Not so for a derived class with its own __getitem__, which reads its own items.
        self.reads_base = type(subset).__getitem__ is Subset.__getitem__
        if base.targets is not None and self.reads_base:
            self.targets = base.targets[self._indices]
        self.class_names, self.root = base.class_names, base.root
        self.doubts = base.doubts
        if base.paths is not None:
            self.paths = Paths(base.paths[index] for index in self._indices)
        if base.sizes is not None:
            self.sizes = base.sizes[self._indices]
        self.deterministic = base.deterministic and self.reads_base and transform is None
        # A reader of encoded images would skip the transform of the base.
        if self.reads_base and base.transform is None:
            self.has_encoded, self.pixel_axes = base.has_encoded, base.pixel_axes

    def __len__(self) -> int:
        return len(self._indices)

    def _read(self, index: int) -> tuple[Any, Any]:
        if self.reads_base:
            return self.base[int(self._indices[index])]
        return split_item(self.dataset[index], self.target, index, self.dataset)

    def read_batch(self, indices: list[int]) -> Sequence[tuple[Any, Any] | Exception] | None:
        """The samples, read together by ``base``; see :meth:`Source.read_batch`."""
        if not self.reads_base or self.base.transform is not None:  # seeded per sample
            return None
        return self.base.read_batch(self._indices[indices].tolist())

    def collated(self, indices: list[int]) -> tuple[Tensor, Tensor] | None:
        """The samples, collated by ``base``; see :meth:`Source.collated`."""
        if not self.reads_base or self.transform is not None:
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

    def picture(self, index: int, encoded: bytes) -> Any:
        """See :meth:`Source.picture`."""
        return self.base.picture(int(self._indices[self._checked(index)]), encoded)

    def encoded_each(self, indices: list[int]) -> list[bytes | OSError]:
        """The encoded images from ``base``, read together."""
        return self.base.encoded_each(self._indices[indices].tolist())

    def about(self) -> dict[str, Any]:
        """The description of ``base``, of which these are a part."""
        return self.base.about() | super().about() | {"subset": True}

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


def _other_numbers(names: Sequence[list[str] | None]) -> str | None:
    """A warning if two parts have different names for one class, or None."""
    first: dict[int, tuple[int, str]] = {}
    for part, known in enumerate(names):
        for number, name in enumerate(known or ()):
            other, before = first.setdefault(number, (part, name))
            if before != name:
                return (
                    f"the parts of this ConcatDataset number their classes differently: class "
                    f"{number} is {before!r} in part {other} and {name!r} in part {part}, and they "
                    "count as one class"
                )
    return None


def origin(source: Source) -> Source:
    """``source`` itself, or the source at the bottom of a chain of Subsets."""
    while isinstance(source, SubsetSource):
        source = source.base
    return source


def has_transform(source: Source) -> bool:
    """Whether ``source`` has a transform, or a source below it that it reads."""
    if isinstance(source, SubsetSource) and source.reads_base and has_transform(source.base):
        return True
    return source.transform is not None


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
    if isinstance(dataset, Mapping) and name == "DatasetDict":
        raise TypeError(
            f"{expected} a DatasetDict of the splits {_shown(dataset)}; choose one, such as "
            f"data[{next(iter(dataset), 'train')!r}]"
        )
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


def _shown(mapping: Mapping[Any, Any]) -> str:
    names = [repr(key) for key in mapping]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _attribute(dataset: Any, length: int) -> Array | None:
    """The attribute of the dataset that the fingerprint covers."""
    for name in _TARGET_ATTRIBUTES:
        array = numeric_array(getattr(dataset, name, None), length)
        if array is not None:
            return array
    return None


def _stored_paths(dataset: Any, length: int) -> list[str] | None:
    """The paths that a dataset lists, one for each sample, relative to their common folder."""
    for name in _PATH_ATTRIBUTES:
        listed = getattr(dataset, name, None)
        if not isinstance(listed, (list, tuple)) or len(listed) != length:
            continue
        paths = [item[0] if isinstance(item, (list, tuple)) and item else item for item in listed]
        if all(isinstance(path, (str, os.PathLike)) for path in paths):
            return relative_paths([os.fspath(path) for path in paths])
    return None


def relative_paths(paths: list[str]) -> list[str]:
    """``paths`` with "/" between their parts, relative to the folder that holds all of them."""
    parts = [path.replace(os.sep, "/").split("/") for path in paths]
    shared = min(map(len, parts)) - 1
    while any(path[:shared] != parts[0][:shared] for path in parts):
        shared -= 1
    return ["/".join(path[shared:]) for path in parts]


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
