"""Samples that are rows of two arrays: tensors, NumPy arrays, memory maps."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapruner.data.sources.base import (
    Array,
    Source,
    Transform,
    integer_targets,
    new_digest,
    update_with_array,
)
from adapruner.vision.decoding import picture_axes


class ArraySource(Source):
    """Sample i is row i of ``inputs`` and of ``targets``, as tensors.

    Args:
        inputs: ``[N, …]`` tensor or NumPy array; a memory map stays one.
        targets: ``[N, …]`` likewise.
        transform: applied to each input row, a tensor.
        fingerprint: what identifies the samples, instead of their bytes.

    Raises:
        TypeError: neither tensors nor NumPy arrays, or of a dtype that torch has not.
        ValueError: no rows, or not as many inputs as targets.
    """

    kind = "arrays"

    def __init__(
        self,
        inputs: Array,
        targets: Array,
        transform: Transform | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        _check_array("inputs", inputs)
        _check_array("targets", targets)
        if len(inputs) != len(targets):
            raise ValueError(
                "inputs and targets must have as many rows as each other, "
                f"got {len(inputs)} inputs and {len(targets)} targets"
            )
        if len(inputs) == 0:
            raise ValueError("expected at least one sample, got arrays of length 0")
        self._inputs, self._targets = inputs, targets
        self.targets = integer_targets(targets, len(targets))
        self.deterministic = transform is None
        if self.targets is not None:
            self.pixel_axes = _pixel_axes(inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def collated(self, indices: list[int]) -> tuple[Tensor, Tensor] | None:
        """The rows at ``indices``, taken at once."""
        if self.transform is not None:
            return None
        return _rows(self._inputs, indices), _rows(self._targets, indices)

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The row of sample ``index``, as it lies in memory or in its file."""
        if self.pixel_axes is None:
            return super().pixels(index)
        return np.asarray(self._inputs[self._checked(index)])

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        return _row(self._inputs, index), _row(self._targets, index)

    def _identify(self) -> str:
        digest = new_digest(self.kind)
        update_with_array(digest, self._inputs)
        update_with_array(digest, self._targets)
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the whole file; workers map the file again instead.
        state = self.__dict__.copy()
        for name in ("_inputs", "_targets"):
            state[name] = _MappedFile.of(state[name]) or state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("_inputs", "_targets"):
            if isinstance(state[name], _MappedFile):
                state[name] = state[name].open()
        self.__dict__.update(state)


def map_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The array of a .npy file, mapped into memory: of it, only what is read comes from the disk.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npy file of numbers (but of objects, say), is cut off, or empty.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {os.fspath(path)}; expected an array, .npy")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} is no whole .npy file of numbers: {error}") from error
    if not isinstance(array, np.memmap):
        raise ValueError(f"{os.fspath(path)} is no .npy file but a {type(array).__name__}")
    return array


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
        """The file behind ``array`` where it is the whole of a shared memory map, else None."""
        if not (
            isinstance(array, np.memmap)
            and isinstance(array.base, mmap.mmap)  # a view's offset is not recorded
            and array.filename is not None
            and array.mode in ("r", "r+")  # of a copy on write the file lacks the changes
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


def _check_array(name: str, array: Any) -> None:
    if not isinstance(array, (Tensor, np.ndarray)):
        raise TypeError(
            f"{name} must be a torch tensor or a NumPy array, got {type(array).__name__}"
        )
    if array.ndim == 0:
        raise ValueError(f"{name} must have a first dimension, the samples; got a single value")
    if isinstance(array, Tensor):
        if array.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {array.layout}")
        return
    try:
        torch.from_numpy(np.empty(0, array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise TypeError(f"{name} must hold numbers, got an array of {array.dtype}") from error


def _pixel_axes(inputs: Array) -> str | None:
    """Of a row as an image that NumPy can show; None where it is none."""
    if isinstance(inputs, Tensor) and inputs.device.type != "cpu":
        return None
    is_bytes = inputs.dtype == (torch.uint8 if isinstance(inputs, Tensor) else np.uint8)
    return picture_axes(tuple(inputs.shape[1:])) if is_bytes else None


def _rows(array: Array, indices: list[int]) -> Tensor:
    if isinstance(array, Tensor):
        return array[torch.tensor(indices, dtype=torch.int64, device=array.device)]
    rows = np.asarray(array[np.array(indices, dtype=np.int64)])
    return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False))


def _row(array: Array, index: int) -> Tensor:
    if isinstance(array, Tensor):
        return array[index]
    row = np.asarray(array[index])
    native = row.dtype.newbyteorder("=")
    # A tensor can always be written to: never let it reach a read-only array or a file.
    copy = isinstance(array, np.memmap) or not row.flags.writeable
    return torch.from_numpy(row.astype(native) if copy else row.astype(native, copy=False))
