"""Datasets of the Hugging Face library `datasets`, recognised without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adapruner._util.extras import require
from adapruner._util.seeds import generators_restored
from adapruner.data.sources.base import (
    IntArray,
    Source,
    Transform,
    integer_targets,
    new_digest,
    viewable,
)
from adapruner.data.sources.items import Target, differs, encode_labels, probed
from adapruner.data.sources.map_style import checked_length
from adapruner.vision.decoding import convert_image, is_pil_image

INPUT_COLUMNS = ("image", "img", "images", "pixel_values", "input", "inputs", "x")
TARGET_COLUMNS = ("label", "labels", "target", "targets", "fine_label", "y")

_ROWS_PER_READ = 1024
_MOST_NAMES = 100_000  # of classes whose labels are text


class HuggingFaceSource(Source):
    """The input columns and the target column of a ``datasets.Dataset``.

    One input column is the input itself, and several make a dict. Images are converted to ``mode``.
    Labels that are text are numbered in the order of the sorted names. Other values stay as the
    dataset's format returns them.

    Args:
        dataset: one split. Its format is respected.
        transform: applied to each input.
        fingerprint: a string that identifies the samples. The default is a hash of their bytes.
        columns: names of the input and the target column; several inputs as a list. None means a
            guess. A dataset with a transform of its own (``with_transform``) has the columns that
            the transform returns. Its stored classes count only where a few rows agree with them.
        mode: the PIL mode that images are converted to. None leaves them as they are.
        target: name of the target column, if all others are inputs.

    Raises:
        ValueError: there are no rows, or the columns are missing or cannot be guessed.
    """

    kind = "hugging face"

    def __init__(
        self,
        dataset: Any,
        transform: Transform | None = None,
        fingerprint: str | None = None,
        columns: tuple[str | Sequence[str], str] | None = None,
        mode: str | None = "RGB",
        target: Target | None = None,
    ) -> None:
        super().__init__(transform, fingerprint)
        self._length = checked_length(dataset)
        self.dataset, self.mode = dataset, mode
        transformed = dataset.format["type"] == "custom"
        self._stored = list(dataset.column_names)
        names = self._stored
        if transformed and columns is None:
            with generators_restored():
                names = list(dataset[0])
        if target is not None:
            columns = ([name for name in names if name != target], str(target))
        if columns is None:
            self.columns: tuple[str | list[str], str] = _guess(names)
        else:  # only a row tells the columns of a transform
            self.columns = _check_columns(columns, None if transformed else names)
        inputs, self._target = self.columns
        self._inputs = [inputs] if isinstance(inputs, str) else inputs
        self._codes: dict[str, int] = {}
        if self._target in self._stored:
            self.targets = _integer_column(dataset, self._target, self._length)
            self.class_names = _names_of(dataset.features[self._target])
            if (found := _text_column(dataset, self._target, self._length)) is not None:
                self.targets, self.class_names = found
                self._codes = {name: code for code, name in enumerate(self.class_names)}
            if transformed and self._differs():
                self.targets, self.class_names, self._codes = None, None, {}
        self.deterministic = transform is None and not transformed

    def __len__(self) -> int:
        return self._length

    def _differs(self) -> bool:
        """Whether rows have other targets after the dataset's transform than it stores."""
        for index in probed(self._length) if self.targets is not None else ():
            try:
                with generators_restored():
                    target = self.dataset[index].get(self._target)
            except Exception:  # a row that cannot be read
                continue
            assert self.targets is not None
            number = self._codes.get(target, -1) if isinstance(target, str) else target
            if differs(number, int(self.targets[index])):
                return True
        return False

    def _read(self, index: int) -> tuple[Any, Any]:
        return self._pair(self.dataset[index], index)

    def read_batch(self, indices: list[int]) -> list[tuple[Any, Any]] | None:
        """Rows read together, which is faster in this library."""
        rows = self.dataset.__getitems__(indices)
        return [self._pair(row, index) for row, index in zip(rows, indices, strict=True)]

    def _pair(self, row: Any, index: int) -> tuple[Any, Any]:
        missing = [name for name in (*self._inputs, self._target) if name not in row]
        if missing:
            raise TypeError(
                f"sample {index} lacks {', '.join(missing)}; found {', '.join(map(str, row))} "
                "after the dataset's format and transform"
            )
        values = {name: self._converted(row[name]) for name in self._inputs}
        target = row[self._target]
        if isinstance(target, str):
            target = self._codes.get(target, target)
        return (values if isinstance(self.columns[0], list) else values[self._inputs[0]]), target

    def _converted(self, value: Any) -> Any:
        return convert_image(value, self.mode) if is_pil_image(value) else value

    def image(self, index: int) -> Any | None:
        """Sample ``index`` as a picture, before the dataset's own format and transform."""
        name = self._inputs[0]
        if name not in self._stored:
            return None
        plain = self.dataset.with_format(None).select_columns([name])
        value = plain[self._checked(index)][name]
        return viewable(np.asarray(value) if isinstance(value, list) else value)

    def about(self) -> dict[str, Any]:
        """The description of any source, with the columns."""
        return super().about() | {"columns": list(self.columns)}

    def _identify(self) -> str:
        """Hash the rows of the columns. A transform may read any of them, so all are hashed then.

        The library's own ``_fingerprint`` does not fit. It hashes how a dataset was made and the
        times of its cache files, so it changes between machines and after every ``map``.
        """
        arrow = require("pyarrow", extra="parquet")
        names = list(dict.fromkeys([*self._inputs, self._target]))
        names = names if set(names) <= set(self._stored) else self._stored
        rows = self.dataset.with_format(None).select_columns(names)
        rows = rows.with_format("arrow")
        digest = new_digest(self.kind)
        digest.update(f"{self._length}\n{self.class_names}\n".encode())
        for start in range(0, self._length, _ROWS_PER_READ):
            table = rows[start : min(start + _ROWS_PER_READ, self._length)]
            for name in names:
                column = table.column(name)
                # A fresh copy has neither the chunks nor the offsets of the file.
                fresh = column.take(arrow.array(range(len(column)))).combine_chunks()
                batch = arrow.record_batch([fresh], names=["column"])
                digest.update(f"{column.type}\n".encode())
                digest.update(arrow.ipc.read_message(batch.serialize()).body)
        return digest.hexdigest()


