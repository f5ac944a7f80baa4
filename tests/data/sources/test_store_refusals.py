"""Object stores that refuse, stay away, are slow, or have secrets in their addresses."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.object_store import ObjectServer, object_server
from support.sample_data import to_tensor
from support.shard_files import make_shards

from adapruner import Pruner
from adapruner._util.addresses import check_address
from adapruner.data import RemoteOptions, as_source
from adapruner.errors import UnreachableError

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

HASTY = RemoteOptions(attempts=1, timeout=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_shards(tmp_path / "train", (5, 1, 7))
    return tmp_path / "train"


@pytest.fixture
def server(folder: Path) -> Iterator[ObjectServer]:
    objects = {f"/train/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}
    with object_server(objects=objects) as running:
        yield running


def look_again(source: Any) -> None:
    """Let the store look its shards up again before the next read."""
    for seen in source.store._seen.values():
        seen.when -= 1e6


@pytest.mark.parametrize("reads", [True, False], ids=["a read", "a look-up"])
@pytest.mark.parametrize("status", ["401", "403"])
def test_a_store_that_refuses_in_a_run_excludes_nothing(
    server: ObjectServer, status: str, reads: bool
) -> None:
    source = as_source(f"{server.address}/train/", remote=HASTY, transform=to_tensor)
    pruner = Pruner(13, 0.5, 2)
    if not reads:
        look_again(source)
    server.fault = lambda request: status if (request.range is not None) == reads else ""
    with pytest.raises(UnreachableError, match=r"refuses access to .*credentials may have expired"):
        next(iter(pruner.loader(source, 4)))
    assert pruner.unreadable == []
    server.fault = lambda request: ""
    assert sum(len(ids) for _, _, ids in pruner.loader(source, 4)) == 13


def test_a_store_that_goes_away_before_versions_are_looked_up_excludes_nothing(
    folder: Path,
) -> None:
    objects = {f"/train/{path.name}": path.read_bytes() for path in folder.glob("*.tar")}
    with object_server(objects=objects) as server:
        source = as_source(f"{server.address}/train/", remote=HASTY, transform=to_tensor)
    source = pickle.loads(pickle.dumps(source))  # as in a worker, without open connections
    look_again(source)
    pruner = Pruner(13, 0.5, 2)
    with pytest.raises(UnreachableError, match="1 attempts failed"):
        next(iter(pruner.loader(source, 4)))
    assert pruner.unreadable == []
    with pytest.raises(UnreachableError, match="1 attempts failed"):
        as_source(f"{server.address}/train/train-000.tar", remote=HASTY)


def test_what_is_forbidden_from_the_start_is_named(server: ObjectServer) -> None:
    server.fault = lambda request: "403"
    with pytest.raises(PermissionError, match=r"refuses access to .*/train/train-000\.tar"):
        as_source(f"{server.address}/train/train-000.tar", remote=HASTY)


def test_an_index_that_may_not_be_listed_counts_as_missing(
    server: ObjectServer, folder: Path
) -> None:
    server.fault = lambda request: "403" if request.path.endswith(".idx") else ""
    source = as_source(f"{server.address}/train/", remote=HASTY)
    assert source.targets.tolist() == as_source(folder).targets.tolist()


def test_the_time_of_a_request_holds_for_look_ups_too(server: ObjectServer) -> None:
    server.pause = 3.0
    server.fault = lambda request: "slow" if request.range is None else ""
    with pytest.raises(UnreachableError, match="1 attempts failed"):
        as_source(
            f"{server.address}/train/train-000.tar", remote=RemoteOptions(attempts=1, timeout=0.2)
        )


def test_a_date_is_a_version(server: ObjectServer) -> None:
    server.etags, server.date = False, "Tue, 01 Dec 2026 00:00:00 GMT"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = as_source(f"{server.address}/train/", remote=HASTY).fingerprint()
        server.date = "Wed, 02 Dec 2026 00:00:00 GMT"
        assert as_source(f"{server.address}/train/", remote=HASTY).fingerprint() != first


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://me:hunter2@host/train/", "no password, .*found http://…@host/train/"),
        ("ftp://me:p@hunter2@host/a.tar", "no password, .*found ftp://…@host/a.tar"),
        ("ftp://:hunter2@host/a.tar", "no password, .*found ftp://…@host/a.tar"),
        ("https://host/a.tar?X-Sig=hunter2&b=c", r"no query, .*found https://host/a\.tar\?…"),
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_shown(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        as_source(address, remote=HASTY)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["s3://bucket/train-?-lr=3.tar", "github://org:repo@main/0.tar", "ftp://me@host/a"]
)
def test_addresses_without_a_secret_pass(address: str) -> None:
    check_address(address)


def test_an_address_of_indexes_has_no_secret_either(server: ObjectServer) -> None:
    folder = server.address.replace("://", "://me:hunter2@")
    with pytest.raises(ValueError, match="no password") as caught:
        as_source(f"{server.address}/train/", remote=HASTY, index_folder=folder)
    assert "hunter2" not in str(caught.value)


def test_a_sample_that_is_twice_in_a_batch_does_not_end_the_cache(
    server: ObjectServer, tmp_path: Path
) -> None:
    options = RemoteOptions(cache_folder=tmp_path / "cache")
    source = as_source(f"{server.address}/train/", remote=options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            twice = source.encoded_each([3] * 16)
            assert twice == [source.encoded(3)] * 16
            for path in (tmp_path / "cache").rglob("*"):
                if path.is_file():
                    path.unlink()
