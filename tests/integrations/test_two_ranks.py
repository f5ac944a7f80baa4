"""Trainers of other libraries on two ranks: the run of one process with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import trainers_on_ranks

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(trainers_on_ranks.__file__)


def on_two_ranks(kinds: str, folder: Path, launches_itself: bool = False) -> list[dict[str, Any]]:
    """What each rank of each kind of run did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    given = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
    given["MASTER_ADDR"] = "127.0.0.1"
    ranks = [{}]
    if not launches_itself:
        ranks = [{"WORLD_SIZE": "2", "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(2)]
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kinds, str(folder)],
            env=given | rank,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(errors)
    name = kinds.replace(",", "-")
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def check(kind: str, found: list[dict[str, Any]], folder: Path) -> None:
    one, other = (rank[kind] for rank in found)
    alone = trainers_on_ranks.RUNS[kind](1, folder)
    for rank in (one, other):
        assert {name: rank[name] for name in ("kept", "reads", "steps")} == {
            name: alone[name] for name in ("kept", "reads", "steps")
        }
    assert len(one["batches"]) == len(other["batches"]) == len(alone["batches"])
    for a, b, whole in zip(one["batches"], other["batches"], alone["batches"], strict=True):
        # A rank whose share of a last batch is empty gets a sample that counts for nothing.
        assert sorted({*a, *b}) == sorted(whole)


def test_trainer_and_accelerate_on_two_ranks_are_as_alone(tmp_path: Path) -> None:
    for package in ("transformers", "accelerate", "datasets"):
        pytest.importorskip(package, reason=f"needs {package}")
    found = on_two_ranks("accelerate,trainer", tmp_path)
    for kind in ("accelerate", "trainer"):
        check(kind, found, tmp_path)
    one, other = (rank["accelerate"] for rank in found)
    assert one["gathered"] == other["gathered"]
    parts = zip(one["batches"], other["batches"], strict=True)
    assert one["gathered"] == [[*a, *b] for a, b in parts]


def test_lightning_on_two_ranks_is_as_alone(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch", reason="needs lightning")
    check("lightning", on_two_ranks("lightning", tmp_path, launches_itself=True), tmp_path)
