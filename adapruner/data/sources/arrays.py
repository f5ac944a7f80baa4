"""Samples in two arrays: tensors, NumPy arrays or memory maps."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt
import torch
from torch import Tensor

from adapruner._util.integers import plain_array
from adapruner.data.sources.base import (
    Array,
    Source,
    Transform,
    integer_targets,
    is_array_like,
    new_digest,
    update_with_array,
)
from adapruner.data.sources.items import encode_labels
from adapruner.vision.decoding import picture_axes

_ARRAYS = ("_inputs", "_targets", "_given_targets")


class ArraySource(Source):
    """Sample i is row i of ``inputs`` and of ``targets``, as tensors.

    Args:
        inputs: ``[N, …]`` tensor or NumPy array. A memory map is not copied.
        targets: ``[N, …]`` tensor, NumPy array, sequence or pandas Series. Integers of shape
            ``[N]`` or ``[N, 1]`` are classes, read as int64 ``[N]``. Text labels are numbered in
            the order of the sorted names. Others stay as they are.
        transform: applied to each row of ``inputs``, as a tensor.
        fingerprint: a string that identifies the samples. The default is a hash of their bytes.

    Raises:
        TypeError: an array is not of these types, or torch lacks its dtype.
        ValueError: there are no rows, the numbers of inputs and targets differ, or a class is
            larger than int64 holds.
    """

    kind = "arrays"

    def __init__(
        self,
        inputs: Array,
        targets: Any,
        transform: Transform | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        for name, array in (("inputs", inputs), ("targets", targets)):
            if isinstance(array, np.ma.MaskedArray):
                raise TypeError(
                    f"{name} must be an array without a mask; found a masked array. Fill it, or "
                    "leave its masked rows out"
                )
        rows = len(inputs) if is_array_like(inputs) and np.ndim(inputs) else 0
        encoded = encode_labels(targets, rows) if is_array_like(targets) else None
        if encoded is not None:
            targets, self.class_names = encoded
        targets = _plain_targets(targets)
        inputs, targets = _common_type(inputs), _common_type(targets)
        _check_array("inputs", inputs)
        _check_array("targets", targets)
        if len(inputs) != len(targets):
            raise ValueError(
                "inputs and targets must have equal numbers of rows; "
                f"found {len(inputs)} inputs and {len(targets)} targets"
            )
        if len(inputs) == 0:
            raise ValueError("expected at least one sample; found arrays of length 0")
        self._files = [
            os.path.abspath(array.filename)
            for array in (inputs, targets)
            if isinstance(array, np.memmap) and array.filename is not None
        ]
        self._inputs, self._targets = inputs, targets
        self._given_targets = targets  # the fingerprint covers their dtype and shape
        self.targets = integer_targets(targets, len(targets))
        self.deterministic = transform is None
        if self.targets is not None:
            self._targets = self.targets
            if isinstance(targets, Tensor):
                self._targets = torch.from_numpy(self.targets).to(targets.device)
                # Torch cannot pickle unsigned tensors for a worker. The hash is the same.
                self._given_targets = plain_array(targets)
            self.pixel_axes = _pixel_axes(inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def collated(self, indices: list[int]) -> tuple[Tensor, Tensor] | None:
        """The rows at ``indices``, read in one step."""
        if self.transform is not None:
            return None
        return _rows(self._inputs, indices), _rows(self._targets, indices)

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The row of sample ``index`` as it is stored."""
        if self.pixel_axes is None:
            return super().pixels(index)
        return np.asarray(self._inputs[self._checked(index)])

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        return _row(self._inputs, index), _row(self._targets, index)

    def about(self) -> dict[str, Any]:
        """The description of any source, with the .npy files."""
        return super().about() | {"files": self._files}

    def _identify(self) -> str:
        digest = new_digest(self.kind)
        if self.class_names is not None:
            digest.update(f"{self.class_names}\n".encode("utf-8", "surrogatepass"))
        update_with_array(digest, self._inputs)
        update_with_array(digest, self._given_targets)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # Pickling a memory map would copy the whole file. Workers map the file again instead.
        state = self.__dict__.copy()
        for name in _ARRAYS:
            state[name] = _MappedFile.of(state[name]) or state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in _ARRAYS:
            if isinstance(state[name], _MappedFile):
                state[name] = state[name].open()
        self.__dict__.update(state)


