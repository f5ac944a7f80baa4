"""Checks of arguments, shared by all layers."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
from torch import Tensor

from adapruner._util.tensors import missing_part
from adapruner.errors import DatasetMismatchError


def checked_whole(name: str, value: Any, least: int) -> int:
    """``value`` as an int, if it is a whole number of at least ``least``; NumPy's too.

    Raises:
        TypeError: ``value`` is not a whole number.
        ValueError: ``value`` is less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number; found {reprlib.repr(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; found {value}")
    return int(value)


def checked_real(name: str, value: Any, expected: str) -> float:
    """``value`` as a float, if it is a number; NumPy's too.

    Args:
        expected: what the number must be, as a message says it.

    Raises:
        TypeError: ``value`` is not a number.
    """
    number = isinstance(value, (int, float, np.integer, np.floating))
    if isinstance(value, bool) or not number:
        raise TypeError(f"{name} must be {expected}; found {reprlib.repr(value)}")
    return float(value)


def check_loss(loss: Any) -> None:
    """Raise TypeError unless ``loss`` can be called."""
    if not callable(loss):
        raise TypeError(
            "loss must be a function of (outputs, targets) that returns the loss of each sample; "
            f"found {reprlib.repr(loss)}"
        )


def check_same_dataset(owner: str, name: str, expected: object, found: object) -> None:
    """Raise unless a dataset is the dataset that ``owner`` was made for.

    Args:
        owner: the result, checkpoint or state, as the message names it.
        name: the property that is compared, "fingerprint" or "number of samples".
        expected: the property of the dataset that ``owner`` was made for.
        found: the property of the dataset at hand.

    Raises:
        DatasetMismatchError: the two differ.
    """
    if found != expected:
        raise DatasetMismatchError(
            f"{owner} belongs to another dataset: expected {name} {expected}, found {found}"
        )


def check_tensors(**named: Any) -> None:
    """Raise TypeError unless every value is a tensor that is not sharded."""
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor; found {type(value).__name__}, {reprlib.repr(value)}"
            )
        if hasattr(value, "full_tensor"):
            raise TypeError(
                f"{name} must be a plain tensor; found a DTensor. Pass {name}.full_tensor()"
            )


def check_whole_weight(name: str, weight: Any) -> None:
    """Raise TypeError unless a weight of a layer is a tensor and lies here whole."""
    if not isinstance(weight, Tensor):
        check_tensors(**{name: weight})
    if (found := missing_part(weight)) is not None:
        raise TypeError(
            f"{name} must be whole, since its layer does not run; found {found}. Call the whole "
            "model, and pass its logits to Pruner.loss"
        )
