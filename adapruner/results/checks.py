"""Checks of a result that was read from a file, which anybody may have written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapruner.errors import FileFormatError

_DEEPEST = 20  # levels of lists and dicts within each other
_LARGEST = 2**63

_LONGEST_PATH = 4096  # bytes
_LARGEST_SCORE = 1e30
_MOST_CLASSES = 2**20  # or N
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# NUL, and the surrogates that do not stand for a byte of a file name: no path has them.
_NO_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")

# The optional tensors with a value for each sample.
_OF_SAMPLES = {
    "sample_losses": torch.float32,
    "relative_losses": torch.float32,
    "visits": torch.int16,
    "predicted": torch.int32,
    "draw_keys": torch.float32,
    "targets": torch.int64,
}

# The entries of ``dataset`` that have one type, besides None.
_OF_DATASET: dict[str, type] = {
    "kind": str,
    "root": str,
    "index_folder": str,
    "class_names": list,
    "columns": list,
    "files": list,
    "num_samples": int,
    "stated_fingerprint": str,
    "subset": bool,
}


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise FileFormatError unless the tensors of a result have their types and shapes.

    ``indices`` must also be ascending dataset indices.
    """
    logits, indices = tensors["gate_logits"], tensors["indices"]
    if logits.dtype != torch.float32 or logits.dim() != 1:
        raise _wrong("gate_logits", "float32 [N]", _form(logits))
    count = len(logits)
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise _wrong("indices", "int64 [K]", _form(indices))
    outside = indices[(indices < 0) | (indices >= count)]
    if len(outside):
        raise _wrong("indices", f"dataset indices in [0, {count})", int(outside[0]))
    if (indices[1:] <= indices[:-1]).any():
        raise _wrong("indices", "ascending", "others")
    for name, dtype in _OF_SAMPLES.items():
        found = tensors.get(name)
        if found is not None and (found.dtype != dtype or tuple(found.shape) != (count,)):
            raise _wrong(name, f"{dtype} [{count}]".removeprefix("torch."), _form(found))
    for name in ("gate_logits", "draw_keys"):
        if (scores := tensors.get(name)) is not None:
            bad = scores[~((scores.abs() < _LARGEST_SCORE) | (scores == -torch.inf))]
            if len(bad):
                raise _wrong(name, f"numbers up to {_LARGEST_SCORE:g}, or -inf", float(bad[0]))
    labels = tensors.get("quota_labels")
    if labels is not None:
        if labels.dtype not in _INTEGERS or tuple(labels.shape) != (count,):
            raise _wrong("quota_labels", f"integers [{count}]", _form(labels))
        most = max(count, _MOST_CLASSES)
        outside = labels[(labels < 0) | (labels.long() >= most)]
        if len(outside):
            raise _wrong("quota_labels", f"classes in [0, {most})", int(outside[0]))
    held_out = tensors.get("held_out")
    if held_out is not None:
        if held_out.dtype != torch.int64 or held_out.dim() != 1:
            raise _wrong("held_out", "int64 [V]", _form(held_out))
        if ((held_out < 0) | (held_out >= count)).any():
            raise _wrong("held_out", f"dataset indices in [0, {count})", "others")
    paths = tensors.get("paths")
    if paths is not None and (paths.dtype != torch.uint8 or paths.dim() != 1):
        raise _wrong("paths", "uint8 [bytes]", _form(paths))


