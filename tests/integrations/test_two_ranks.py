"""Trainers of other libraries on two ranks: the run of one process with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import trainers_on_ranks
from support.processes import run_ranks

SCRIPT = trainers_on_ranks.__file__


def on_two_ranks(kinds: str, folder: Path, launches_itself: bool = False) -> list[dict[str, Any]]:
    """What each rank of each kind of run did."""
    run_ranks(SCRIPT, kinds, str(folder), folder=folder, ranks=None if launches_itself else 2)
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
