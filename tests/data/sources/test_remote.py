"""Shards in an object store: values, ranges, indexes, faults and the cache."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.object_store import ObjectServer, Request, object_server
from support.sample_data import to_tensor
from support.shard_files import encoded_image, make_shards, sample, write_tar
from support.small_disk import small_disk

from adapruner import Pruner, fast_prune, vision
from adapruner.data import RemoteOptions, as_source
from adapruner.data.sources.byte_cache import ByteCache
from adapruner.data.sources.remote import RemoteStore
from adapruner.data.sources.shard_index import IndexMismatchError, scan, write_index
from adapruner.data.sources.shards import ShardSource
from adapruner.data.sources.tar_members import BLOCK
from adapruner.errors import UnreachableError

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

COUNTS = (5, 1, 7)
PATIENT = RemoteOptions(attempts=8, timeout=20)
HASTY = RemoteOptions(attempts=1, timeout=20)


@pytest.fixture
def local(tmp_path: Path) -> ShardSource:
    make_shards(tmp_path / "train", COUNTS)
    return opened(tmp_path / "train")


@pytest.fixture
def server(local: ShardSource) -> Iterator[ObjectServer]:
    objects = {f"/train/{Path(shard).name}": Path(shard).read_bytes() for shard in local.shards}
    with object_server(objects=objects) as running:
        yield running


def opened(data: Any, **settings: Any) -> ShardSource:
    source = as_source(data, **settings)
    assert isinstance(source, ShardSource)
    return source


def check_equal(source: ShardSource, local: ShardSource) -> None:
    assert len(source) == len(local)
    assert source.targets.tolist() == local.targets.tolist()
    assert source.sizes.tolist() == local.sizes.tolist()
    everything = list(range(len(local)))
    assert source.encoded_each(everything) == [local.encoded(i) for i in everything]
    batch = source.read_batch(everything)
    assert batch is not None
    for index, pair in enumerate(batch):
        assert not isinstance(pair, Exception)
        image, target = local[index]
        assert np.array_equal(np.asarray(pair[0]), np.asarray(image))
        assert pair[1] == target


def ranges(server: ObjectServer) -> Counter[tuple[str, int, int]]:
    """How often each range of bytes was asked for."""
    return Counter((r.path, *r.range) for r in server.requests if r.range is not None)


def range_of(source: ShardSource, index: int) -> tuple[str, int, int]:
    shard, offset, size = source.location(index)
    assert size is not None
    path = "/" + shard.split("/", 3)[3]
    return path, offset - BLOCK, offset + size - 1


# --- the same samples as in files


@pytest.mark.parametrize("form", ["folder", "glob", "braces", "list"])
def test_samples_over_http_are_those_of_the_files(
    local: ShardSource, server: ObjectServer, form: str
) -> None:
    train = f"{server.address}/train"
    data: Any = {
        "folder": f"{train}/",
        "glob": f"{train}/train-*.tar",
        "braces": f"{train}/train-{{000..002}}.tar",
        "list": [f"{train}/train-{j:03d}.tar" for j in range(3)],
    }[form]
    source = opened(data, remote=PATIENT)
    assert source.shards == [f"{train}/train-{j:03d}.tar" for j in range(3)]
    check_equal(source, local)


def test_samples_in_the_memory_file_system(local: ShardSource) -> None:
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    for shard in local.shards:
        memory.pipe_file(f"/of-test/{Path(shard).name}", Path(shard).read_bytes())
    try:
        check_equal(opened("memory://of-test/*.tar"), local)
    finally:
        memory.rm("/of-test", recursive=True)


@pytest.mark.parametrize("parallel", [1, 6])
@pytest.mark.parametrize("form", ["folder", "glob", "braces"])
def test_samples_over_ftp(local: ShardSource, form: str, parallel: int) -> None:
    authorizers = pytest.importorskip("pyftpdlib.authorizers")
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import ThreadedFTPServer

    class Handler(FTPHandler):  # type: ignore[misc]
        authorizer = authorizers.DummyAuthorizer()

    Handler.authorizer.add_anonymous(str(Path(local.shards[0]).parents[1]))
    with ThreadedFTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            address = f"ftp://127.0.0.1:{running.address[1]}/train/"
            name = {"folder": "", "glob": "*.tar", "braces": "train-{000..002}.tar"}[form]
            options = RemoteOptions(parallel=parallel, attempts=2)
            check_equal(opened(address + name, remote=options), local)
        finally:
            running.close_all()
            thread.join()


def test_samples_over_s3_with_faults(
    local: ShardSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        behind = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=behind)
        client.create_bucket(Bucket="photos")
        for shard in local.shards:
            client.upload_file(shard, "photos", f"train/{Path(shard).name}")
        chance = random.Random(0)
        with object_server(behind=behind) as front:
            options = RemoteOptions(
                storage_options={
                    "endpoint_url": front.address,
                    "config_kwargs": {"retries": {"max_attempts": 0}},
                },
                attempts=8,
            )
            source = opened("s3://photos/train/", remote=options)
            front.fault = lambda request: (
                chance.choice(["500", "cut", "", ""]) if request.range else ""
            )
            check_equal(source, local)
            front.fault = lambda request: ""
            first = source.fingerprint()
            assert opened("s3://photos/train/", remote=options).fingerprint() == first
            other = Path(local.shards[1]).read_bytes()
            client.put_object(Bucket="photos", Key="train/train-001.tar", Body=other + bytes(BLOCK))
            assert opened("s3://photos/train/", remote=options).fingerprint() != first
    finally:
        running.stop()


# --- what is asked for


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_asks_for_the_ranges_of_its_samples_alone(
    local: ShardSource, server: ObjectServer, workers: int
) -> None:
    source = opened(f"{server.address}/train/", remote=PATIENT, transform=to_tensor)
    listing = server.sent - source.bytes_read
    pruner = Pruner(13, 0.5, 4, explore=0.0)
    loader = pruner.loader(source, 4, num_workers=workers)
    for _ in range(4):
        wanted = np.flatnonzero(pruner.reads())
        server.requests.clear()
        seen = []
        for inputs, targets, ids in loader:
            seen += ids.tolist()
            pruner.loss(torch.eye(3)[targets] * inputs.float().mean(), targets, ids)
        assert sorted(seen) == wanted.tolist()
        assert ranges(server) == Counter(range_of(source, int(i)) for i in wanted)
        pruner.step()
    assert source.bytes_read == server.sent - listing  # the bytes of the workers too
    assert pruner.result().saved["bytes_read"] == source.bytes_read


def test_the_dali_loader_asks_for_the_same_ranges(local: ShardSource, server: ObjectServer) -> None:
    pytest.importorskip("nvidia.dali")
    from adapruner.data.dali.loader import DaliLoader

    source = opened(f"{server.address}/train/", remote=PATIENT, transform=vision.to_tensor)
    expected = {i: vision.to_tensor(local[i][0]) for i in range(13)}
    pruner = Pruner(13, 0.5, 3, explore=0.0)
    loader = DaliLoader(source, pruner, 4)
    for _ in range(3):
        wanted = np.flatnonzero(pruner.reads())
        server.requests.clear()
        for inputs, targets, ids in loader:
            for image, index in zip(inputs, ids.tolist(), strict=True):
                assert torch.allclose(image, expected[index], atol=1e-6)
            pruner.loss(torch.eye(3)[targets], targets, ids)
        assert ranges(server) == Counter(range_of(source, int(i)) for i in wanted)
        pruner.step()


def test_the_dali_loader_fetches_images_that_pillow_decodes_once(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    from adapruner.data.dali.loader import DaliLoader

    image_module, content = pytest.importorskip("PIL.Image"), io.BytesIO()
    image_module.fromarray(np.full((6, 8, 3), 99, np.uint8)).save(content, "WEBP")
    parts = (("webp", content.getvalue()), ("cls", b"1"))
    members = [(f"{index}.{ending}", part) for index in range(4) for ending, part in parts]
    shard = write_tar(tmp_path / "0.tar", members)
    with object_server(objects={"/0.tar": shard.read_bytes()}) as server:
        source = opened(f"{server.address}/0.tar", remote=PATIENT, transform=vision.to_tensor)
        server.requests.clear()
        images = [image for x, _, _ in DaliLoader(source, Pruner(4, 0.5, 2), 2) for image in x]
        assert ranges(server) == Counter(range_of(source, index) for index in range(4))
    assert all(torch.allclose(image, torch.tensor(99 / 255), atol=0.02) for image in images)
    assert len(images) == 4


def test_contents_between_headers_are_not_read(tmp_path: Path) -> None:
    large = np.random.default_rng(0).bytes(5 << 20)
    members = [m for n in range(3) for m in (*sample(n), (f"{n:04d}.bin", large))]
    path = write_tar(tmp_path / "large.tar", members)
    with object_server(objects={"/large.tar": path.read_bytes()}) as server:
        source = opened(f"{server.address}/large.tar", remote=PATIENT)
        assert source.targets.tolist() == [0, 1, 2]
        assert server.sent < 5 << 20  # of 15 MiB


def test_an_index_beside_the_shard_saves_the_scan(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    for shard in local.shards:
        path = tmp_path / f"{Path(shard).stem}.idx"
        write_index(path, scan(shard), Path(shard).stat().st_size)
        server.objects[f"/train/{path.name}"] = path.read_bytes()
    source = opened(f"{server.address}/train/", remote=PATIENT)
    # The headers of the first and the last sample are checked; one request fetches both here.
    assert all(last - first < 1 << 20 for _, first, last in ranges(server))
    check_equal(source, local)
    given = opened(f"{server.address}/train/", remote=PATIENT, index_folder=tmp_path)
    check_equal(given, local)
    assert given.fingerprint() == source.fingerprint()


def test_an_index_of_another_shard_is_refused(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    other = write_tar(tmp_path / "other.tar", [m for n in range(40, 43) for m in sample(n)])
    write_index(tmp_path / "other.idx", scan(other), other.stat().st_size)
    server.objects["/train/train-000.idx"] = (tmp_path / "other.idx").read_bytes()
    with pytest.raises(IndexMismatchError, match=r"train-000\.idx does not belong to http"):
        opened(f"{server.address}/train/", remote=HASTY)


def test_classes_are_read_where_an_index_has_none(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    for shard in local.shards:
        path = tmp_path / f"{Path(shard).stem}.idx"
        write_index(path, scan(shard))  # as wds2idx writes it
        server.objects[f"/train/{path.name}"] = path.read_bytes()
    check_equal(opened(f"{server.address}/train/", remote=PATIENT), local)


# --- faults


def test_errors_cut_answers_and_slow_answers_change_no_sample(
    local: ShardSource, server: ObjectServer
) -> None:
    chance = random.Random(3)
    server.pause = 1.0
    server.fault = lambda request: chance.choices(["500", "cut", "slow", ""], [2, 2, 1, 5])[0]
    options = RemoteOptions(attempts=20, timeout=0.5)
    check_equal(opened(f"{server.address}/train/", remote=options), local)


def test_a_store_that_stays_away_ends_the_run_and_excludes_nothing(
    local: ShardSource, server: ObjectServer
) -> None:
    source = opened(f"{server.address}/train/", remote=HASTY, transform=to_tensor)
    server.fault = lambda request: "500"
    pruner = Pruner(13, 0.5, 2)
    with pytest.raises(UnreachableError, match=r"train-00\d\.tar: 1 attempts failed"):
        next(iter(pruner.loader(source, 4)))
    assert pruner.unreadable == []
    server.fault = lambda request: ""
    assert sum(len(ids) for _, _, ids in pruner.loader(source, 4)) == 13


def test_a_run_goes_on_after_the_store_was_away(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    def run(options: RemoteOptions, folder: Path | None) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 3, 3))
        source = opened(f"{server.address}/train/", remote=options, transform=vision.to_tensor)
        settings = {"batch_size": 4, "loader": "torch", "progress": False}
        return fast_prune(model, source, 0.5, 5, checkpoint_dir=folder, **settings)

    whole = run(PATIENT, None)
    reads = 0

    def fault(request: Request) -> str:
        nonlocal reads
        reads += request.range is not None
        return "500" if reads > 40 else ""

    server.fault = fault
    with pytest.raises(UnreachableError):
        run(HASTY, tmp_path / "checkpoint")
    server.fault = lambda request: ""
    resumed = run(HASTY, tmp_path / "checkpoint")
    assert len(resumed.history) == 5
    assert torch.equal(resumed.indices, whole.indices)
    assert torch.equal(resumed.gate_logits, whole.gate_logits)
    assert resumed.unreadable == []


@pytest.mark.parametrize("looked_up_again", [False, True])
def test_a_deleted_shard_makes_its_samples_unreadable(
    local: ShardSource, server: ObjectServer, looked_up_again: bool
) -> None:
    source = opened(f"{server.address}/train/", remote=HASTY, transform=to_tensor)
    del server.objects["/train/train-000.tar"]
    if looked_up_again:
        for seen in source.store._seen.values():  # type: ignore[attr-defined]
            seen.when -= 1e6  # as if they had been looked up long ago
    pruner = Pruner(13, 0.5, 2)
    ids = sorted(i for _, _, batch in pruner.loader(source, 4) for i in batch.tolist())
    assert ids == list(range(5, 13))
    assert [index for index, _ in pruner.unreadable] == list(range(5))
    assert all("train-000.tar" in reason for _, reason in pruner.unreadable)


def test_one_broken_image_costs_no_other(local: ShardSource, tmp_path: Path) -> None:
    members = [m for n in range(6) for m in sample(n)]
    members[4] = (members[4][0], b"not an image")
    broken = write_tar(tmp_path / "broken" / "0.tar", members)
    with object_server(objects={"/0.tar": broken.read_bytes()}) as server:
        source = opened(f"{server.address}/0.tar", remote=PATIENT, transform=to_tensor)
        pruner = Pruner(6, 0.5, 2)
        server.requests.clear()
        ids = sorted(i for _, _, batch in pruner.loader(source, 6) for i in batch.tolist())
        assert ids == [0, 1, 3, 4, 5]
        assert max(ranges(server).values()) == 1  # nothing is fetched again for it


def test_a_shard_that_changes_is_seen(local: ShardSource, server: ObjectServer) -> None:
    source = opened(f"{server.address}/train/", remote=PATIENT)
    first, before = source.fingerprint(), source.encoded(0)
    content = bytearray(server.objects["/train/train-000.tar"])
    content[source.location(0).offset + 40] ^= 1  # within the image; headers stay as they are
    server.objects["/train/train-000.tar"] = bytes(content)
    assert opened(f"{server.address}/train/", remote=PATIENT).fingerprint() != first
    assert isinstance(source.store, RemoteStore)
    for seen in source.store._seen.values():
        seen.when -= 1e6  # as if they had been looked up long ago
    [found] = source.encoded_each([0])
    assert isinstance(found, OSError)
    assert "train-000.tar has changed or gone since it was opened" in str(found)
    assert source.encoded(6) == encoded_image(6) != before


def test_a_server_without_ranges_is_named(local: ShardSource, server: ObjectServer) -> None:
    source = opened(f"{server.address}/train/", remote=HASTY)
    server.fault = lambda request: "whole"
    [found] = source.encoded_each([2])
    assert isinstance(found, OSError)
    assert "the server ignores ranges" in str(found)


def test_a_shard_without_a_version_is_warned_of(local: ShardSource, server: ObjectServer) -> None:
    server.etags = False
    with pytest.warns(UserWarning, match="no ETag and no date, so a change of it cannot be seen"):
        check_equal(opened(f"{server.address}/train/", remote=PATIENT), local)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("{server}/train/none.tar", FileNotFoundError, "no such shard: http"),
        ("{server}/nothing/", FileNotFoundError, "no shard fits http"),
        ("{server}/train/a.tar.gz", ValueError, "plain .tar files; found 1 compressed"),
        ("nosuch://bucket/a.tar", ValueError, "nosuch"),
        (["{server}/train/train-000.tar", "{local}"], ValueError, "found .*train-000.tar and http"),
    ],
)
def test_bad_addresses(
    local: ShardSource, server: ObjectServer, data: Any, error: type[Exception], message: str
) -> None:
    def filled(text: str) -> str:
        return text.format(server=server.address, local=local.shards[0])

    with pytest.raises(error, match=message):
        opened([filled(t) for t in data] if isinstance(data, list) else filled(data), remote=HASTY)


def test_options_are_checked(local: ShardSource) -> None:
    with pytest.raises(ValueError, match="parallel must be at least 1; found 0"):
        RemoteOptions(parallel=0)
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0; found 0"):
        RemoteOptions(timeout=0)
    with pytest.raises(TypeError, match="attempts"):
        RemoteOptions(attempts="many")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="remote is for shards in an object store"):
        as_source(local.shards[0], remote=HASTY)
    secret = RemoteOptions(storage_options={"secret": "hunter2"})
    assert "hunter2" not in repr(secret)


# --- the cache


def test_a_second_run_reads_the_cache(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    options = RemoteOptions(cache_folder=tmp_path / "cache")
    check_equal(opened(f"{server.address}/train/", remote=options), local)
    source = opened(f"{server.address}/train/", remote=options)
    server.requests.clear()
    check_equal(source, local)
    assert source.bytes_read == 0
    assert server.requests == []


def test_a_changed_shard_is_not_taken_from_the_cache(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    options = RemoteOptions(cache_folder=tmp_path / "cache")
    check_equal(opened(f"{server.address}/train/", remote=options), local)
    members = [m for n in range(50, 55) for m in sample(n, key=f"{n - 50:04d}")]
    path = write_tar(tmp_path / "new.tar", members)
    server.objects["/train/train-000.tar"] = path.read_bytes()
    source = opened(f"{server.address}/train/", remote=options)
    assert source.encoded_each([0, 4, 5]) == [encoded_image(n) for n in (50, 54, 5)]


def test_altered_files_of_the_cache_are_fetched_again(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    options = RemoteOptions(cache_folder=tmp_path / "cache")
    check_equal(opened(f"{server.address}/train/", remote=options), local)
    chance = np.random.default_rng(1)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 3 + 13
    for path in files:
        content = bytearray(path.read_bytes())
        if chance.random() < 0.5:
            content[chance.integers(len(content))] ^= 1 << chance.integers(8)
        else:
            del content[chance.integers(len(content)) :]
        path.write_bytes(content)
    check_equal(opened(f"{server.address}/train/", remote=options), local)


def test_the_cache_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = ByteCache(tmp_path, 64_000)
    chance = np.random.default_rng(2)
    values = {n: chance.bytes(1000) for n in range(300)}
    for number, value in values.items():
        cache.put(value, "value", number)
        assert cache.get("value", 0) == values[0]  # in use all the time
        on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert on_disk <= 64_000 + 64_000 // 64 + 1016
    kept = {n for n in values if cache.get("value", n) is not None}
    assert all(cache.get("value", n) == values[n] for n in kept)
    assert {0, 299} <= kept
    assert 50 <= len(kept) <= 64
    cache.put(bytes(100_000), "too large")
    assert cache.get("too large") is None


def test_a_full_disk_ends_the_caching_and_not_the_reading(
    local: ShardSource, server: ObjectServer, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as folder:
        filler = folder / "filler"
        source = opened(
            f"{server.address}/train/", remote=RemoteOptions(cache_folder=folder / "cache")
        )
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        with pytest.warns(UserWarning, match="cannot write to the cache"):
            check_equal(source, local)


# --- processes


def test_a_spawned_process_counts_with_its_parent_and_a_copy_counts_alone(
    local: ShardSource, server: ObjectServer
) -> None:
    source = opened(f"{server.address}/train/", remote=PATIENT)
    before = source.bytes_read
    assert before is not None
    copied = pickle.loads(pickle.dumps(source))
    assert copied.bytes_read == 0
    check_equal(copied, local)
    assert source.bytes_read == before
    process = multiprocessing.get_context("spawn").Process(target=source.encoded_each, args=([3],))
    process.start()
    process.join()
    assert process.exitcode == 0
    _, first, last = range_of(source, 3)
    assert source.bytes_read == before + last - first + 1


def test_requests_never_exceed_the_limit_at_a_time(
    local: ShardSource, server: ObjectServer
) -> None:
    source = opened(f"{server.address}/train/", remote=RemoteOptions(parallel=3))
    running, most = 0, 0

    def fault(request: Request) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        return ""

    original = server.answer

    def answer(request: Request, headers: Any) -> Any:
        nonlocal running
        try:
            return original(request, headers)
        finally:
            running -= 1

    server.fault, server.answer = fault, answer  # type: ignore[method-assign]
    source.encoded_each(list(range(13)) * 5)
    assert 1 <= most <= 3
