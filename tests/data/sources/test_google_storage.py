"""Shards at gs:// addresses, read by gcsfs from an emulator of Google Cloud Storage."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.object_store import ObjectServer, object_server
from support.sample_data import to_tensor
from support.shard_files import make_shards

from adapruner import DatasetMismatchError, Pruner
from adapruner.data import RemoteOptions, as_source
from adapruner.data.sources.remote import RemoteStore
from adapruner.data.sources.shard_index import scan, write_index
from adapruner.data.sources.shards import ShardSource
from adapruner.data.sources.tar_members import BLOCK

emulator = pytest.importorskip(
    "gcp_storage_emulator.server", reason="needs gcp-storage-emulator and gcsfs"
)

COUNTS = (5, 1, 7)


@dataclass
class Cloud:
    """An emulator with the shards of a folder, behind a server that makes faults."""

    front: ObjectServer
    files: Any  # the file system that uploads

    def opened(self, address: str = "gs://photos/train/", **settings: Any) -> ShardSource:
        storage = {"endpoint_url": self.front.address, "token": "anon"}
        remote = RemoteOptions(storage_options=storage, **{"attempts": 8} | settings)
        source = as_source(address, remote=remote, transform=to_tensor)
        assert isinstance(source, ShardSource)
        return source

    def ranges(self) -> Counter[tuple[str, int, int]]:
        """How often each range of bytes was asked for."""
        found = [(r.path, r.range) for r in self.front.requests if r.range is not None]
        return Counter((path.split("%2F")[1].split("?")[0], *span) for path, span in found)


@pytest.fixture
def local(tmp_path: Path) -> ShardSource:
    make_shards(tmp_path / "train", COUNTS)
    source = as_source(tmp_path / "train")
    assert isinstance(source, ShardSource)
    return source


@pytest.fixture
def cloud(local: ShardSource) -> Iterator[Cloud]:
    gcsfs = pytest.importorskip("gcsfs", reason="needs gcsfs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="photos")
    server.start()
    try:
        behind = f"http://127.0.0.1:{port}"
        files = gcsfs.GCSFileSystem(endpoint_url=behind, token="anon", skip_instance_cache=True)
        for shard in local.shards:
            files.pipe_file(f"photos/train/{Path(shard).name}", Path(shard).read_bytes())
        with object_server(behind=behind) as front:
            yield Cloud(front, files)
    finally:
        server.stop()


def check_equal(source: ShardSource, local: ShardSource) -> None:
    everything = list(range(len(local)))
    assert source.targets.tolist() == local.targets.tolist()
    assert source.encoded_each(everything) == [local.encoded(i) for i in everything]


@pytest.mark.parametrize("address", ["train/", "train/train-*.tar", "train/train-{000..002}.tar"])
def test_samples_are_those_of_the_files(local: ShardSource, cloud: Cloud, address: str) -> None:
    source = cloud.opened(f"gs://photos/{address}")
    assert source.shards == [f"gs://photos/train/train-{j:03d}.tar" for j in range(3)]
    check_equal(source, local)


def test_an_epoch_asks_for_the_ranges_of_its_samples_alone(
    local: ShardSource, cloud: Cloud, tmp_path: Path
) -> None:
    for shard in local.shards:
        path = tmp_path / f"{Path(shard).stem}.idx"
        write_index(path, scan(shard), Path(shard).stat().st_size)
        cloud.files.pipe_file(f"photos/train/{path.name}", path.read_bytes())
    source = cloud.opened()
    pruner = Pruner(13, 0.5, 4, explore=0.0)
    loader = pruner.loader(source, 4)
    for _ in range(4):
        wanted = np.flatnonzero(pruner.reads())
        cloud.front.requests.clear()
        before = source.bytes_read
        for inputs, targets, ids in loader:
            pruner.loss(torch.eye(3)[targets] * inputs.float().mean(), targets, ids)
        expected: Counter[tuple[str, int, int]] = Counter()
        for index in wanted.tolist():
            shard, offset, size = source.location(index)
            assert size is not None
            expected[shard.rpartition("/")[2], offset - BLOCK, offset + size - 1] += 1
        assert cloud.ranges() == expected
        assert before is not None
        assert source.bytes_read == before + sum(last - first + 1 for _, first, last in expected)
        pruner.step()
    assert len(wanted) < 13


def test_a_changed_object_is_refused(local: ShardSource, cloud: Cloud) -> None:
    source = cloud.opened()
    shard = "photos/train/train-000.tar"
    store = source.store
    assert isinstance(store, RemoteStore)
    assert store.version(f"gs://{shard}") == cloud.files.info(shard)["generation"]
    first = source.fingerprint()
    assert cloud.opened().fingerprint() == first
    pruner = Pruner(13, 0.5, 2)
    pruner.loader(source, 4)
    state = pruner.state_dict()
    content = bytearray(Path(local.shards[0]).read_bytes())
    content[source.location(0).offset + 40] ^= 1  # within the image; headers stay as they are
    cloud.files.pipe_file(shard, bytes(content))
    assert cloud.opened().fingerprint() != first
    again = Pruner(13, 0.5, 2)
    again.load_state_dict(state)
    with pytest.raises(DatasetMismatchError, match="fingerprint"):
        again.loader(cloud.opened(), 4)
    for seen in store._seen.values():
        seen.when -= 1e6  # as if they had been looked up long ago
    [found] = source.encoded_each([0])
    assert isinstance(found, OSError)
    assert "train-000.tar has changed or gone since it was opened" in str(found)
    assert source.encoded(6) == local.encoded(6)


def test_a_deleted_object_makes_its_samples_unreadable(local: ShardSource, cloud: Cloud) -> None:
    source = cloud.opened()
    cloud.files.rm("photos/train/train-001.tar")
    [found, other] = source.encoded_each([5, 6])
    assert isinstance(found, FileNotFoundError)
    assert other == local.encoded(6)
    with pytest.raises(FileNotFoundError, match="no such shard: gs://photos/train/train-001"):
        cloud.opened("gs://photos/train/train-001.tar")


def test_errors_and_cut_answers_change_no_sample(local: ShardSource, cloud: Cloud) -> None:
    source = cloud.opened()
    chance = random.Random(0)
    faults = []

    def fault(request: Any) -> str:
        faults.append(chance.choice(["500", "cut", "", ""]) if request.range else "")
        return faults[-1]

    cloud.front.fault = fault
    check_equal(source, local)
    assert {"500", "cut"} <= set(faults)
