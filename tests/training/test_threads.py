"""Several runs at once, in the threads of one process."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_data import Augmented, blobs, generator_states, network, outcome
from torch import nn

from adapruner import FolderInUseError, fast_prune

SETTINGS: dict[str, Any] = {"epochs": 5, "batch_size": 32, "progress": False}


def run(seed: int, model: nn.Module) -> list[Any]:
    """A run with dropout, whose random numbers come from torch's global generator."""
    return outcome(fast_prune(model, blobs(300, seed=seed), 0.5, seed=seed, **SETTINGS))


def test_eight_runs_at_once_end_as_they_do_alone() -> None:
    # Made before the runs: making a model draws from the global generator too.
    models = [network() for _ in range(8)]
    alone = [run(seed, copy.deepcopy(model)) for seed, model in enumerate(models)]
    before = generator_states()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(8), models))
    assert together == alone
    assert generator_states() == before


def test_augmentation_in_two_threads_has_its_own_seeds() -> None:
    def augmented(seed: int, model: nn.Module) -> list[Any]:
        return outcome(fast_prune(model, Augmented(24), 0.5, seed=seed, **SETTINGS))

    models = [nn.Linear(4, 24, dtype=torch.float64) for _ in range(4)]
    alone = [augmented(seed, copy.deepcopy(model)) for seed, model in enumerate(models)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(augmented, range(4), models)) == alone


def test_one_of_eight_runs_gets_the_folder(tmp_path: Path) -> None:
    x, y = blobs(300)

    def attempt(_: int) -> Any:
        try:
            return fast_prune(nn.Linear(5, 3), (x, y), 0.5, checkpoint_dir=tmp_path, **SETTINGS)
        except FolderInUseError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, range(8)))
    refused = [error for error in found if isinstance(error, FolderInUseError)]
    assert 1 <= len(refused) < 8
    assert all("another thread of this process" in str(error) for error in refused)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors"]


def test_a_run_waits_for_nobody_after_an_error() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError

    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(fast_prune, Broken(5, 3), blobs(60), 0.5, **SETTINGS)
        with pytest.raises(ZeroDivisionError):
            failed.result()
    fast_prune(nn.Linear(5, 3), blobs(60), 0.5, **SETTINGS)
