"""What every source of samples offers, and the hashing that the sources share."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adapruner.vision.decoding import is_pil_image

if TYPE_CHECKING:
    from hashlib import _Hash

Transform: TypeAlias = Callable[[Any], Any]
IntArray: TypeAlias = npt.NDArray[np.int64]
Array: TypeAlias = "Tensor | npt.NDArray[Any]"

_CHUNK_BYTES = 1 << 24


class Location(NamedTuple):
    """Where the encoded bytes of a sample lie: ``size`` of them from ``offset`` on in a file.

    A ``size`` of None is the whole file.
    """

    path: str
    offset: int = 0
    size: int | None = None


class Source(Dataset[tuple[Any, Any]]):
    """A dataset of ``(input, target)`` pairs that knows what identifies its samples.

    Made by :func:`adapruner.data.as_source`. A new kind of source defines ``__len__``, ``_read``
    and ``_identify``, and fills the attributes that it can.

    Attributes:
        kind: "image folder", "shards", "arrays", "hugging face" or "dataset".
        transform: applied to each input as it is read, or None.
        targets: class of every sample, int64 ``[N]``; None where it takes reading the samples.
        class_names: name of every class, where known.
        root: absolute path of the image folder, or pattern of the shards; else None.
        paths: path of every sample relative to ``root``, with "/" between its parts, else None.
        sizes: bytes on disk of every sample, int64 ``[N]``, 0 where a file is missing; image
            folders and shards only, else None.
        deterministic: True where reading a sample twice gives the same values.
        has_encoded: True where every sample is an encoded image (a JPEG, a PNG) of a file, which
            :meth:`encoded` gives and :meth:`location` tells; ``targets`` are then known.
        pixel_axes: "HW", "HWC" or "CHW" where every sample is an image of one size, uint8, that
            :meth:`pixels` gives; ``targets`` are then known. Else None.
    """

    kind: str = "dataset"

    def __init__(self, transform: Transform | None = None, fingerprint: str | None = None) -> None:
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable or None, got {type(transform).__name__}")
        self.transform = transform
        self._fingerprint = None if fingerprint is None else stated_fingerprint(fingerprint)
        self.targets: IntArray | None = None
        self.class_names: list[str] | None = None
        self.root: str | None = None
        self.paths: list[str] | None = None
        self.sizes: IntArray | None = None
        self.deterministic: bool = False
        self.has_encoded: bool = False
        self.pixel_axes: str | None = None

    def __len__(self) -> int:
        """N, the number of samples."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Sample ``index`` as ``(input, target)``, the input transformed.

        Raises:
            IndexError: ``index`` is not in [-N, N).
            OSError: the sample's file cannot be read or decoded.
        """
        return self.transformed(self._read(self._checked(index)))

    def transformed(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        """A sample as :meth:`read_batch` gives it, its input transformed."""
        inputs, target = pair
        return (inputs if self.transform is None else self.transform(inputs)), target

    def read_batch(self, indices: list[int]) -> list[tuple[Any, Any]] | None:
        """Some samples, in [0, N), before this source's transform; None where it would be no faster
        to read them together."""
        return None

    def collated(self, indices: list[int]) -> tuple[Tensor, Tensor] | None:
        """Some samples, in [0, N), as ``default_collate`` would join them; None where that is no
        faster, or a transform is to be applied to each."""
        return None

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over what identifies the samples, whatever the transforms.

        Computed at the first call and kept.
        """
        if self._fingerprint is None:
            self._fingerprint = self._identify()
        return self._fingerprint

    def image(self, index: int) -> Any | None:
        """Sample ``index`` to look at, before this source's transform.

        A PIL image, or a NumPy array of two or three dimensions; None where the sample is neither.
        """
        return viewable(self._read(self._checked(index))[0])

    def location(self, index: int) -> Location:
        """Where the encoded image of sample ``index`` lies.

        Raises:
            TypeError: the samples are no encoded images (``has_encoded`` is False).
            OSError: the sample has none that could be found; the message says why.
        """
        raise TypeError(f"samples of kind {self.kind!r} are no encoded images")

    def encoded(self, index: int) -> bytes:
        """The encoded image of sample ``index``, as it lies in its file.

        Raises:
            TypeError: the samples are no encoded images (``has_encoded`` is False).
            OSError: it cannot be read, or is not where it should be; the message has the path.
        """
        location = self.location(index)
        with open(location.path, "rb") as handle:
            handle.seek(location.offset)
            return handle.read(location.size)

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The image of sample ``index`` as it is stored, with the axes ``pixel_axes``; a view.

        Raises:
            TypeError: the samples are no uint8 images (``pixel_axes`` is None).
        """
        raise TypeError(f"samples of kind {self.kind!r} are no uint8 images")

    def about(self) -> dict[str, Any]:
        """What a result tells of its dataset, in plain values."""
        return {
            "num_samples": len(self),
            "kind": self.kind,
            "root": self.root,
            "class_names": self.class_names,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples, kind={self.kind!r})"

    def _read(self, index: int) -> tuple[Any, Any]:
        """Sample ``index``, in [0, N), before this source's transform."""
        raise NotImplementedError

    def _identify(self) -> str:
        """Compute the fingerprint."""
        raise NotImplementedError

    def _checked(self, index: int) -> int:
        position, length = operator.index(index), len(self)
        if not -length <= position < length:
            raise IndexError(f"index {position} is out of range for {length} samples")
        return position % length


