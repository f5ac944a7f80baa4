"""Shards with classes in JSON, under a key."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import TINY, Run, runner
from support.shard_files import decoded_image, encoded_image, write_tar
from support.training_data import Followed

from adapruner import PruneResult, as_source
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.data.sources.shard_index import UNKNOWN, ClassColumn, read_index, scan, write_index
from adapruner.data.sources.shards import ShardSource
from adapruner.vision import evaluation_transform

pytest.importorskip("PIL")

COLUMNS = ("png", "json:label")
TOLD = {"caption": "noise", "label": None, "size": [8, 6], "my key": None}


def make_shards(folder: Path, counts: tuple[int, ...] = (5, 1, 7)) -> list[Path]:
    """Sample n has the class n % 3 under "label" and n % 2, as text, under "my key"."""
    paths, number = [], 0
    for j, count in enumerate(counts):
        members = []
        for n in range(number, number + count):
            about = TOLD | {"label": n % 3, "my key": str(n % 2)}
            members.append((f"{n:04d}.png", encoded_image(n)))
            members.append((f"{n:04d}.JSON", json.dumps(about).encode()))
        paths.append(write_tar(folder / f"train-{j:03d}.tar", members))
        number += count
    return paths


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.mark.parametrize("indexed", [None, "json:label", "cls"])
def test_classes_are_those_under_the_key(tmp_path: Path, indexed: str | None) -> None:
    for shard in make_shards(tmp_path):
        if indexed:
            write_index(shard.with_suffix(".idx"), scan(shard, indexed), shard.stat().st_size)
    source = as_source(tmp_path, columns=COLUMNS)
    assert isinstance(source, ShardSource)
    assert source.targets.tolist() == [n % 3 for n in range(13)]
    for n in range(13):
        image, target = source[n]
        assert np.array_equal(np.array(image), decoded_image(n))
        assert target == n % 3
    assert as_source(tmp_path, columns=("png", "json:my key")).targets.tolist() == [
        n % 2 for n in range(13)
    ]
    with pytest.raises(
        ValueError, match=r"no class; expected a component cls that holds a whole number"
    ):
        as_source(tmp_path)


def test_index_knows_its_column(tmp_path: Path) -> None:
    [shard] = make_shards(tmp_path, (4,))
    path = tmp_path / "train-000.idx"
    for column in ("json:label", "json:my key"):
        write_index(path, scan(shard, column), shard.stat().st_size)
        index = read_index(path, shard)
        assert index.column == column
        assert index.classes is not None
        assert index.classes.tolist() == scan(shard, column).classes.tolist()  # type: ignore[union-attr]
        os.utime(
            path, (0, 0)
        )  # older than the shard, so the headers are compared, with the column of the index
        assert read_index(path, shard).lines == index.lines


def test_both_loaders(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    from adapruner.data.dali.loader import DaliLoader

    make_shards(tmp_path)
    source = as_source(tmp_path, columns=COLUMNS, transform=evaluation_transform(6))
    ours = list(DaliLoader(source, Followed(13), 4))
    theirs = list(PrunedLoader(source, Followed(13), 4))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine[1], other[1])
        assert torch.equal(mine[1], mine[2] % 3)
        assert torch.equal(mine[2], other[2])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"label": 3}', 3),
        (b'\xef\xbb\xbf {"label": 3}', 3),
        (b'{"label": "12"}', 12),
        (b'{"label": "12 "}', 12),
        (b'{"label": 0, "other": 1}', 0),
        (b'{"label": true}', UNKNOWN),
        (b'{"label": 3.0}', UNKNOWN),
        (b'{"label": -1}', UNKNOWN),
        (b'{"label": null}', UNKNOWN),
        (b'{"label": "cat"}', UNKNOWN),
        (b'{"label": "\\ud800"}', UNKNOWN),
        (b'{"label": [3]}', UNKNOWN),
        (b'{"label": 12345678901}', UNKNOWN),
        (b'{"Label": 3}', UNKNOWN),
        (b"[3]", UNKNOWN),
        (b"3", UNKNOWN),
        (b"", UNKNOWN),
        (b'{"label": 3', UNKNOWN),
        (b"\xff\xfe", UNKNOWN),
        (b"[" * 100_000, UNKNOWN),
        (b'{"label": ' + b"9" * 5000 + b"}", UNKNOWN),
    ],
)
def test_what_is_a_class_in_json(content: bytes, expected: int) -> None:
    assert ClassColumn.of("json:label").number(content) == expected


def test_samples_without_a_class_say_so(tmp_path: Path) -> None:
    members = []
    for n, about in enumerate(
        (b'{"label": 2}', b'{"lable": 2}', None, b'{"label": 1}' + b" " * 2**20)
    ):
        members.append((f"{n}.png", encoded_image(n)))
        members += [] if about is None else [(f"{n}.json", about)]
    shard = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):
        source = as_source(shard, columns=COLUMNS)
        assert source[0][1] == 2
        for n in (1, 2, 3):
            with pytest.raises(
                OSError,
                match=rf"a\.tar: {n}\.png has no class; expected a component json that holds a "
                r"whole number under the key 'label'",
            ):
                source[n]
        write_index(tmp_path / "a.idx", scan(shard), shard.stat().st_size)  # from another column
    with pytest.raises(
        ValueError, match=r"found none among the 4 samples .* under the key 'labels'"
    ):
        as_source(shard, columns=("png", "json:labels"))
    for wrong in ("json:", ":label", "json: label", "json:a\nb"):
        with pytest.raises(ValueError, match=r"EXTENSION:KEY, such as json:label; found"):
            as_source(shard, columns=("png", wrong))


def test_the_command(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    make_shards(tmp_path / "shards", (30, 25))
    assert run("index", tmp_path / "shards", "--class", "json:label").code == 0
    index = read_index(tmp_path / "shards/train-000.idx", tmp_path / "shards/train-000.tar")
    assert index.column == "json:label"
    file = tmp_path / "kept.safetensors"
    options: list[Any] = ["--columns", *COLUMNS, "--quiet", *TINY]
    assert run("prune", tmp_path / "shards", "--out", file, *options).code == 0
    result = PruneResult.load(file)
    assert result.targets is not None
    assert result.targets.tolist() == [n % 3 for n in range(55)]
    shards = as_source(tmp_path / "shards", columns=COLUMNS)
    kept = [shards.encoded(index) for index in result.indices.tolist()]
    for to, data in (("wds-index", tmp_path / "shards"), ("shards", tmp_path / "exported")):
        assert run("export", file, "--to", to, "--out", tmp_path / "exported").code == 0
        again = as_source(data, columns=COLUMNS, index_folder=tmp_path / "exported")
        assert [again.encoded(j) for j in range(len(again))] == kept
        assert again.targets is not None
        assert again.targets.tolist() == result.targets[result.indices].tolist()
        shutil.rmtree(tmp_path / "exported")
    code, _, err = run("prune", tmp_path / "shards", "--out", file, *TINY)
    assert code == 1
    assert "has no class; expected a component cls that holds a whole number" in err
