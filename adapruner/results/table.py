"""The table of all samples of a result, with the reason why each was kept or pruned."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapruner._util.extras import require
from adapruner._util.files import replace_atomically
from adapruner.data.sources.base import IntArray, Source
from adapruner.data.sources.shards import ShardSource
from adapruner.pruning.record import NO_CLASS
from adapruner.results.reasons import REASONS, reason_codes

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

_ROWS_AT_A_TIME = 2**16
# Surrogates that do not stand for a byte of a file name. No encoding has them.
_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True)
class Names:
    """Text of every sample from a short list: ``codes`` are places in ``names``, −1 for none."""

    codes: NDArray[Any]
    names: list[str]

    def texts(self, rows: slice | NDArray[np.int64]) -> list[str | None]:
        """The text of each of the ``rows``."""
        return [self.names[code] if code >= 0 else None for code in self.codes[rows].tolist()]


# A masked value is one that is not known.
Column: TypeAlias = "NDArray[Any] | np.ma.MaskedArray[Any, Any] | Names | list[str]"
Table: TypeAlias = "dict[str, Column]"


def sample_table(result: PruneResult, source: Source | None = None) -> Table:
    """The columns of the table; :meth:`adapruner.PruneResult.to_dataframe` documents them.

    A column is left out if the result knows none of its values.

    Args:
        result: the result of a run.
        source: the dataset, if it may know targets or paths that the result lacks.

    Raises:
        OSError: a shard has changed, or cannot be read.
    """
    every = np.arange(result.num_samples, dtype=np.int64)
    table: Table = {"index": every}
    if (paths := paths_of(result, source, every)) is not None:
        table["path"] = paths
    names = result.dataset.get("class_names")
    labels = _labels(result, source)
    if labels is not None:
        table["label"] = labels
        if names:
            table["class"] = _class_names(labels, names)
    table["kept"] = result.kept.numpy()
    table["reason"] = Names(reason_codes(result), list(REASONS))
    table["score"] = result.gate_logits.cpu().numpy()
    for name, losses in (
        ("last_loss", result.sample_losses),
        ("relative_loss", result.relative_losses),
    ):
        if losses is not None:
            table[name] = np.ma.masked_invalid(losses.cpu().numpy())
    if result.visits is not None:
        table["epochs_seen"] = result.visits.cpu().numpy()
    predicted = _integers(result.predicted)
    if predicted is not None and (predicted != NO_CLASS).any():
        table["predicted"] = np.ma.masked_equal(predicted, NO_CLASS)
        if names:
            table["predicted_class"] = _class_names(predicted, names)
    return table


def to_dataframe(result: PruneResult, source: Source | None = None) -> Any:
    """The table as a pandas or a polars DataFrame, by what is installed."""
    table = sample_table(result, source)
    try:
        pandas = require("pandas", extra="table")
    except ImportError:
        if importlib.util.find_spec("polars") is None:
            raise
        return _polars(table)
    columns = {}
    for name, column in table.items():
        if isinstance(column, Names):
            names = pandas.Index(column.names, dtype=None if _are_utf8(column.names) else object)
            columns[name] = pandas.Categorical.from_codes(column.codes, names)
        elif isinstance(column, np.ma.MaskedArray) and column.dtype.kind == "i":
            missing = np.ma.getmaskarray(column)
            columns[name] = pandas.arrays.IntegerArray(column.filled(0), missing)
        elif isinstance(column, np.ma.MaskedArray):
            columns[name] = column.filled(np.nan)
        elif isinstance(column, list) and not _are_utf8(column):
            columns[name] = pandas.Series(column, dtype=object)
        else:
            columns[name] = column
    return pandas.DataFrame(columns)


def _polars(table: Table) -> Any:
    polars = require("polars", extra="table")
    columns = {}
    for name, column in table.items():
        if isinstance(column, Names):
            texts = polars.Series(_escaped(column.names), dtype=polars.String)
            codes = polars.Series(np.ma.masked_equal(column.codes, -1).tolist(), dtype=polars.Int64)
            columns[name] = texts.gather(codes).cast(polars.Categorical)
        elif isinstance(column, np.ma.MaskedArray):
            series = polars.Series(column.data)
            missing = polars.Series(np.ma.getmaskarray(column))
            columns[name] = series.set(missing, None)
        elif isinstance(column, list):
            columns[name] = polars.Series(_escaped(column))
        else:
            columns[name] = polars.Series(column)
    return polars.DataFrame(columns)


def _are_utf8(texts: list[str]) -> bool:
    """Whether Unicode has all characters. File names may hold bytes that are not UTF-8."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(texts: list[str]) -> list[str]:
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]


