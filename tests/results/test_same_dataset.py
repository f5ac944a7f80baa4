"""A result and its dataset: saved and loaded, found again, taken apart and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.labelled import Coarse, Model, folder_of, photo
from support.shard_files import make_shards
from torch import nn
from torch.utils.data import Subset, TensorDataset

from adapruner import PruneResult, fast_prune
from adapruner.data.sources.find import as_source

NAMES = ["cat", "dog", "eel"]


def again(result: PruneResult, folder: Path) -> PruneResult:
    result.save(folder / "result")
    return PruneResult.load(folder / "result")


def test_a_result_of_several_columns_is_read_again(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    values = torch.rand(40, 3).tolist()
    rows = datasets.Dataset.from_dict({"x": values, "other": [0] * 40, "label": [0, 1] * 20})
    rows = rows.with_format("torch")
    for places in ({"columns": (["x"], "label")}, {"target": "label"}):
        result = fast_prune(Model(), rows, 0.5, 2, progress=False, **places)
        loaded = again(result, tmp_path)
        assert loaded.dataset == result.dataset
        for part in (loaded.subset(rows), result.subset(rows)):
            assert [int(label) for label in part["label"]] == [
                i % 2 for i in result.indices.tolist()
            ]
        half = Subset(rows, range(0, 40, 2))
        halved = again(fast_prune(Model(), half, 0.5, 2, progress=False, **places), tmp_path)
        assert len(halved.subset(half)) == 10


def test_subset_takes_the_dataset_of_the_run(tmp_path: Path) -> None:
    class Texts(Coarse):
        def __init__(self) -> None:
            super().__init__()
            self.labels: Any = [NAMES[i % 3] for i in range(60)]

    tensors = TensorDataset(torch.arange(60) % 2, torch.rand(60, 3))
    for model, dataset, target in ((Model(), Texts(), "label"), (nn.Linear(3, 2), tensors, 0)):
        result = fast_prune(model, dataset, 0.5, 2, target=target, progress=False)
        loaded = again(result, tmp_path)
        assert loaded.dataset["target"] == target
        assert len(loaded.subset(dataset)) == 30
        assert as_source(dataset, target=target).fingerprint() == result.fingerprint


def test_tables_and_exports_of_a_part_and_of_a_stated_fingerprint(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", "ape", "bee", "cat", "dog")
    model = nn.Linear(3, 4)
    part = Subset(as_source(root, transform=lambda image: torch.zeros(3)), range(0, 12, 2))
    whole = as_source(root, transform=lambda image: torch.zeros(3), fingerprint="mine")
    for data, name in ((part, "part"), (whole, "whole")):
        result = again(fast_prune(model, data, 0.5, 2, progress=False), tmp_path)
        result.export(tmp_path / f"{name}.txt", to="paths")
        result.export(tmp_path / f"{name}.csv", to="csv")
        paths = (tmp_path / f"{name}.txt").read_text().splitlines()
        assert paths == [data[i] and _path(data, i) for i in result.indices.tolist()]
    result.export(tmp_path / "links", to="links")
    assert len(as_source(tmp_path / "links")) == 6
    result = again(fast_prune(model, part, 0.5, 2, progress=False), tmp_path)
    with pytest.raises(ValueError, match="the result is of a Subset of"):
        result.export(tmp_path / "others", to="links")


def _path(data: Any, index: int) -> str:
    source = data if not isinstance(data, Subset) else as_source(data)
    return str(source.paths[index])


def unharmed(result: PruneResult, file: Path) -> None:
    """No output of the result replaces the file."""
    before = file.read_bytes()
    for to in ("paths", "npy", "csv"):
        with pytest.raises(
            ValueError, match=r"it is a file of the dataset|needs samples that are files"
        ):
            result.export(file, to=to)
    with pytest.raises(ValueError, match="it is a file of the dataset"):
        result.save(file)
    with pytest.raises(ValueError, match="it is a file of the dataset"):
        result.report(file)
    assert file.read_bytes() == before


def test_no_output_replaces_an_image(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    root = folder_of(tmp_path / "f", "ape", "bee")
    elsewhere = folder_of(tmp_path / "elsewhere", "cat")
    (root / "cat").symlink_to(elsewhere / "cat")
    (root / "bee" / "linked.png").symlink_to(elsewhere / "cat" / "0.png")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    made = fast_prune(model, root, 0.5, 1, progress=False)
    for result in (made, again(made, tmp_path)):
        for name in ("ape/0.png", "cat/1.png", "bee/linked.png"):
            unharmed(result, root / name)
    made.export(root / "kept.txt", to="paths")
    assert len((root / "kept.txt").read_text().splitlines()) == len(made.indices)


def test_no_output_replaces_an_array_or_a_shard(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 3), dtype=np.float32))
    np.save(tmp_path / "y.npy", np.arange(20) % 2)
    files = tmp_path / "x.npy", tmp_path / "y.npy"
    made = fast_prune(nn.Linear(3, 2), tuple(map(str, files)), 0.5, 1, progress=False)
    for result in (made, again(made, tmp_path)):
        for file in files:
            unharmed(result, file)
    [shard] = make_shards(tmp_path / "shards", (8,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    made = fast_prune(model, shard, 0.5, 1, progress=False)
    for result in (made, again(made, tmp_path)):
        unharmed(result, shard)


def test_a_table_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    name = "im\udcfe.png"
    root = folder_of(tmp_path / "f", "ape", "bee\udcff")
    photo(9).save(root / "ape" / name)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    table = fast_prune(model, root, 0.5, 1, progress=False).to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert f"ape/{name}" in list(table["path"])
    assert set(table["class"]) == {"ape", "bee\udcff"}
