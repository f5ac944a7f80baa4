"""Checkpoints: nested states of models and optimisers, as tensors and JSON, without pickles."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner._util.files import read_file, remove_leftovers, write_file
from adapruner._util.texts import without_memory_addresses
from adapruner.errors import FileFormatError
from adapruner.training import CHECKPOINT_NAME


def save_checkpoint(folder: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write ``state`` as the checkpoint in ``folder``, atomically.

    Args:
        folder: folder of the checkpoint; made if it is missing.
        state: nested dicts, lists and tuples of tensors, strings, numbers, booleans and None.

    Raises:
        TypeError: ``state`` holds a value of another type. The message names its place.
        OSError: the folder cannot be written, or the disk is full. The old checkpoint stays.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    structure = _flatten(state, "state", tensors)
    write_file(Path(folder) / CHECKPOINT_NAME, "checkpoint", tensors, {"structure": structure})


def load_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The state in the checkpoint of ``folder``, or None without a checkpoint.

    Raises:
        FileFormatError: the file is cut off, altered, of another version, or not a checkpoint.
    """
    path = Path(folder) / CHECKPOINT_NAME
    remove_leftovers(path)
    if not path.exists():
        return None
    try:
        tensors, content = read_file(path, "checkpoint")
    except FileFormatError as error:
        raise FileFormatError(
            f"cannot resume from the checkpoint; remove it to start again, or choose another "
            f"folder: {error}"
        ) from error
    try:
        state = _restore(content["structure"], tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise _broken(path, f"found {type(state).__name__}")
    return state


def _broken(path: Path, why: str) -> FileFormatError:
    return FileFormatError(
        "cannot resume from the checkpoint; remove it to start again, or choose another folder: "
        f"{path} does not hold the state of a run ({why})"
    )


def _flatten(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` with its tensors moved to ``tensors`` and the type of each container noted."""
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"tensor": where}
    if isinstance(value, dict):
        items = [[key, _flatten(v, f"{where}.{key}", tensors)] for key, v in value.items()]
        if not all(isinstance(key, (str, int)) for key, _ in items):
            found = sorted({type(key).__name__ for key, _ in items} - {"str", "int"})
            raise TypeError(
                f"keys of {where} must be strings or whole numbers; found {', '.join(found)}"
            )
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_flatten(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"a checkpoint holds tensors, strings, numbers, booleans and None; found "
        f"{type(value).__name__} at {where}"
    )


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        if not all(isinstance(key, (str, int)) for key, _ in content):
            raise TypeError("keys must be strings or whole numbers")
        return {key: _restore(v, tensors) for key, v in content}
    items = [_restore(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items


def describe(module: torch.nn.Module) -> list[list[Any]]:
    """Name and shape of every parameter and buffer, to compare with a checkpoint's model."""
    # The extra state of a module may be anything.
    return [[name, list(getattr(v, "shape", ()))] for name, v in module.state_dict().items()]


def describe_function(function: Any) -> str | None:
    """The text of a function or another callable, to compare with that of a checkpoint.

    It is the same in every process: without addresses.
    """
    if function is None:
        return None
    if isinstance(function, (type, types.FunctionType, types.BuiltinFunctionType)):
        return f"{function.__module__}.{function.__qualname__}"
    try:
        text = repr(function)
    except Exception:  # of the user's class
        text = type(function).__qualname__
    return without_memory_addresses(text)