def write_csv(result: PruneResult, path: Path, source: Source | None) -> None:
    """Write the table as UTF-8 text with a header. A value that is not known is empty."""
    table = sample_table(result, source)

    def write(temporary: Path) -> None:
        # File names may hold bytes that are not UTF-8. They are written as they are.
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(rows_of(table))

    replace_atomically(path, write)


def rows_of(table: Table, order: NDArray[np.int64] | None = None) -> Iterator[tuple[Any, ...]]:
    """The rows of a table as Python values, None where a value is not known.

    Args:
        table: a table.
        order: the rows to give, in their order; all rows where None.
    """
    count = len(table["index"]) if order is None else len(order)  # type: ignore[arg-type]
    for start in range(0, count, _ROWS_AT_A_TIME):
        piece = slice(start, min(start + _ROWS_AT_A_TIME, count))
        rows = piece if order is None else order[piece]
        yield from zip(*(_values(column, rows) for column in table.values()), strict=True)


def _values(column: Column, rows: slice | NDArray[np.int64]) -> list[Any]:
    if isinstance(column, Names):
        return column.texts(rows)
    if isinstance(column, list):
        return column[rows] if isinstance(rows, slice) else [column[row] for row in rows.tolist()]
    if column.dtype.kind == "f":  # the shortest text that gives the same float32
        part = column[rows]
        texts = np.ma.getdata(part).astype(str).tolist()
        missing = np.ma.getmaskarray(part).tolist()
        return [None if gone else text for text, gone in zip(texts, missing, strict=True)]
    values: list[Any] = column[rows].tolist()
    return values


def write_parquet(result: PruneResult, path: Path, source: Source | None) -> None:
    """Write the table as Parquet. The schema's metadata name the ratio and the fingerprint."""
    arrow = require("pyarrow", extra="parquet")
    parquet = require("pyarrow.parquet", extra="parquet")
    columns = {}
    for name, column in sample_table(result, source).items():
        if isinstance(column, Names):
            codes = arrow.array(column.codes, mask=column.codes < 0, type=arrow.int32())
            columns[name] = arrow.DictionaryArray.from_arrays(codes, _as_utf8(column.names))
        elif isinstance(column, list):
            columns[name] = arrow.array(_as_utf8(column))
        else:
            missing = np.ma.getmaskarray(column) if np.ma.isMaskedArray(column) else None
            columns[name] = arrow.array(np.ma.getdata(column), mask=missing)
    metadata = {"keep_ratio": repr(result.keep_ratio), "fingerprint": result.fingerprint}
    table = arrow.table(columns).replace_schema_metadata(metadata)
    replace_atomically(path, lambda temporary: parquet.write_table(table, temporary))


def _as_utf8(paths: list[str]) -> list[str]:
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"file names in Parquet must be UTF-8; found {path!r}") from error
    return paths


def paths_of(result: PruneResult, source: Source | None, indices: IntArray) -> list[str] | None:
    """The path of each sample at ``indices``, SHARD.tar/MEMBER for shards; None if not known.

    Raises:
        OSError: a shard has changed, or cannot be read.
    """
    if result.paths is None and isinstance(source, ShardSource):
        ascending, places = np.unique(indices, return_inverse=True)
        names = source.member_names(ascending)
        return [names[place] for place in places.tolist()]
    paths = result.paths
    if paths is None and source is not None:
        paths = source.paths
    return None if paths is None else [paths[index] for index in indices.tolist()]


def _labels(result: PruneResult, source: Source | None) -> IntArray | None:
    if result.targets is not None:
        return _integers(result.targets)
    return None if source is None else source.targets


def _integers(tensor: Tensor | None) -> IntArray | None:
    if tensor is None:
        return None
    values: IntArray = tensor.cpu().numpy().astype(np.int64)
    return values


def _class_names(labels: IntArray, names: list[str]) -> Names:
    names = [_NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", name) for name in names]
    unique = list(dict.fromkeys(names))  # classes may share a name
    place = {name: code for code, name in enumerate(unique)}
    codes = np.array([place[name] for name in names], dtype=np.int64)
    inside = (labels >= 0) & (labels < len(names))
    return Names(np.where(inside, codes[np.where(inside, labels, 0)], -1), unique)
