"""Checks of a state that is to be loaded, which may come from a damaged or a hostile file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapruner.pruning import bitmask
from adapruner.pruning.methods import current_name
from adapruner.pruning.selection import keep_count

_STATE = (
    *("settings", "fingerprint", "segments", "epoch", "history", "controller", "gates"),
    *("kept", "read", "best", "unreadable", "not_finite"),
)
# Numbers that every entry of the history has. The losses are absent if there were none.
_NUMBERS = (
    *("epoch", "samples_read", "samples_evaluated", "kept", "explored", "keep_ratio"),
    *("slope", "mean_gate", "open_share", "seconds"),
)
_LOSSES = ("training_loss", "validation_loss")
_TEXTS = ("phase", "decision")
_ROUNDING = 1e-9


def check_parts(state: Mapping[str, Any]) -> None:
    """Raise ValueError if a part of a pruner's state is missing."""
    if not isinstance(state, Mapping):
        raise ValueError(f"expected the state of a Pruner; found {type(state).__name__}")
    if missing := [name for name in _STATE if name not in state]:
        raise ValueError(f"expected the state of a Pruner; not found: {', '.join(missing)}")


def check_settings(found: Any, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a state has other settings than those of this run."""
    for name, value in settings.items():
        theirs = found.get(name)
        if (current_name(theirs) if name == "method" else theirs) != value:
            raise ValueError(
                f"the state is of a run with other settings: expected {name}={value!r}, found "
                f"{name}={theirs!r}"
            )


def check_state(
    state: Mapping[str, Any],
    num_samples: int,
    keep_ratio: float,
    epochs: int,
    slope: tuple[float, float],
) -> None:
    """Check the values of a pruner's state that would be used as places, counts or masks.

    Args:
        state: a state with all its names, and the settings of this run.
        num_samples: N.
        keep_ratio: r.
        epochs: epochs of the run.
        slope: first and last slope of its gates.

    Raises:
        ValueError: a value cannot be that of a run. The message names it.
        TypeError, LookupError, AttributeError: a value has another type or lacks a part.
    """
    epoch, history = state["epoch"], state["history"]
    if not _is_whole(epoch) or not 0 <= epoch <= epochs:
        raise _wrong("epoch", f"a whole number in [0, {epochs}]", epoch)
    if not isinstance(history, list) or len(history) != epoch:
        raise _wrong("history", f"a list of {epoch} epochs", history)
    for entry in history:
        _check_entry(entry, slope)
    logits = state["gates"]["gate_logits"]
    final = min(keep_count(keep_ratio, num_samples), int((logits != -torch.inf).sum()))
    _check_mask("kept", state["kept"], num_samples, final if epoch == epochs else None)
    _check_mask("read", state["read"], num_samples, None)
    if state["best"] is not None:
        _check_mask("best", state["best"]["mask"], num_samples, final)
        for name in ("loss", "bound", "epoch"):
            if not _is_number(state["best"][name]):
                raise _wrong(f"best.{name}", "a number", state["best"][name])
    for index in [index for index, _ in state["unreadable"]] + list(state["not_finite"]):
        if not _is_whole(index) or not 0 <= index < num_samples:
            raise _wrong("a sample", f"a dataset index in [0, {num_samples})", index)
    _check_controller(state["controller"])
    constant = state.get("constant_loss")
    if constant is not None and not (_is_number(constant) and 0 < constant < math.inf):
        raise _wrong("constant_loss", "a number above 0 or None", constant)
    if not isinstance(state.get("constant_closed", False), bool):
        raise _wrong("constant_closed", "True or False", state["constant_closed"])
    if not isinstance(doubt := state.get("constant_doubt"), (str, type(None))):
        raise _wrong("constant_doubt", "text or None", doubt)
    evaluated = state.get("evaluated", 0)
    if not _is_whole(evaluated) or evaluated < 0:
        raise _wrong("evaluated", "a whole number of at least 0", evaluated)
    told = state.get("warnings", {})
    if not isinstance(told, dict) or not all(isinstance(text, str) for text in told.values()):
        raise _wrong("warnings", "texts by name", told)
    if (noted := state.get("targets_of_constant")) is not None:
        ids, targets = noted["ids"], noted["targets"]
        if ids.dtype != torch.int64 or ids.dim() != 1 or len(targets) != len(ids):
            raise _wrong("targets_of_constant", "int64 ids [n] and targets [n, ...]", noted)
        seen = noted.get("seen", len(ids))
        if not _is_whole(seen) or seen < 0:
            raise _wrong("targets_of_constant.seen", "a whole number of at least 0", seen)
        so_far = noted.get("so_far")
        if so_far is not None and not (_is_number(so_far) and 0 < so_far < math.inf):
            raise _wrong("targets_of_constant.so_far", "a number above 0 or None", so_far)


def _check_entry(entry: Mapping[str, Any], slope: tuple[float, float]) -> None:
    if missing := [name for name in (*_NUMBERS, *_LOSSES, *_TEXTS) if name not in entry]:
        raise _wrong("history", "epochs with all their values", f"none of {', '.join(missing)}")
    for name, value in entry.items():
        if name in _TEXTS:
            if not isinstance(value, str):
                raise _wrong(f"history.{name}", "text", value)
        elif not _is_number(value) and not (name in _LOSSES and value is None):
            expected = "a number or None" if name in _LOSSES else "a number"
            raise _wrong(f"history.{name}", expected, value)
    least, most = sorted(slope)
    if not least - _ROUNDING <= entry["slope"] <= most + _ROUNDING:
        raise _wrong("history.slope", f"a number in [{least:g}, {most:g}]", entry["slope"])


def _check_controller(controller: Mapping[str, Any]) -> None:
    progress, best = controller["progress"], controller["best"]
    if not _is_number(progress) or not 0 <= progress <= 1:
        raise _wrong("controller.progress", "a number in [0, 1]", progress)
    if best is not None and not _is_number(best):
        raise _wrong("controller.best", "a number or None", best)
    if not isinstance(controller["behind"], bool):
        raise _wrong("controller.behind", "True or False", controller["behind"])


def _check_mask(name: str, mask: Any, num_samples: int, count: int | None) -> None:
    size = (num_samples + 7) // 8
    if not isinstance(mask, Tensor) or mask.dtype != torch.uint8 or tuple(mask.shape) != (size,):
        raise _wrong(name, f"a mask, uint8 [{size}]", mask)
    if num_samples % 8 and int(mask[-1]) >> num_samples % 8:
        raise _wrong(name, f"a mask of {num_samples} samples", "more")
    if count is not None and (found := bitmask.count(mask)) != count:
        raise _wrong(name, f"a mask with {count} samples", found)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _wrong(name: str, expected: str, found: object) -> ValueError:
    return ValueError(f"{name} of the state must be {expected}; found {str(found)[:80]}")
