"""Datasets of the Hugging Face library `datasets`, recognised without importing it."""

from __future__ import annotations

from typing import Any

import numpy as np

from adapruner._util.extras import require
from adapruner.data.sources.base import (
    IntArray,
    Source,
    Transform,
    integer_targets,
    new_digest,
    viewable,
)
from adapruner.data.sources.map_style import checked_length
from adapruner.vision.decoding import convert_image, is_pil_image

INPUT_COLUMNS = ("image", "img", "images", "pixel_values", "input", "inputs", "x")
TARGET_COLUMNS = ("label", "labels", "target", "targets", "fine_label", "y")

_ROWS_PER_READ = 1024


class HuggingFaceSource(Source):
    """Two columns of a ``datasets.Dataset``.

    Images are converted to ``mode``. Other values stay as the dataset's format returns them.

    Args:
        dataset: one split. Its format is respected.
        transform: applied to each input.
        fingerprint: a string that identifies the samples. The default is a hash of their bytes.
        columns: names of the input and the target column. None means a guess.
        mode: the PIL mode that images are converted to. None leaves them as they are.

    Raises:
        ValueError: there are no rows, or the columns are missing or cannot be guessed.
    """

    kind = "hugging face"

    def __init__(
        self,
        dataset: Any,
        transform: Transform | None = None,
        fingerprint: str | None = None,
        columns: tuple[str, str] | None = None,
        mode: str | None = "RGB",
    ) -> None:
        super().__init__(transform, fingerprint)
        self._length = checked_length(dataset)
        self.dataset, self.mode = dataset, mode
        names = list(dataset.column_names)
        self.columns = _guess(names) if columns is None else _check_columns(columns, names)
        self._unformatted = dataset.with_format(None).select_columns([self.columns[0]])
        self.targets = _integer_column(dataset, self.columns[1], self._length)
        self.class_names = _names_of(dataset.features[self.columns[1]])
        self.deterministic = transform is None and dataset.format["type"] != "custom"

    def __len__(self) -> int:
        return self._length

    def _read(self, index: int) -> tuple[Any, Any]:
        return self._pair(self.dataset[index], index)

    def read_batch(self, indices: list[int]) -> list[tuple[Any, Any]] | None:
        """Rows read together, which is faster in this library."""
        rows = self.dataset.__getitems__(indices)
        return [self._pair(row, index) for row, index in zip(rows, indices, strict=True)]

    def _pair(self, row: Any, index: int) -> tuple[Any, Any]:
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise TypeError(
                f"sample {index} lacks {', '.join(missing)}; found {', '.join(map(str, row))} "
                "after the dataset's format and transform"
            )
        inputs, target = (row[name] for name in self.columns)
        return (convert_image(inputs, self.mode) if is_pil_image(inputs) else inputs), target

    def image(self, index: int) -> Any | None:
        """Sample ``index`` as a picture, before the dataset's own format and transform."""
        value = self._unformatted[self._checked(index)][self.columns[0]]
        return viewable(np.asarray(value) if isinstance(value, list) else value)

    def _identify(self) -> str:
        """Hash the rows of the two columns.

        The library's own ``_fingerprint`` does not fit. It hashes how a dataset was made and the
        times of its cache files, so it changes between machines and after every ``map``.
        """
        return _hash_rows(self.dataset, list(self.columns), f"{self._length}\n{self.class_names}\n")


class HuggingFaceRows(Source):
    """Whole rows of a ``datasets.Dataset``, as mappings, whose columns need no roles.

    ``targets`` are a column of integers with one of the usual names of targets. The fingerprint is
    a hash of all columns.

    Args:
        dataset: one split.
        transform: applied to each row.
        fingerprint: a string that identifies the samples.
    """

    kind = "hugging face"

    def __init__(
        self, dataset: Any, transform: Transform | None = None, fingerprint: str | None = None
    ) -> None:
        super().__init__(transform, fingerprint)
        self._length = checked_length(dataset)
        self.dataset = dataset
        named = [name for name in TARGET_COLUMNS if name in dataset.column_names]
        if len(named) == 1:
            self.targets = _integer_column(dataset, named[0], self._length)
            self.class_names = _names_of(dataset.features[named[0]])
        self._target = named[0] if self.targets is not None else None

    def __len__(self) -> int:
        return self._length

    def _read(self, index: int) -> tuple[Any, Any]:
        row = self.dataset[index]
        return row, None if self._target is None else row[self._target]

    def _identify(self) -> str:
        return _hash_rows(self.dataset, list(self.dataset.column_names), f"rows {self._length}\n")


def _hash_rows(dataset: Any, columns: list[str], first: str) -> str:
    """A hash of the values of some columns, and of ``first``."""
    arrow = require("pyarrow", extra="parquet")
    rows = dataset.with_format(None).select_columns(columns).with_format("arrow")
    digest = new_digest(HuggingFaceSource.kind)
    digest.update(first.encode())
    for start in range(0, len(rows), _ROWS_PER_READ):
        table = rows[start : min(start + _ROWS_PER_READ, len(rows))]
        for name in columns:
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


def _check_columns(columns: Any, names: list[str]) -> tuple[str, str]:
    if not isinstance(columns, (tuple, list)) or len(columns) != 2:
        raise ValueError(f"columns must be a pair (input, target); found {columns!r}")
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(f"no column {', '.join(map(repr, missing))}; found {', '.join(names)}")
    return columns[0], columns[1]


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
