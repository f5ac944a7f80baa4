"""Many paths in little memory."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Paths(Sequence[str]):
    """An immutable sequence of paths, held as the bytes of all names and where each one ends.

    A list of strings costs about 50 bytes more for each path. In a forked worker it would also be
    copied as it is read, because reading a Python object changes its reference count.

    Args:
        paths: the paths. Names that are not valid UTF-8 stay as they are.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Paths: ...

    def __getitem__(self, index: int | slice) -> str | Paths:
        if isinstance(index, slice):
            return Paths(self[place] for place in range(*index.indices(len(self))))
        place, length = operator.index(index), len(self)
        if not -length <= place < length:
            raise IndexError(f"index {place} is out of range for {length} paths")
        place %= length
        begin = self._ends[place - 1] if place else 0
        return os.fsdecode(self._names[begin : self._ends[place]])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Paths, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [repr(path) for path in self[:3]] + (["…"] if len(self) > 3 else [])
        return f"Paths([{', '.join(shown)}])"
