"""Integers of any form as int64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor


def plain_array(values: Any) -> npt.NDArray[Any]:
    """A tensor, an array, a sequence or a pandas Series as a NumPy array, in order of position.

    Objects that are all numbers, as in pandas' nullable columns, become an array of numbers.

    Raises:
        ValueError: the rows of a sequence have different lengths.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    return np.asarray(array.tolist()) if array.dtype == object else array


def as_int64(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """A copy of an array of integers as int64, with C strides and the byte order of the machine.

    Raises:
        ValueError: a value is larger than int64 holds.
    """
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be less than 2**63; found {array.max()}")
    return array.astype(np.int64, order="C")