def check_content(content: Mapping[str, Any], num_samples: int) -> None:
    """Raise FileFormatError unless the values of a result have their types.

    Args:
        content: the values by name.
        num_samples: N.
    """
    _check_plain("the content", content, _DEEPEST)
    _check_ratio("keep_ratio", content["keep_ratio"])
    for name, kind in (("fingerprint", str), ("forced", bool)):
        if not isinstance(content[name], kind):
            raise _wrong(name, f"of type {kind.__name__}", content[name])
    for name in ("config", "dataset", "saved", "versions"):
        if not isinstance(content[name], dict):
            raise _wrong(name, "a dict", content[name])
    if (ratio := content["config"].get("run_keep_ratio")) is not None:
        _check_ratio("config.run_keep_ratio", ratio)
    epoch = content["selected_epoch"]
    if epoch is not None and not _is_whole(epoch):
        raise _wrong("selected_epoch", "a whole number or None", epoch)
    for name, value in content["saved"].items():
        if not _is_number(value) or not math.isfinite(value):
            raise _wrong(f"saved.{name}", "a finite number", value)
    if not isinstance(content.get("partial", False), bool):
        raise _wrong("partial", "of type bool", content["partial"])
    warnings = content.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(text, str) for text in warnings):
        raise _wrong("warnings", "a list of strings", warnings)
    path_bytes, most = content.get("path_bytes", 0), (_LONGEST_PATH + 1) * num_samples
    if not _is_whole(path_bytes) or not 0 <= path_bytes <= most:
        raise _wrong("path_bytes", f"a whole number up to {most}", path_bytes)
    _check_dataset(content["dataset"])
    _check_history(content["history"])
    _check_samples(content, num_samples)


def _check_ratio(name: str, ratio: Any) -> None:
    if not _is_number(ratio) or not 0 < ratio <= 1:
        raise _wrong(name, "a number in (0, 1]", ratio)


def _check_dataset(dataset: Mapping[str, Any]) -> None:
    for name, kind in _OF_DATASET.items():
        value = dataset.get(name)
        if value is not None and type(value) is not kind:
            raise _wrong(f"dataset.{name}", f"of type {kind.__name__}, or None", value)
        if isinstance(value, str) and _NO_PATH.search(value):
            raise _wrong(f"dataset.{name}", "text of Unicode without NUL", ascii(value))
    for name in ("class_names", "files"):
        if (texts := dataset.get(name)) is not None and not _are_texts(texts):
            raise _wrong(f"dataset.{name}", "a list of strings", texts)
    columns = dataset.get("columns")
    if columns is not None:
        inputs, target = columns if len(columns) == 2 else (None, None)
        several = isinstance(inputs, list) and bool(inputs) and _are_texts(inputs)
        if not (isinstance(inputs, str) or several) or not isinstance(target, str):
            raise _wrong("dataset.columns", "the input columns and the target column", columns)
    place = dataset.get("target")
    if place is not None and not (isinstance(place, str) or _is_whole(place)):
        raise _wrong("dataset.target", "a name, a place or None", place)


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _check_history(history: Any) -> None:
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise _wrong("history", "a list of dicts", history)
    for place, entry in enumerate(history):
        for name, value in entry.items():
            text = name in ("phase", "decision")
            if value is not None and not (isinstance(value, str) if text else _is_number(value)):
                expected = "text" if text else "a number or None"
                raise _wrong(f"history[{place}].{name}", expected, value)
        if (epoch := entry.get("epoch")) is not None and not _is_whole(epoch):
            raise _wrong(f"history[{place}].epoch", "a whole number or None", epoch)


def _check_samples(content: Mapping[str, Any], num_samples: int) -> None:
    def is_index(value: Any) -> bool:
        return _is_whole(value) and 0 <= value < num_samples

    for name in ("unreadable", "not_finite"):
        if not isinstance(content[name], list):
            raise _wrong(name, "a list", content[name])
    for item in content["unreadable"]:
        pair = isinstance(item, list) and len(item) == 2
        if not pair or not is_index(item[0]) or not isinstance(item[1], str):
            raise _wrong("unreadable", "pairs of a dataset index and a reason", item)
    for item in content["not_finite"]:
        if not is_index(item):
            raise _wrong("not_finite", f"dataset indices in [0, {num_samples})", item)


def _check_plain(name: str, value: Any, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if not depth:
            raise _wrong(name, f"at most {_DEEPEST} levels deep", "more")
        for part in value.values() if isinstance(value, dict) else value:
            _check_plain(name, part, depth - 1)
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise _wrong(name, "made of numbers that int64 holds", "a larger one")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _wrong(name: str, expected: str, found: object) -> FileFormatError:
    return FileFormatError(f"{name} must be {expected}; found {str(found)[:80]!r}")
