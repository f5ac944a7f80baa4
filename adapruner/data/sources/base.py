"""The base class of all sources, and the hashing that they share."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from adapruner._util.integers import as_int64, plain_array
from adapruner._util.retry import read_twice
from adapruner.errors import UnreachableError
from adapruner.vision.decoding import is_pil_image

if TYPE_CHECKING:
    from hashlib import _Hash

Transform: TypeAlias = Callable[[Any], Any]
IntArray: TypeAlias = npt.NDArray[np.int64]
Array: TypeAlias = "Tensor | npt.NDArray[Any]"

_CHUNK_BYTES = 1 << 24


class Location(NamedTuple):
    """The place of a sample's encoded bytes in a file: ``size`` bytes from ``offset`` on.

    A ``size`` of None means the whole file.
    """

    path: str
    offset: int = 0
    size: int | None = None


class Source(Dataset[tuple[Any, Any]]):
    """A dataset of ``(input, target)`` pairs, with a fingerprint that identifies its samples.

    :func:`adapruner.data.as_source` makes a source. A new kind of source defines ``__len__``,
    ``_read`` and ``_identify``, and sets the attributes that it knows.

    Attributes:
        kind: "image folder", "shards", "arrays", "hugging face", "timm" or "dataset".
        transform: applied to each input when it is read, or None.
        targets: class of every sample, int64 ``[N]``. None if only the samples themselves tell it.
        class_names: name of every class, or None.
        root: absolute path of the image folder, or pattern of the shards, or None.
        paths: path of every sample relative to ``root``, with "/" between its parts, or None.
        sizes: bytes on disk of every sample, int64 ``[N]``; 0 for a missing file. Only image
            folders and shards have sizes. Other sources have None.
        deterministic: True if a sample has the same values each time it is read.
        has_encoded: True if every sample is an encoded image (a JPEG, a PNG) in a file.
            :meth:`encoded` reads the bytes, :meth:`location` says where they are, and ``targets``
            are known.
        doubts: texts of warnings about the samples, by name. A run that reads them warns.
        stated_fingerprint: the fingerprint that the user gave, or None.
        pixel_axes: "HW", "HWC" or "CHW" if every sample is a uint8 image and all have one size.
            :meth:`pixels` returns the image, and ``targets`` are known. Otherwise None.
    """

    kind: str = "dataset"

    def __init__(self, transform: Transform | None = None, fingerprint: str | None = None) -> None:
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable or None; found {type(transform).__name__}")
        self.transform = transform
        self._fingerprint = None if fingerprint is None else stated_fingerprint(fingerprint)
        self.stated_fingerprint = self._fingerprint
        self.targets: IntArray | None = None
        self.class_names: list[str] | None = None
        self.root: str | None = None
        self.paths: Sequence[str] | None = None
        self.sizes: IntArray | None = None
        self.deterministic: bool = False
        self.has_encoded: bool = False
        self.pixel_axes: str | None = None
        self.doubts: dict[str, str] = {}

    def __len__(self) -> int:
        """N, the number of samples."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Sample ``index`` as ``(input, target)``, with the transform applied to the input.

        A read that fails by chance (EIO, ESTALE, EAGAIN, too many open files) is tried once more.

        Raises:
            IndexError: ``index`` is not in [-N, N).
            OSError: the sample's file cannot be read or decoded.
        """
        position = self._checked(index)
        return self.transformed(read_twice(lambda: self._read(position)))

    def transformed(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        """Apply the transform to the input of a sample from :meth:`read_batch`."""
        inputs, target = pair
        return (inputs if self.transform is None else self.transform(inputs)), target

    def read_batch(self, indices: list[int]) -> Sequence[tuple[Any, Any] | Exception] | None:
        """Several samples before this source's transform, or None.

        None means that reading them together is not faster. ``indices`` are in [0, N). An error
        stands in the place of a sample that cannot be read.
        """
        return None

    def collated(self, indices: list[int]) -> tuple[Tensor, Tensor] | None:
        """Several samples, joined as by ``default_collate``, or None.

        None means that reading them together is not faster, or that each needs a transform.
        ``indices`` are in [0, N).
        """
        return None

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) that identifies the samples. Transforms do not change it.

        It is computed at the first call and kept.
        """
        if self._fingerprint is None:
            self._fingerprint = self._identify()
        return self._fingerprint

    def image(self, index: int) -> Any | None:
        """Sample ``index`` as a picture to look at, before this source's transform.

        A PIL image, or a NumPy array of two or three dimensions. None if the sample is neither.
        """
        position = self._checked(index)
        return viewable(read_twice(lambda: self._read(position))[0])

    def location(self, index: int) -> Location:
        """Where the encoded image of sample ``index`` is.

        Raises:
            TypeError: the samples are not encoded images (``has_encoded`` is False).
            OSError: no image was found for the sample. The message says why.
        """
        raise TypeError(f"expected encoded images; found samples of kind {self.kind!r}")

    def encoded(self, index: int) -> bytes:
        """The encoded image of sample ``index``, as the file has it.

        Raises:
            TypeError: the samples are not encoded images (``has_encoded`` is False).
            OSError: the image cannot be read, or is not in its place. The message has the path.
        """
        location = self.location(index)

        def read() -> bytes:
            with open(location.path, "rb") as handle:
                handle.seek(location.offset)
                return handle.read(location.size)

        return read_twice(read)

    def picture(self, index: int, encoded: bytes) -> Any:
        """:meth:`image` of sample ``index``, where ``encoded`` has been read already.

        A source whose images are cheap to read may read it again.
        """
        return self.image(index)

    def encoded_each(self, indices: list[int]) -> list[bytes | OSError]:
        """:meth:`encoded` of each sample. An error stands in the place of an unreadable one.

        Raises:
            UnreachableError: an object store did not answer.
        """
        found: list[bytes | OSError] = []
        for index in indices:
            try:
                found.append(self.encoded(index))
            except UnreachableError:
                raise
            except OSError as error:
                found.append(error)
        return found

    @property
    def bytes_read(self) -> int | None:
        """Bytes fetched from an object store since this source was made; None elsewhere."""
        return None

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The stored image of sample ``index``, a view with the axes ``pixel_axes``.

        Raises:
            TypeError: the samples are not uint8 images (``pixel_axes`` is None).
        """
        raise TypeError(f"expected uint8 images; found samples of kind {self.kind!r}")

    def about(self) -> dict[str, Any]:
        """A description of the dataset in plain values, for the result."""
        return {
            "num_samples": len(self),
            "kind": self.kind,
            "root": self.root,
            "class_names": self.class_names,
            "stated_fingerprint": self.stated_fingerprint,
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
    """A PIL image unchanged, an array of 2 or 3 dimensions as a NumPy array, else None."""
    if is_pil_image(value):
        return value
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray) and value.ndim in (2, 3):
        return value
    return None


def integer_targets(values: Any, length: int) -> IntArray | None:
    """``values`` as int64 ``[length]`` if they are ``length`` integers, else None.

    The integers have any type and byte order, and the shape ``[length]`` or ``[length, 1]``.

    Raises:
        ValueError: a value is larger than int64 holds.
    """
    array = numeric_array(values, length)
    if array is None or tuple(array.shape) not in ((length,), (length, 1)):
        return None
    array = plain_array(array)
    return as_int64("targets", array).reshape(length) if array.dtype.kind in "iu" else None


def numeric_array(values: Any, length: int) -> Array | None:
    """``values`` as an array or tensor if they are ``length`` rows of numbers, else None."""
    if isinstance(values, Tensor):
        return values if values.ndim and len(values) == length else None
    if not is_array_like(values):
        return None
    try:
        array = plain_array(values)
    except (ValueError, TypeError, RuntimeError):  # unequal rows, or tensors of several values
        return None
    if array.dtype.kind not in "biuf" or not array.ndim or len(array) != length:
        return None
    return array


def is_array_like(values: Any) -> bool:
    """Whether ``values`` are a sequence, or convert themselves to an array, as a Series does."""
    return isinstance(values, (list, tuple, range)) or hasattr(values, "__array__")


def new_digest(kind: str) -> _Hash:
    """A SHA-256 that starts with the kind of source, so that two kinds never collide."""
    return hashlib.sha256(f"adapruner {kind} 1\n".encode())


def stated_fingerprint(text: str) -> str:
    """The fingerprint for a name that the user gives to the dataset.

    A fingerprint (64 hex digits) is returned unchanged, so ``fingerprint=result.fingerprint``
    declares that the samples are the same. Any other string is hashed.

    Raises:
        TypeError: ``text`` is not a string.
        ValueError: ``text`` is empty.
    """
    if not isinstance(text, str):
        raise TypeError(f"fingerprint must be a string; found {type(text).__name__}")
    if not text:
        raise ValueError("fingerprint must identify the dataset; found an empty string")
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text
    digest = new_digest("stated")
    digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def update_with_array(digest: _Hash, array: Array) -> None:
    """Hash dtype, shape and values of ``array``, in chunks.

    A tensor and a NumPy array of equal values have equal hashes. Strides, byte order and memory
    maps make no difference.
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
