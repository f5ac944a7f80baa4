"""fast_prune and the command on many ranks: DDP, FSDP2, faults, checkpoints, torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import rank_training
from support.object_store import object_server
from support.pictures import make_pictures
from support.rank_cases import Dataset, plain
from support.rank_training import (
    StopsAfter,
    accumulated,
    failing,
    fast,
    held_digits,
    not_finite,
    remote,
    small,
    tensor_parallel,
    with_checkpoints,
)
from support.ranks import Failed, Pool
from support.shard_files import make_shards

from adapruner import PruneResult
from adapruner.training import CHECKPOINT_NAME
from adapruner.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)

needs_dali = pytest.mark.skipif(find_spec("nvidia.dali") is None, reason="needs DALI")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    ranks = Pool(2)
    yield ranks
    ranks.close()


@pytest.fixture
def fresh() -> Iterator[Any]:
    """Makes pools for cases that break them."""
    made: list[Pool] = []

    def make(size: int) -> Pool:
        made.append(Pool(size))
        return made[-1]

    yield make
    for ranks in made:
        ranks.close()


def check_same(results: list[dict[str, Any]]) -> None:
    """All ranks have the same result and the same weights."""
    for name in ("indices", "history", "unreadable", "config"):
        assert all(result[name] == results[0][name] for result in results), name
    for result in results:
        assert torch.equal(result["scores"], results[0]["scores"])
        for name, weight in result["weights"].items():
            assert torch.equal(weight, results[0]["weights"][name]), name


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program on two ranks of ``torchrun``, in ``folder``."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", *arguments),
        ],
        capture_output=True,
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        # Without it, restarted ranks may find the addresses of the killed ones (pytorch#135712).
        | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=folder,
    )


WAYS = {
    "plain": "DDP",
    "DDP of the caller": "DDP",
    "compiled DDP": "DDP",
    "FSDP2": "FSDP2",
}


@pytest.mark.parametrize("way", WAYS)
def test_12_and_1_models_of_all_kinds_train_like_in_one_process(pool: Pool, way: str) -> None:
    pytest.importorskip("sklearn")
    results = pool.run(held_digits, 2, way, None)
    check_same(results)
    assert results[0]["config"]["parallel"] == WAYS[way]
    one = held_digits(None, "plain", None)
    assert len(results[0]["indices"]) == len(one["indices"]) == 600
    assert [e["samples_read"] for e in results[0]["history"]] == [
        e["samples_read"] for e in one["history"]
    ]
    both = set(results[0]["indices"]) & set(one["indices"])
    assert len(both) > 500  # a random set would share 300
    assert abs(results[0]["accuracy"] - one["accuracy"]) < 0.06


def test_12_accumulation_with_no_sync_trains_like_one_process(pool: Pool) -> None:
    expected = accumulated(None)
    for found in pool.run(accumulated, 2):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_8_unreadable_samples_are_known_to_all_ranks_and_listed_once(pool: Pool) -> None:
    errors: dict[int, BaseException] = {i: OSError(f"torn {i}") for i in (3, 4, 50, 111)}
    expected = small(None, errors, count=200)
    results = pool.run(small, 2, errors, count=200)
    check_same(results)
    assert results[0]["unreadable"] == expected["unreadable"]
    assert [index for index, _ in results[0]["unreadable"]] == [3, 4, 50, 111]
    assert not set(results[0]["indices"]) & set(errors)
    # No rank reads them again after the epoch in which they were found.
    assert sum(result["reads"] for result in results)[list(errors)].tolist() == [1, 1, 1, 1]


def test_8_a_rank_whose_whole_share_is_unreadable_goes_on(pool: Pool) -> None:
    errors: dict[int, BaseException] = {0: OSError("torn")}
    check_same(pool.run(small, 2, errors, count=30, global_batch=2, keep_ratio=0.8))


@pytest.mark.parametrize(("count", "size"), [(1, 4), (2, 64), (3, 2), (5, 4)])
def test_1_more_ranks_than_samples_of_a_batch(pool: Pool, count: int, size: int) -> None:
    settings = {"count": count, "global_batch": size, "keep_ratio": 1.0, "epochs": 2}
    results = pool.run(small, 2, {}, **settings)
    check_same(results)
    one = small(None, {}, **settings)
    assert results[0]["indices"] == one["indices"]
    for name, weight in one["weights"].items():
        torch.testing.assert_close(results[0]["weights"][name], weight, rtol=1e-3, atol=1e-5)


def test_9_held_out_samples_are_evaluated_in_shares(pool: Pool) -> None:
    results = pool.run(small, 2, {}, count=630)
    one = small(None, {}, count=630)
    check_same(results)
    for ours, theirs in zip(results[0]["history"], one["history"], strict=True):
        assert ours["samples_evaluated"] == theirs["samples_evaluated"] == 31
        assert float(ours["validation_loss"]) == pytest.approx(float(theirs["validation_loss"]))


@pytest.mark.parametrize("sharded", [False, True])
def test_steps_with_inputs_that_are_not_finite_are_left_out_on_all_ranks(
    pool: Pool, sharded: bool
) -> None:
    results = pool.run(not_finite, 2, sharded)
    check_same(results)
    assert [index for index, _ in results[0]["unreadable"]] == [7, 90]
    assert all(torch.isfinite(weight).all() for weight in results[0]["weights"].values())


@pytest.mark.parametrize(
    ("loader", "workers"), [("torch", 0), ("torch", 2), pytest.param("dali", 1, marks=needs_dali)]
)
def test_10_the_result_counts_the_bytes_that_all_ranks_and_their_workers_fetched(
    pool: Pool, tmp_path: Path, loader: str, workers: int
) -> None:
    pytest.importorskip("aiohttp")
    shards = make_shards(tmp_path, (20, 12, 16))
    with object_server(objects={f"/{path.name}": path.read_bytes() for path in shards}) as server:
        address = f"{server.address}/train-{{000..002}}.tar"
        found = pool.run(remote, 2, address, loader=loader, num_workers=workers)
        assert [total for total, _ in found] == [server.sent] * 2
        assert all(0 < own < server.sent for _, own in found)


# --- faults

FAULTS = {
    "label": "IndexError: target.* must be a class in",
    "sample": "UnreadableSampleError: sample .* cannot be read: OSError: torn file",
    "interrupt": "KeyboardInterrupt: ",
    "disk": "OSError: .*No space left on device",
}


@pytest.mark.parametrize("what", FAULTS)
def test_6_an_error_of_one_rank_ends_all_and_is_named(
    fresh: Any, tmp_path: Path, what: str
) -> None:
    rank = 0 if what == "disk" else 1
    ranks = fresh(3)
    ranks.begin(failing, 3, rank, what, str(tmp_path))
    for place, result in enumerate(ranks.results()):
        assert isinstance(result, Failed)
        if place == rank:
            assert re.match(FAULTS[what], f"{result.kind}: {result.message}"), result.trace
        else:
            assert result.kind == "RankError"
            named = f"rank {rank} failed: {FAULTS[what]}"
            assert re.match(named, result.message), result.trace


def test_6_and_7_torchrun_starts_all_ranks_again_and_the_run_ends_with_the_same_bits(
    pool: Pool, tmp_path: Path
) -> None:
    undisturbed, restarted = tmp_path / "undisturbed", tmp_path / "restarted"
    pool.run(with_checkpoints, 2, str(undisturbed), StopsAfter(-1))
    # Rank 0 is killed, which holds the lock of the folder.
    arguments = ("--max-restarts=1", rank_training.__file__, str(restarted))
    done = torchrun(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    assert [entry.name for entry in restarted.iterdir()] == [CHECKPOINT_NAME]
    expected, found = (plain(load_checkpoint(folder)) for folder in (undisturbed, restarted))
    assert found == expected


def test_7_four_ranks_with_fsdp2_go_on_to_the_same_bits(fresh: Any, tmp_path: Path) -> None:
    first, second = fresh(4), fresh(4)
    first.begin(with_checkpoints, 4, str(tmp_path / "resumed"), StopsAfter(24), sharded=True)
    assert all(result.kind == "KeyboardInterrupt" for result in first.results())
    resumed, undisturbed = (
        second.run(with_checkpoints, 4, str(tmp_path / folder), StopsAfter(-1), sharded=True)
        for folder in ("resumed", "undisturbed")
    )
    check_same([*undisturbed, *resumed])


def test_7_ranks_that_share_layers_write_one_checkpoint_and_go_on(
    fresh: Any, tmp_path: Path
) -> None:
    first, second = fresh(4), fresh(4)
    first.begin(tensor_parallel, 4, str(tmp_path / "resumed"), StopsAfter(24))
    assert all(result.kind == "KeyboardInterrupt" for result in first.results())
    resumed, undisturbed = (
        second.run(tensor_parallel, 4, str(tmp_path / folder), StopsAfter(-1))
        for folder in ("resumed", "undisturbed")
    )
    check_same([*undisturbed, *resumed])
    alone = fast(None, Dataset(300), optimizer=StopsAfter(-1))
    assert len(set(alone["indices"]) & set(resumed[0]["indices"])) > 140


@pytest.mark.parametrize("way", ["plain", "FSDP2"])
def test_7_a_checkpoint_goes_on_at_another_number_of_ranks(
    pool: Pool, tmp_path: Path, way: str
) -> None:
    pytest.importorskip("sklearn")
    settings = {"epochs": 4, "optimizer": StopsAfter(-1)}
    never = pool.run(held_digits, 2, way, None, **settings)
    # One process is interrupted in the second epoch; two ranks go on.
    with pytest.raises(KeyboardInterrupt):
        held_digits(None, "plain", str(tmp_path), epochs=4, optimizer=StopsAfter(30))
    results = pool.run(held_digits, 2, way, str(tmp_path), **settings)
    check_same(results)
    assert [entry["epoch"] for entry in results[0]["history"]] == [0, 1, 2, 3]
    both = set(results[0]["indices"]) & set(never[0]["indices"])
    assert len(both) > 500
    again = held_digits(None, "plain", str(tmp_path), **settings)
    assert again["indices"] == results[0]["indices"]  # a finished run gives its result at once
    for name, weight in again["weights"].items():
        assert torch.equal(weight, results[0]["weights"][name]), name


# --- the command


def test_10_torchrun_writes_one_result_and_one_summary(tmp_path: Path) -> None:
    for package in ("timm", "torchvision"):
        pytest.importorskip(package)
    folder = make_pictures(tmp_path / "images", (40, 30, 20))
    out = tmp_path / "kept.safetensors"
    done = torchrun(
        *("-m", "adapruner", "prune", str(folder), "--out", str(out), "--keep-ratio", "0.5"),
        *("--epochs", "2", "--model", "resnet18", "--image-size", "16", "--device", "cpu"),
        *("--batch-size", "8", "--loader", "torch"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = PruneResult.load(out)
    assert len(result.indices) == 45
    assert (result.config["ranks"], result.config["parallel"]) == (2, "DDP")
    assert done.stdout.count("kept 45 of 90 images") == 1
    assert done.stderr.count("epoch   2/2") == 1
    assert np.unique(result.indices.numpy()).size == 45