def is_hugging_face(data: Any) -> bool:
    """Whether ``data`` is a ``datasets.Dataset`` (one split) or of a derived class."""
    return any(
        base.__name__ == "Dataset" and base.__module__.split(".")[0] == "datasets"
        for base in type(data).__mro__
    )


def has_known_columns(dataset: Any) -> bool:
    """Whether the names of the columns tell which are the input and the target."""
    names = dataset.column_names
    both = (INPUT_COLUMNS, TARGET_COLUMNS)
    return all(sum(name in names for name in known) == 1 for known in both)


def _guess(names: list[str]) -> tuple[str, str]:
    found = []
    for role, known in (("input", INPUT_COLUMNS), ("target", TARGET_COLUMNS)):
        matches = [name for name in known if name in names]
        if len(matches) != 1:
            count = f"several ({', '.join(matches)})" if matches else "none"
            raise ValueError(
                f"cannot guess the {role} column: expected one of {', '.join(known)}; "
                f"found {count} among {', '.join(names)}; pass columns=(input, target)"
            )
        found.append(matches[0])
    return found[0], found[1]


def _check_columns(columns: Any, names: list[str] | None) -> tuple[str | list[str], str]:
    """``columns``, checked against the ``names`` of the dataset where these are known."""
    if not isinstance(columns, (tuple, list)) or len(columns) != 2:
        raise ValueError(f"columns must be a pair (input, target); found {columns!r}")
    inputs = columns[0] if isinstance(columns[0], str) else list(columns[0])
    if not inputs:
        raise ValueError(f"columns must name at least one input; found {columns!r}")
    wanted = [*([inputs] if isinstance(inputs, str) else inputs), columns[1]]
    missing = [name for name in wanted if names is not None and name not in names]
    if missing and names is not None:
        raise ValueError(f"no column {', '.join(map(repr, missing))}; found {', '.join(names)}")
    return inputs, columns[1]


def _text_column(dataset: Any, name: str, length: int) -> tuple[IntArray, list[str]] | None:
    kind = str(dataset.features.arrow_schema.field(name).type)
    if kind not in ("string", "large_string", "string_view"):  # not a list or a struct of texts
        return None
    rows = dataset.with_format(None).select_columns([name]).with_format("arrow")
    column = rows[:].column(0)
    if len(column.unique()) > _MOST_NAMES:
        return None  # texts, not labels
    return encode_labels(column.to_pylist(), length)


def _integer_column(dataset: Any, name: str, length: int) -> IntArray | None:
    # The type is checked first, because a column of masks or texts can be large.
    kind = str(dataset.features.arrow_schema.field(name).type)
    if not kind.startswith(("int", "uint")):
        return None
    rows = dataset.with_format(None).select_columns([name]).with_format("arrow")
    return integer_targets(rows[:].column(0).to_numpy(), length)


def _names_of(feature: Any) -> list[str] | None:
    names = getattr(feature, "names", None)
    return list(names) if isinstance(names, (list, tuple)) else None
