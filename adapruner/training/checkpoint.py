"""Checkpoints: nested states of models and optimisers as tensors and JSON, never as pickles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapruner._util.files import read_file, remove_leftovers, write_file
from adapruner.errors import FileFormatError
from adapruner.training import CHECKPOINT_NAME


def save_checkpoint(folder: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Replace the checkpoint in ``folder`` (made if it is missing) by ``state``, atomically.

    Args:
        folder: where the checkpoint lives.
        state: nested dicts, lists and tuples of tensors, strings, numbers, booleans and None.

    Raises:
        TypeError: ``state`` holds something else; the message says where.
        OSError: the folder cannot be written, or the disk is full; the old checkpoint stays.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    structure = _flatten(state, "state", tensors)
    write_file(Path(folder) / CHECKPOINT_NAME, "checkpoint", tensors, {"structure": structure})


def load_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The state in ``folder``'s checkpoint, or None where there is none.

    Raises:
        FileFormatError: the file is cut off, altered, of another version, or no checkpoint.
    """
    path = Path(folder) / CHECKPOINT_NAME
    remove_leftovers(path)
    if not path.exists():
        return None
    try:
        tensors, content = read_file(path, "checkpoint")
    except FileFormatError as error:
        raise FileFormatError(
            f"cannot resume from the checkpoint; remove it to start anew, or choose another "
            f"folder: {error}"
        ) from error
    state: dict[str, Any] = _restore(content["structure"], tensors)
    return state


def _flatten(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` with tensors moved into ``tensors`` and every container tagged with its type."""
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"tensor": where}
    if isinstance(value, dict):
        items = [[key, _flatten(v, f"{where}.{key}", tensors)] for key, v in value.items()]
        if not all(isinstance(key, (str, int)) for key, _ in items):
            raise TypeError(f"{where} has keys that are neither strings nor whole numbers")
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_flatten(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restore(v, tensors) for key, v in content}
    items = [_restore(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items


def describe(module: torch.nn.Module) -> list[list[Any]]:
    """Name and shape of every parameter and buffer: what a checkpoint's model must agree with."""
    # Extra states of modules of one's own may be anything.
    return [[name, list(getattr(v, "shape", ()))] for name, v in module.state_dict().items()]
