"""Checks of the arguments of :class:`adapruner.Pruner`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapruner._util.checks import checked_whole
from adapruner._util.integers import as_int64, plain_array


def checked_warmup(warmup_epochs: int | None, epochs: int) -> int:
    """Number of epochs of the warm-up; about a tenth of ``epochs`` where None.

    Raises:
        TypeError: ``warmup_epochs`` is not a whole number.
        ValueError: ``warmup_epochs`` is negative, or not less than ``epochs``.
    """
    if warmup_epochs is None:
        return min(max(round(0.1 * epochs), 1), epochs - 1)
    warmup_epochs = checked_whole("warmup_epochs", warmup_epochs, 0)
    if warmup_epochs >= epochs:
        raise ValueError(
            f"warmup_epochs must be less than epochs ({epochs}), so that gates learn; "
            f"found {warmup_epochs}"
        )
    return warmup_epochs


def check_labels(name: str, labels: Any, num_samples: int) -> Tensor:
    """:func:`check_classes`, with other numbers if a class is N or larger.

    Memory grows with the largest label.
    """
    tensor = check_classes(name, labels, num_samples)
    return tensor.unique(return_inverse=True)[1] if int(tensor.max()) >= num_samples else tensor


def check_classes(name: str, labels: Any, num_samples: int) -> Tensor:
    """The classes of an argument with this name, as int64 ``[N]`` on the CPU.

    Raises:
        TypeError: the labels are not integers.
        ValueError: they do not have shape ``[N]``, or a label is negative.
    """
    tensor = _whole_numbers(name, labels)
    if tensor.dim() == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.dim() != 1 or len(tensor) != num_samples:
        raise ValueError(
            f"{name} must have shape [{num_samples}], one per sample; found {list(tensor.shape)}"
        )
    if tensor.numel() and int(tensor.min()) < 0:
        raise ValueError(f"{name} must be at least 0; found {int(tensor.min())}")
    return tensor


def check_balance(balance: Any, has_labels: bool, has_floors: bool) -> None:
    """Check how classes are balanced.

    Args:
        balance: the argument: "class" or "floor".
        has_labels: whether the classes of the samples are given.
        has_floors: whether the method gives classes floors.

    Raises:
        ValueError: another value, or something is missing that "floor" needs.
    """
    if not isinstance(balance, str) or balance not in ("class", "floor"):
        raise ValueError(f'balance must be "class" or "floor"; found {balance!r}')
    if balance == "class":
        return
    needs = {
        "the classes of all samples (labels=)": has_labels,
        'the method "sampled"': has_floors,
    }
    if missing := [name for name, there in needs.items() if not there]:
        raise ValueError(f'balance="floor" needs {" and ".join(missing)}')


def check_held_out(held_out: Any, num_samples: int) -> Tensor:
    """The held-out samples as int64 indices on the CPU.

    Raises:
        TypeError: the indices are not integers.
        ValueError: an index is out of range or repeated, or all samples are held out.
    """
    tensor = _whole_numbers("held_out", held_out).flatten()
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_samples:
        raise ValueError(
            f"held_out must hold dataset indices in [0, {num_samples}); found indices from "
            f"{int(tensor.min())} to {int(tensor.max())}"
        )
    if (repeats := tensor.numel() - tensor.unique().numel()) > 0:
        raise ValueError(f"held_out must hold each index once; found {repeats} repeats")
    if tensor.numel() >= num_samples:
        raise ValueError(f"held_out must leave a sample to train on; found all {num_samples}")
    return tensor


def checked_unreadable(unreadable: Sequence[Any], num_samples: int) -> list[tuple[int, str]]:
    """(index, reason) of unreadable samples, as an int and text; NumPy's numbers and tensors too.

    Raises:
        IndexError: an index is not a dataset index.
        TypeError: an item is no pair of a whole number and a reason.
    """
    found = []
    for item in unreadable:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise TypeError(f"unreadable samples must be pairs (index, reason); found {item!r}")
        index, reason = item
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise TypeError(
                f"the index of an unreadable sample must be a whole number; found {index!r}"
            )
        place = operator.index(index)
        if not 0 <= place < num_samples:
            raise IndexError(
                f"an unreadable sample must have an index in [0, {num_samples}); found {place}"
            )
        found.append((place, str(reason)))
    return found


def _whole_numbers(name: str, values: Any) -> Tensor:
    """``values`` as int64 on the CPU: a tensor, an array or a sequence, of any integer type.

    Floats are taken where all of them are whole numbers, as pandas gives them.

    Raises:
        TypeError: the values are not whole numbers.
        ValueError: a value is larger than int64 holds.
    """
    array = plain_array(values)
    if array.size == 0:
        return torch.zeros(array.shape, dtype=torch.int64, device="cpu")
    whole = array.dtype.kind in "iu"
    if array.dtype.kind == "f":
        whole = bool((np.isfinite(array) & (array == np.floor(array))).all())
    if not whole:
        named = isinstance(array.flat[0], (str, bytes))
        advice = f". np.unique({name}, return_inverse=True)[1] numbers them" if named else ""
        raise TypeError(f"{name} must hold integers; found {array.dtype}{advice}")
    return torch.from_numpy(as_int64(name, array))
