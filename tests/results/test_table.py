"""The table of all samples: as a DataFrame, as CSV and as Parquet, each read by another library."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import PATHS, make_image_folder

from adapruner import PruneResult, as_source
from adapruner._util.files import pack_texts, unpack_texts
from adapruner.errors import FileFormatError
from adapruner.results import table as tables

N = 8


def make_result(**changes: Any) -> PruneResult:
    values: dict[str, Any] = {
        "indices": torch.tensor([1, 4, 6]),
        "gate_logits": torch.tensor([0.1, 0.9, 0.2, 0.3, 0.8, 0.4, 0.7, -torch.inf]),
        "keep_ratio": 0.4,
        "fingerprint": "",
        "dataset": {"class_names": ["cat", "dög, big", "cat"]},
        "sample_losses": torch.tensor([0.5, 1.0, 4.0, 0.1, 1.0, 3.0, 1.0, torch.nan]),
        "relative_losses": torch.tensor([0.5, 1.0, 4.0, 0.1, 1.0, 3.0, 1.0, torch.nan]),
        "visits": torch.tensor([3, 5, 2, 2, 5, 2, 5, 0], dtype=torch.int16),
        "predicted": torch.tensor([0, 1, 0, 2, 1, -1, 1, -1], dtype=torch.int32),
        "targets": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]),
        "paths": [f"a/{i}.png" for i in range(N)],
        "unreadable": [(7, "gone")],
    }
    return PruneResult(**values | changes)


EXPECTED: dict[str, list[Any]] = {
    "index": list(range(N)),
    "path": [f"a/{i}.png" for i in range(N)],
    "label": [0, 1, 2, 0, 1, 2, 0, 1],
    "class": ["cat", "dög, big", "cat", "cat", "dög, big", "cat", "cat", "dög, big"],
    "kept": [i in (1, 4, 6) for i in range(N)],
    "reason": [
        *("easy", "kept", "does not fit", "easy", "kept", "does not fit", "kept", "unreadable"),
    ],
    "score": [float(np.float32(s)) for s in (0.1, 0.9, 0.2, 0.3, 0.8, 0.4, 0.7, -np.inf)],
    "last_loss": [0.5, 1.0, 4.0, float(np.float32(0.1)), 1.0, 3.0, 1.0, None],
    "relative_loss": [0.5, 1.0, 4.0, float(np.float32(0.1)), 1.0, 3.0, 1.0, None],
    "epochs_seen": [3, 5, 2, 2, 5, 2, 5, 0],
    "predicted": [0, 1, 0, 2, 1, None, 1, None],
    "predicted_class": ["cat", "dög, big", "cat", "cat", "dög, big", None, "dög, big", None],
}


def plain(values: list[Any]) -> list[Any]:
    """Values with None for every kind of missing value."""
    return [None if value is None or value != value else value for value in values]


def test_pandas_has_every_column() -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = make_result().to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        found = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        assert plain(found) == expected, name
    assert frame["predicted"].dtype == "Int64"
    assert frame["reason"].dtype == "category"
    assert frame["kept"].dtype == bool


def test_polars_has_every_column() -> None:
    polars = pytest.importorskip("polars", reason="needs polars")
    frame = tables._polars(tables.sample_table(make_result()))
    assert isinstance(frame, polars.DataFrame)
    assert {name: plain(frame[name].to_list()) for name in frame.columns} == EXPECTED


def test_parquet_has_every_column(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    make_result().export(tmp_path / "all.parquet", to="parquet")
    found = parquet.read_table(tmp_path / "all.parquet")
    assert {name: found[name].to_pylist() for name in found.column_names} == EXPECTED


def test_csv_has_every_column(tmp_path: Path) -> None:
    make_result().export(tmp_path / "all.csv", to="csv")
    with open(tmp_path / "all.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == list(EXPECTED)
    assert len(rows) == N
    for column, name in enumerate(header):
        for row, value in zip(rows, EXPECTED[name], strict=True):
            text = row[column]
            if value is None:
                assert text == ""
            elif isinstance(value, float):
                assert np.float32(text) == np.float32(value)
            else:
                assert text == str(value)


def test_csv_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_result().export(tmp_path / "whole.csv", to="csv")
    monkeypatch.setattr(tables, "_ROWS_AT_A_TIME", 3)
    make_result().export(tmp_path / "pieces.csv", to="csv")
    assert (tmp_path / "pieces.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("n", [0, 1])
def test_tiny_results_have_a_header(tmp_path: Path, n: int) -> None:
    result = PruneResult(torch.arange(n), torch.ones(n), 1.0, "")
    result.export(tmp_path / "all.csv", to="csv")
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert lines == ["index,kept,reason,score", "0,True,kept,1.0"][: n + 1]


def test_names_that_are_not_utf8_stay_as_they_are(tmp_path: Path) -> None:
    paths = [os.fsdecode(b"a/\xff.png")] * N
    make_result(paths=paths).export(tmp_path / "all.csv", to="csv")
    assert (tmp_path / "all.csv").read_bytes().count(b"a/\xff.png") == N
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    with pytest.raises(ValueError, match="file names in Parquet must be UTF-8"):
        make_result(paths=paths).export(tmp_path / "all.parquet", to="parquet")
    assert os.listdir(tmp_path) == ["all.csv"]


def test_class_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    result = make_result(targets=torch.arange(N) % 2)
    about = {**result.dataset, "class_names": ["a\0", "\ud800b"]}
    result = dataclasses.replace(result, predicted=None, dataset=about)
    assert result.to_dataframe()["class"].tolist()[:2] == ["a\0", "\N{REPLACEMENT CHARACTER}b"]
    result.export(tmp_path / "all.csv", to="csv")
    assert (tmp_path / "all.csv").read_text("utf-8").count("\N{REPLACEMENT CHARACTER}b") == N // 2
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    result.export(tmp_path / "all.parquet", to="parquet")


def test_paths_are_saved_with_the_result(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "images")
    source = as_source(folder)
    result = make_result(
        paths=source.paths, fingerprint=source.fingerprint(), dataset=source.about()
    )
    result.save(tmp_path / "kept")
    folder.rename(tmp_path / "moved")
    again = PruneResult.load(tmp_path / "kept")
    assert again.paths == PATHS
    again.export(tmp_path / "all.csv", to="csv")
    assert PATHS[3] in (tmp_path / "all.csv").read_text()


@pytest.mark.parametrize(
    "paths", [[""], ["a\nb", "ä/\udcff", "c"], [f"{i:07}" for i in range(9999)]]
)
def test_any_file_names_come_back(tmp_path: Path, paths: list[str]) -> None:
    result = PruneResult(torch.arange(1), torch.ones(len(paths)), 1.0, "", paths=paths)
    result.save(tmp_path / "kept")
    assert PruneResult.load(tmp_path / "kept").paths == paths


def test_names_that_unpack_to_another_size_are_refused() -> None:
    packed, size = pack_texts(["a" * 10**6])
    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(FileFormatError, match=f"file names must have {wrong} bytes"):
            unpack_texts(packed, wrong)


def test_without_a_dataframe_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    if importlib.util.find_spec("polars"):
        assert type(make_result().to_dataframe()).__module__.startswith("polars")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r"adapruner\[table\]"):
        make_result().to_dataframe()
