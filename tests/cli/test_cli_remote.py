"""The command on shards in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.command_line import TINY, Run, runner
from support.object_store import ObjectServer, object_server
from support.shard_files import make_shards

from adapruner import PruneResult
from adapruner.data import as_source

pytest.importorskip("aiohttp")
pytest.importorskip("timm")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return make_shards(tmp_path / "train", (20, 12, 16))


@pytest.fixture
def server(shards: list[Path]) -> Iterator[ObjectServer]:
    objects = {f"/train/{shard.name}": shard.read_bytes() for shard in shards}
    with object_server(objects=objects) as running:
        yield running


OPTIONS = (*TINY, "--keep-ratio", "0.5", "--image-size", "8", "--loader", "torch")


def test_prune_keeps_the_set_that_it_keeps_of_files(
    run: Run, shards: list[Path], server: ObjectServer, tmp_path: Path
) -> None:
    address = f"{server.address}/train/train-{{000..002}}.tar"
    ended = run("prune", address, "--out", tmp_path / "remote.safetensors", *OPTIONS)
    assert ended.code == 0, ended.err
    assert run("prune", *shards, "--out", tmp_path / "local.safetensors", *OPTIONS).code == 0
    remote = PruneResult.load(tmp_path / "remote.safetensors")
    local = PruneResult.load(tmp_path / "local.safetensors")
    assert torch.equal(remote.indices, local.indices)
    assert remote.dataset["root"] == address
    assert remote.saved["bytes_read"] == server.sent
    assert "bytes_read" not in local.saved

    exported = tmp_path / "kept"
    ended = run("export", tmp_path / "remote.safetensors", "--to", "shards", "--out", exported)
    assert ended.code == 0, ended.err
    ended = run(
        "export",
        tmp_path / "local.safetensors",
        "--to",
        "shards",
        "--data",
        shards[0],
        "--data",
        shards[1],
        "--data",
        shards[2],
        "--out",
        tmp_path / "of-files",
    )
    assert ended.code == 0, ended.err
    for path in sorted((tmp_path / "of-files").iterdir()):
        assert (exported / path.name).read_bytes() == path.read_bytes()


def test_index_and_cache(
    run: Run, shards: list[Path], server: ObjectServer, tmp_path: Path
) -> None:
    address = f"{server.address}/train/"
    assert "--out DIR is needed for the indexes" in run("index", address).err
    (tmp_path / "indexes").mkdir()
    ended = run("index", address, "--out", tmp_path / "indexes")
    assert ended.out == "wrote the indexes of 3 shards, with 48 samples\n"
    assert run("index", *shards).code == 0
    for shard in shards:
        name = shard.with_suffix(".idx").name
        assert (tmp_path / "indexes" / name).read_bytes() == (shard.parent / name).read_bytes()
    options = (*OPTIONS, "--index", tmp_path / "indexes", "--cache", tmp_path / "cache")
    for _ in range(2):
        assert run("prune", address, "--out", tmp_path / "a.safetensors", *options).code == 0
    saved = PruneResult.load(tmp_path / "a.safetensors").saved
    assert saved["bytes_read"] < 10_000  # the checks of the indexes alone
    assert len(as_source(address, index_folder=tmp_path / "indexes")) == 48


def test_bad_places(run: Run, shards: list[Path], server: ObjectServer, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "a.safetensors", *OPTIONS)
    ended = run("prune", f"{server.address}/none.tar", *out)
    assert (ended.code, ended.err) == (
        1,
        f"adapruner: error: no such shard: {server.address}/none.tar\n",
    )
    ended = run("prune", shards[0], f"{server.address}/train/", *out)
    assert "data must be files or lie in an object store, not both" in ended.err
    ended = run("prune", shards[0], "--cache", tmp_path / "cache", *out)
    assert "remote is for shards in an object store" in ended.err
    assert os.listdir(tmp_path) == ["train"]
