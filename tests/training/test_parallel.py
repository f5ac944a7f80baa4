"""fast_prune and the command on many ranks: DDP, FSDP2, faults, checkpoints, torchrun."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import make_pictures
from support.rank_cases import (
    StopsAfter,
    accumulated,
    failing,
    held_digits,
    long_run,
    not_finite,
    small,
)
from support.ranks import Failed, Pool

from adapruner import PruneResult
from adapruner.training import CHECKPOINT_NAME

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)
# Runs that are killed at a random moment; some hundreds show more.
KILLS = int(os.environ.get("ADAPRUNER_KILLS", "3"))


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


def test_steps_with_inputs_that_are_not_finite_are_left_out_on_all_ranks(pool: Pool) -> None:
    results = pool.run(not_finite, 2)
    check_same(results)
    assert [index for index, _ in results[0]["unreadable"]] == [7, 90]
    assert all(torch.isfinite(weight).all() for weight in results[0]["weights"].values())


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


def test_6_and_7_killed_ranks_go_on_from_the_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path, kill_after: float | None) -> list[Any]:
        ranks = Pool(2)
        try:
            if kill_after is None:
                return ranks.run(long_run, 2, str(folder))
            ranks.begin(long_run, 2, str(folder))
            time.sleep(kill_after)
            ranks.kill(draw.randrange(2))
            return ranks.results()
        finally:
            ranks.close()

    draw = random.Random(int(os.environ.get("ADAPRUNER_KILL_SEED", "0")))
    started = time.perf_counter()
    expected = run(tmp_path / "never", None)
    seconds = time.perf_counter() - started
    killed = runs = 0
    while killed < KILLS:
        folder = tmp_path / f"killed {runs}"
        for _ in range(draw.randint(1, 3)):
            results = run(folder, draw.uniform(0, seconds))
            killed += any(not isinstance(result, dict) for result in results)
        check_same([*expected, *run(folder, None)])
        assert os.listdir(folder) == [CHECKPOINT_NAME]
        shutil.rmtree(folder)
        runs += 1
    print(f"{killed} runs were killed, and {runs} were resumed to their ends")


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
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "adapruner", "prune", str(folder), "--out", str(out), "--keep-ratio", "0.5"),
        *("--epochs", "2", "--model", "resnet18", "--image-size", "16", "--device", "cpu"),
        *("--batch-size", "8", "--loader", "torch"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = PruneResult.load(out)
    assert len(result.indices) == 45
    assert (result.config["ranks"], result.config["parallel"]) == (2, "DDP")
    assert done.stdout.count("kept 45 of 90 images") == 1
    assert done.stderr.count("epoch   2/2") == 1
    assert np.unique(result.indices.numpy()).size == 45