def map_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The array of a .npy file, mapped into memory. The disk is read only where rows are used.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a .npy file of numbers, is cut off, or is empty.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {os.fspath(path)}; expected a .npy file")
    try:
        with open(path, "rb") as handle:
            shape, in_columns, dtype = _read_header(handle)
            offset, size = handle.tell(), os.fstat(handle.fileno()).st_size
        # NumPy maps some headers that no array has: a negative length of items without bytes ends
        # the process by a division by 0.
        if dtype.hasobject or not dtype.itemsize or min(shape, default=1) < 0:
            raise ValueError(f"found {dtype} of shape {list(shape)}")
        if math.prod(shape) * dtype.itemsize > size - offset:
            raise ValueError(f"{dtype} of shape {list(shape)} needs more than its {size} bytes")
        return np.memmap(path, dtype, "r", offset, shape, "F" if in_columns else "C")
    except OSError:
        raise
    except Exception as error:  # the parser of headers raises many types
        raise ValueError(
            f"{os.fspath(path)} is not a whole .npy file of numbers: {error}"
        ) from error


def _read_header(handle: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype of a .npy file."""
    version = npy.read_magic(handle)
    # Version 3.0 is only for names of fields, which numbers do not have.
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"expected version 1.0 or 2.0 of the format; found {version}")
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = readers[version](handle)
    return header


@dataclass(frozen=True)
class _MappedFile:
    """How to map a file into memory again."""

    filename: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    order: str

    @classmethod
    def of(cls, array: Any) -> _MappedFile | None:
        """The file of ``array`` if it is a whole memory map that shares its file, else None."""
        if not (
            isinstance(array, np.memmap)
            and isinstance(array.base, mmap.mmap)  # a view does not record its offset
            and array.filename is not None
            and array.mode in ("r", "r+")  # in mode "c" the file lacks the changes
        ):
            return None
        order = "C" if array.flags.c_contiguous else "F"
        return cls(str(array.filename), array.dtype, array.shape, array.offset, order)

    def open(self) -> npt.NDArray[Any]:
        return np.memmap(
            self.filename,
            dtype=self.dtype,
            mode="r",
            offset=self.offset,
            shape=self.shape,
            order="C" if self.order == "C" else "F",
        )


def _plain_targets(targets: Any) -> Any:
    """A sequence, a Series or an array of objects as an array of numbers; others unchanged."""
    given = isinstance(targets, (Tensor, np.ndarray)) and targets.dtype != object
    if given or not is_array_like(targets):
        return targets
    try:
        return plain_array(targets)
    except (ValueError, TypeError, RuntimeError) as error:  # unequal rows
        raise TypeError(f"targets must hold numbers, in rows of one shape: {error}") from error


def _common_type(array: Any) -> Any:
    """``array`` in the C type that torch takes, where NumPy has two integer types of one size."""
    if not isinstance(array, np.ndarray) or array.dtype.char not in "qQ":
        return array
    return array.view(array.dtype.str)


def _check_array(name: str, array: Any) -> None:
    if not isinstance(array, (Tensor, np.ndarray)):
        raise TypeError(
            f"{name} must be a torch tensor or a NumPy array; found {type(array).__name__}"
        )
    if array.ndim == 0:
        raise ValueError(f"{name} must have one row for each sample; found a single value")
    if isinstance(array, Tensor):
        if array.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; found layout {array.layout}")
        return
    try:
        torch.from_numpy(np.empty(0, array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise TypeError(f"{name} must hold numbers; found an array of {array.dtype}") from error


def _pixel_axes(inputs: Array) -> str | None:
    """The axes of each row, if it is a uint8 image in CPU memory; else None."""
    if isinstance(inputs, Tensor) and inputs.device.type != "cpu":
        return None
    is_bytes = inputs.dtype == (torch.uint8 if isinstance(inputs, Tensor) else np.uint8)
    return picture_axes(tuple(inputs.shape[1:])) if is_bytes else None


def _rows(array: Array, indices: list[int]) -> Tensor:
    if isinstance(array, Tensor):
        return array[torch.tensor(indices, dtype=torch.int64, device=array.device)]
    return _tensor(np.asarray(array[np.array(indices, dtype=np.int64)]))


def _row(array: Array, index: int) -> Tensor:
    if isinstance(array, Tensor):
        return array[index]
    row = np.asarray(array[index])
    # Every tensor is writable, so it must not share memory with a file.
    return _tensor(row.copy() if isinstance(array, np.memmap) else row)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor of ``array``. It shares the memory of the array where torch can.

    Torch has no negative strides, no other byte order, and no memory that is read-only or not
    aligned.
    """
    if array.flags.carray and array.dtype.isnative:  # C strides, aligned and writable
        return torch.from_numpy(array)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
