"""Exports: other tools read them, and the content of the disk when an export fails."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import PATHS, make_image_folder
from support.small_disk import small_disk

from adapruner.data import as_source
from adapruner.errors import DatasetMismatchError
from adapruner.results.export import export
from adapruner.results.result import PruneResult

FORMATS = ["paths", "npy", "csv", "parquet", "links"]
KEPT = [1, 4, 6]
LOGITS = [0.1 * number - 0.25 for number in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


def make_result(data: Any, kept: list[int] = KEPT, **changes: Any) -> PruneResult:
    source = as_source(data)
    values: dict[str, Any] = {
        "indices": torch.tensor(kept, dtype=torch.int64),
        "gate_logits": torch.tensor(LOGITS[: len(source)]),
        "keep_ratio": 0.4,
        "fingerprint": source.fingerprint(),
        "dataset": {"kind": source.kind, "samples": len(source)},
    }
    if source.root is not None:
        values["dataset"]["root"] = source.root
    return PruneResult(**values | changes)


def arrays() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(8.0), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])


def test_paths_are_relative_lines(folder: Path, tmp_path: Path) -> None:
    export(make_result(folder), tmp_path / "kept.txt", to="paths")
    assert (tmp_path / "kept.txt").read_text() == "".join(PATHS[index] + "\n" for index in KEPT)
    export(make_result(folder, kept=[]), tmp_path / "kept.txt", to="paths")
    assert (tmp_path / "kept.txt").read_bytes() == b""


def test_npy_needs_no_dataset(tmp_path: Path) -> None:
    result = make_result(arrays(), dataset={"root": "/gone"})
    export(result, str(tmp_path / "kept"), to="npy")
    assert os.listdir(tmp_path) == ["kept"]  # no ".npy" appended
    kept = np.load(tmp_path / "kept", allow_pickle=False)
    assert kept.dtype == np.int64
    assert kept.tolist() == KEPT


def test_parquet_has_a_row_for_each_sample(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(make_result(folder), tmp_path / "all.parquet", to="parquet")
    table = parquet.read_table(tmp_path / "all.parquet")
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "index": "int64",
        "path": "string",
        "label": "int64",
        "kept": "bool",
        "reason": "dictionary<values=string, indices=int32, ordered=0>",
        "score": "float",
    }
    assert table["index"].to_pylist() == list(range(8))
    assert [i for i, kept in enumerate(table["kept"].to_pylist()) if kept] == KEPT
    assert table["score"].to_pylist() == [float(np.float32(score)) for score in LOGITS]
    assert table["label"].to_pylist() == as_source(folder).targets.tolist()
    assert table["path"].to_pylist() == PATHS
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert float(metadata["keep_ratio"]) == 0.4
    assert metadata["fingerprint"] == as_source(folder).fingerprint()


def test_parquet_has_the_columns_that_are_known(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    bare = make_result(arrays())
    labels = arrays()[1].tolist()
    cases: list[tuple[PruneResult, Any, list[int] | None]] = [
        (bare, None, None),
        (bare, arrays(), labels),
        (make_result(arrays(), targets=torch.arange(8)), arrays(), list(range(8))),
        (make_result(arrays(), source=as_source(arrays())), None, labels),
        (make_result(arrays(), kept=[]), arrays(), labels),
    ]
    for result, source, targets in cases:
        export(result, tmp_path / "kept", to="parquet", source=source)
        table = parquet.read_table(tmp_path / "kept")
        assert "path" not in table.column_names
        assert (table["label"].to_pylist() if "label" in table.column_names else None) == targets


def test_links_are_an_image_folder_of_the_kept(folder: Path, tmp_path: Path) -> None:
    export(make_result(folder), tmp_path / "kept", to="links")
    kept, whole = as_source(tmp_path / "kept"), as_source(folder)
    assert kept.paths == [PATHS[index] for index in KEPT]
    assert kept.class_names == whole.class_names
    assert [sample[1] for sample in kept] == [whole[index][1] for index in KEPT]
    for path in kept.paths:
        assert (tmp_path / "kept" / path).is_symlink()
        assert os.readlink(tmp_path / "kept" / path) == str(folder / path)
    assert sorted(os.listdir(tmp_path)) == ["images", "kept"]


def test_links_keep_the_numbers_of_classes(folder: Path, tmp_path: Path) -> None:
    (folder / "ant").mkdir()
    with pytest.warns(UserWarning, match="1 of 3 class folders have no image"):
        result = make_result(folder, kept=[7])
    with pytest.warns(UserWarning, match="1 of 3 class folders have no image"):
        export(result, tmp_path / "kept", to="links")
    assert sorted(os.listdir(tmp_path / "kept")) == ["ant", "cat", "dog"]
    with pytest.warns(UserWarning, match="2 of 3 class folders have no image"):
        assert as_source(tmp_path / "kept")[0][1] == 2


def test_links_take_the_place_of_an_empty_folder_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "empty")
    result = make_result(folder)
    export(result, tmp_path / "alias", to="links")
    assert as_source(tmp_path / "empty").paths == [PATHS[index] for index in KEPT]
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        export(make_result(folder, kept=[0]), tmp_path / "empty", to="links")
    assert as_source(tmp_path / "empty").paths == [PATHS[index] for index in KEPT]
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileExistsError, match="it is a file"):
        export(result, tmp_path / "file", to="links")
    assert (tmp_path / "file").read_text() == "old"
    for inside in (folder, folder / "kept", folder / "dog" / "kept"):
        with pytest.raises(ValueError, match="is in the image folder"):
            export(result, inside, to="links")
    assert sorted(os.listdir(tmp_path)) == ["alias", "empty", "file", "images"]
    assert as_source(folder).paths == PATHS


@pytest.mark.parametrize("failing", ["symlink", "rename"])
def test_links_that_fail_half_way_leave_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    real, calls = getattr(os, failing), []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2 or failing == "rename":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments)

    result = make_result(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            export(result, tmp_path / "kept", to="links")
    assert calls
    assert os.listdir(tmp_path) == ["images"]


def test_source_given_wins_and_may_be_anything(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    result = make_result(folder, source=as_source(folder))
    folder.rename(moved)
    for number, source in enumerate([moved, str(moved), as_source(moved)]):
        export(result, tmp_path / str(number), to="links", source=source)
        link = os.readlink(tmp_path / str(number) / PATHS[1])
        assert link == str(moved / PATHS[1])


def test_folder_that_moved_is_named(folder: Path, tmp_path: Path) -> None:
    result = make_result(folder)
    folder.rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r'export to "paths" needs .*images does not exist; .* source='
    ):
        export(result, tmp_path / "kept", to="paths")
    with pytest.raises(ValueError, match="result does not name its place"):
        export(dataclasses.replace(result, dataset={}), tmp_path / "kept", to="links")
    with pytest.raises(ValueError, match='found a dataset of kind "arrays"'):
        export(make_result(arrays()), tmp_path / "kept", to="links")
    assert os.listdir(tmp_path) == ["moved"]


@pytest.mark.parametrize("to", FORMATS)
def test_another_dataset_is_refused(folder: Path, tmp_path: Path, to: str) -> None:
    result = make_result(folder)
    (tmp_path / "kept").write_text("old")
    (folder / "dog/c.png").write_bytes(b"x")
    with pytest.raises(DatasetMismatchError, match=result.fingerprint):
        export(result, tmp_path / "kept", to=to, source=folder)
    if to in ("csv", "parquet"):
        with pytest.warns(UserWarning, match="the table has no paths: the folder .* has changed"):
            export(result, tmp_path / "table", to=to)
        (tmp_path / "table").unlink()
    elif to != "npy":  # needs no dataset
        with pytest.raises(DatasetMismatchError, match=as_source(folder).fingerprint()):
            export(result, tmp_path / "kept", to=to)
    unknown = dataclasses.replace(result, fingerprint="")
    with pytest.raises(DatasetMismatchError, match="number of samples 8, found 9"):
        export(unknown, tmp_path / "kept", to=to, source=folder)
    assert (tmp_path / "kept").read_text() == "old"


@pytest.mark.parametrize("to", ["paths", "links"])
def test_formats_of_files_refuse_arrays(tmp_path: Path, to: str) -> None:
    with pytest.raises(ValueError, match='that are files; found a dataset of kind "arrays"'):
        export(make_result(arrays()), tmp_path / "kept", to=to, source=arrays())
    assert os.listdir(tmp_path) == []


def test_unknown_format_is_answered_with_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of paths, npy, .*, shards; found 'xml'"):
        export(make_result(arrays()), tmp_path / "kept", to="xml")


@pytest.mark.parametrize("to", FORMATS)
def test_destination_that_cannot_be_written(folder: Path, tmp_path: Path, to: str) -> None:
    pytest.importorskip("pyarrow")
    result = make_result(folder)
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match=r"cannot write .*missing does not exist"):
        export(result, tmp_path / "missing" / "kept", to=to)
    with pytest.raises(NotADirectoryError, match="file"):
        export(result, tmp_path / "file" / "kept", to=to)
    with pytest.raises(OSError, match="/proc/"):
        export(result, "/proc/self/kept", to=to)
    if to != "links":
        with pytest.raises(IsADirectoryError, match="it is a folder"):
            export(result, tmp_path / "images", to=to)
    assert sorted(os.listdir(tmp_path)) == ["file", "images"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("to", ["npy", "parquet"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, to: str) -> None:
    pytest.importorskip("pyarrow")
    big = PruneResult(torch.arange(100_000), torch.rand(100_000), 1.0, "")
    with small_disk(tmp_path / "disk") as disk:
        (disk / "kept").write_text("old")
        with pytest.raises(OSError, match=r"No space left|File too large"):
            export(big, disk / "kept", to=to)
        assert (disk / "kept").read_text() == "old"
        assert os.listdir(disk) == ["kept"]


def test_full_disk_on_a_list_of_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = folder.parent / "kept"
    destination.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    result = make_result(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            export(result, destination, to="paths")
    assert destination.read_text() == "old"
    assert sorted(os.listdir(folder.parent)) == ["images", "kept"]


def test_names_that_lines_or_text_cannot_hold(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (folder / "dog/b.png").rename(folder / "dog/b\n.png")
    result = make_result(folder, kept=[7])
    with pytest.raises(ValueError, match=r"line breaks; found .*b\\n\.png"):
        export(result, tmp_path / "kept", to="paths")
    export(result, tmp_path / "links", to="links")
    assert os.listdir(tmp_path / "links" / "dog") == ["b\n.png"]
    try:
        os.rename(folder / "dog/b\n.png", os.fsencode(folder) + b"/dog/\xe9.png")
    except OSError:
        return  # this file system allows only Unicode names
    result = make_result(folder, kept=[7])
    export(result, tmp_path / "kept", to="paths")
    assert (tmp_path / "kept").read_bytes() == b"dog/\xe9.png\n"
    with pytest.raises(ValueError, match="must be UTF-8"):
        export(result, tmp_path / "table", to="parquet")
    assert not (tmp_path / "table").exists()


def test_missing_extra_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make_result(folder)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow is needed .*adapruner\[parquet\]"):
        export(result, tmp_path / "kept", to="parquet")
    assert os.listdir(tmp_path) == ["images"]


def test_method_of_the_result(folder: Path, tmp_path: Path) -> None:
    make_result(folder).export(tmp_path / "kept.npy", to="npy")
    assert np.load(tmp_path / "kept.npy").tolist() == KEPT