def viewable(value: Any) -> Any | None:
    """``value`` if it is a PIL image, as a NumPy array if it has 2 or 3 dimensions, else None."""
    if is_pil_image(value):
        return value
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray) and value.ndim in (2, 3):
        return value
    return None


def integer_targets(values: Any, length: int) -> IntArray | None:
    """``values`` as int64 ``[length]`` if they are that many integers, else None."""
    array = numeric_array(values, length)
    if array is None or array.ndim != 1:
        return None
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.dtype == torch.bfloat16 else array.numpy()
    return array.astype(np.int64) if array.dtype.kind in "iu" else None


def numeric_array(values: Any, length: int) -> Array | None:
    """``values`` as an array or tensor of ``length`` rows of numbers, or None if they are not."""
    if isinstance(values, Tensor):
        return values if values.ndim and len(values) == length else None
    if not isinstance(values, (np.ndarray, list, tuple, range)) or isinstance(values, str):
        return None
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # rows of unequal lengths, tensors of several
        return None
    if array.dtype.kind not in "biuf" or not array.ndim or len(array) != length:
        return None
    return array


def new_digest(kind: str) -> _Hash:
    """A SHA-256 that starts with the kind of source, so that no two kinds can collide."""
    return hashlib.sha256(f"adapruner {kind} 1\n".encode())


def stated_fingerprint(text: str) -> str:
    """The fingerprint of a dataset whose identity the user states.

    Any string is hashed, except one that is a fingerprint already (64 hex digits): that one is
    taken as it is, so that ``fingerprint=result.fingerprint`` says "the same samples, I vouch".

    Raises:
        TypeError: ``text`` is no string.
        ValueError: ``text`` is empty.
    """
    if not isinstance(text, str):
        raise TypeError(f"fingerprint must be a string, got {type(text).__name__}")
    if not text:
        raise ValueError("fingerprint must say something about the dataset, got an empty string")
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text
    digest = new_digest("stated")
    digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def update_with_array(digest: _Hash, array: Array) -> None:
    """Hash dtype, shape and values of ``array``, in chunks.

    The same for a tensor and a NumPy array of the same values, contiguous or not, of either byte
    order, in memory or mapped from a file.
    """
    name = str(array.dtype).removeprefix("torch.")
    if isinstance(array, np.ndarray):
        name = array.dtype.name
    digest.update(f"{name} {list(array.shape)}\n".encode())
    if 0 in array.shape:
        return
    row_bytes = max(1, array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
    step = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, len(array), step):
        digest.update(_raw_bytes(array[start : start + step]).data)


def _raw_bytes(rows: Array) -> npt.NDArray[np.uint8]:
    if isinstance(rows, Tensor):
        rows = rows.detach().resolve_conj().resolve_neg().cpu().contiguous()
        flat: npt.NDArray[np.uint8] = rows.reshape(-1).view(torch.uint8).numpy()
        return flat
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8)
