"""Sources of Hugging Face datasets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import TARGETS, to_tensor
from torch.utils.data import DataLoader, Subset

from adapruner import Pruner, pruned_loader
from adapruner.data import as_source
from adapruner.data.sources.find import identified


@pytest.fixture
def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pictures = [Image.new("L", (4, 3), 20 * index) for index in range(6)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
            "note": datasets.Value("string"),
        }
    )
    columns = {"image": pictures, "label": TARGETS.tolist(), "note": list("uvwxyz")}
    return datasets.Dataset.from_dict(columns, features=features)


def test_hugging_face_dataset(hugging_face: Any) -> None:
    source = as_source(hugging_face)
    assert (source.kind, len(source), source.deterministic) == ("hugging face", 6, True)
    assert source.class_names == ["ant", "bee", "cat"]
    assert source.targets is not None
    assert source.targets.dtype == np.int64
    assert source.targets.tolist() == TARGETS.tolist()
    image, target = source[2]
    assert (image.mode, image.getpixel((0, 0)), target) == ("RGB", (40, 40, 40), 1)
    assert as_source(hugging_face, mode=None)[2][0].mode == "L"
    assert torch.equal(
        as_source(hugging_face, transform=to_tensor)[5][0], torch.full((3, 4, 3), 100).byte()
    )


def test_hugging_face_formats_do_not_change_identity(hugging_face: Any) -> None:
    plain = as_source(hugging_face)
    formatted = as_source(hugging_face.with_format("torch"))
    changed = as_source(hugging_face.with_transform(lambda rows: {**rows, "image": rows["label"]}))
    assert formatted[1][0].shape[-2:] == (3, 4)
    assert changed[1][0] == TARGETS[1]
    assert not changed.deterministic
    assert plain.fingerprint() == formatted.fingerprint() == changed.fingerprint()
    for source in (plain, formatted, changed):
        assert source.image(3).getpixel((0, 0)) == 60  # type: ignore[union-attr]
        assert source.targets is not None
        assert source.targets.tolist() == TARGETS.tolist()


def test_hugging_face_fingerprint_follows_content(hugging_face: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    first = as_source(hugging_face).fingerprint()
    hugging_face.save_to_disk(tmp_path / "saved", num_shards=2)
    pieces = [hugging_face.select(range(2)), hugging_face.select([2, 3, 4, 5])]
    same = [
        datasets.load_from_disk(tmp_path / "saved"),
        datasets.concatenate_datasets(pieces),
        hugging_face.select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0]),
        hugging_face.remove_columns("note"),
        hugging_face.rename_columns({"image": "img", "label": "labels"}),
    ]
    assert {as_source(dataset).fingerprint() for dataset in same} == {first}
    names = datasets.ClassLabel(names=["x", "y", "z"])
    different = [
        hugging_face,
        hugging_face.select(range(5)),
        hugging_face.select([1, 0, 2, 3, 4, 5]),
        hugging_face.cast_column("label", names),
        hugging_face.remove_columns("label").add_column("label", [0] * 6),
    ]
    assert len({as_source(dataset).fingerprint() for dataset in different}) == len(different)


def test_hugging_face_fingerprint_reads_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from adapruner.data.sources import hugging_face as module

    monkeypatch.setattr(module, "_ROWS_PER_READ", 2)
    rows = {"x": [[float(i), i / 3] for i in range(5)], "y": [0, 1, 0, 1, 1]}
    first = as_source(datasets.Dataset.from_dict(rows))
    rows["x"][4] = [4.0, 0.0]
    assert first.fingerprint() != as_source(datasets.Dataset.from_dict(rows)).fingerprint()


def test_a_dataset_of_one_column_is_identified() -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"input_ids": [[i, i + 1] for i in range(20)]}
    data = datasets.Dataset.from_dict(rows).with_format("torch")
    loader = pruned_loader(DataLoader(data, 4), pruner := Pruner(20, 0.5, 12))
    for batch in loader:
        assert batch["input_ids"][:, 0].tolist() == batch["ids"].tolist()
    other = datasets.Dataset.from_dict({"input_ids": rows["input_ids"][::-1]})
    assert pruner.fingerprint == identified(data).fingerprint() != identified(other).fingerprint()


def test_hugging_face_columns(hugging_face: Any) -> None:
    source = as_source(hugging_face, columns=("note", "label"))
    assert source[1] == ("v", 2)
    assert source.image(1) is None
    with pytest.raises(ValueError, match="no column 'caption'; found image, label, note"):
        as_source(hugging_face, columns=("image", "caption"))
    with pytest.raises(
        ValueError, match=r"columns must be a pair \(input, target\); found 'image'"
    ):
        as_source(hugging_face, columns="image")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"cannot guess the input column: .*; found none among pic, label"
    ):
        as_source(hugging_face.rename_column("image", "pic"))
    doubled = hugging_face.add_column("fine_label", [0] * 6)
    with pytest.raises(ValueError, match=r"target column: .*; found several \(label, fine_label\)"):
        as_source(doubled)
    assert as_source(doubled, columns=("image", "fine_label"))[5][1] == 0
    fine = doubled.rename_column("label", "coarse_label")
    assert as_source(fine)[5][1] == 0


def test_hugging_face_targets_that_are_lists_or_structs_of_text() -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"x": [[1.0], [2.0]], "tags": [["a", "b"], []], "answers": [{"text": "a"}] * 2}
    dataset = datasets.Dataset.from_dict(rows)
    for name in ("tags", "answers"):
        source = as_source(dataset, columns=("x", name))
        assert source.targets is None
        assert [source[i][1] for i in range(2)] == rows[name]


def test_hugging_face_transform_that_drops_a_column(hugging_face: Any) -> None:
    changed = hugging_face.with_transform(lambda rows: {"pixels": rows["label"]})
    with pytest.raises(ValueError, match=r"cannot guess the input column.* among pixels"):
        as_source(changed)
    source = as_source(changed, columns=("image", "label"))
    with pytest.raises(TypeError, match=r"sample 0 lacks image, label; found pixels"):
        source[0]


def test_hugging_face_subset(hugging_face: Any) -> None:
    source = as_source(Subset(hugging_face, [4, 1]), columns=("note", "label"))
    assert [source[0], source[1]] == [("y", 2), ("v", 2)]
    assert source.class_names == ["ant", "bee", "cat"]


def test_hugging_face_datasets_that_are_refused(hugging_face: Any) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(TypeError, match="map-style"):
        as_source(hugging_face.to_iterable_dataset())
    with pytest.raises(TypeError, match=r"splits 'train'; choose one, such as data\['train'\]"):
        as_source(datasets.DatasetDict(train=hugging_face))
    with pytest.raises(ValueError, match="of length 0"):
        as_source(hugging_face.select([]))


def test_hugging_face_dataset_is_picklable(hugging_face: Any) -> None:
    again = pickle.loads(pickle.dumps(as_source(hugging_face, transform=to_tensor)))
    assert torch.equal(again[3][0], torch.full((3, 4, 3), 60).byte())
