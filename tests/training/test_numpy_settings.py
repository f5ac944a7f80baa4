"""Settings that are NumPy's numbers: the run is that of Python's, and it can be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import blobs
from torch import nn

from adapruner import Pruner, PruneResult, fast_prune

SETTINGS: dict[str, Any] = {
    "keep_ratio": 0.5,
    "epochs": 4,
    "batch_size": 16,
    "seed": 3,
    "warmup_epochs": 1,
    "num_workers": 0,
    "block_size": 8,
    "learning_rate": 0.25,
    "normalize_loss": True,
}
NUMPY = {"int": np.int64, "float": np.float32, "bool": np.bool_}


def as_numpy(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: NUMPY[type(value).__name__](value) for name, value in settings.items()}


def test_fast_prune(tmp_path: Path) -> None:
    found = []
    for number, settings in enumerate((SETTINGS, as_numpy(SETTINGS))):
        torch.manual_seed(0)
        folder = tmp_path / f"run {number}"
        result = fast_prune(
            nn.Linear(5, 3), blobs(120), progress=False, checkpoint_dir=folder, **settings
        )
        result.save(folder / "kept")
        found.append(PruneResult.load(folder / "kept"))
    one, other = found
    assert torch.equal(one.indices, other.indices)
    assert one.config == other.config
    assert [type(value) for value in one.config.values()] == [
        type(value) for value in other.config.values()
    ]


@pytest.mark.parametrize("name", ["num_samples", "keep_ratio", "epochs", "seed", "explore"])
def test_pruner(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_samples": 40, "keep_ratio": 0.5, "epochs": 2}
    settings |= {"seed": 1, "explore": 0.125}
    results = []
    for changed in (settings, settings | as_numpy({name: settings[name]})):
        pruner = Pruner(**changed)
        while not pruner.finished:
            for ids in pruner.batches(np.int16(8)):
                pruner.weigh(ids % 7 / 4, ids)
            pruner.step(np.float32(0.5), np.float64(0.1))
        pruner.result().save(tmp_path / "kept")
        results.append(PruneResult.load(tmp_path / "kept"))
    assert torch.equal(results[0].indices, results[1].indices)
    assert results[0].config == results[1].config
