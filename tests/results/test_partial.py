"""Results of runs that end early: those of a run that was planned to end there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import blobs, frozen

from adapruner import Pruner, PruneResult

N, BATCH = 120, 16


def train(pruner: Pruner, batches: int | None = None) -> None:
    """Give the losses of an epoch, or of its first batches."""
    losses = frozen(N)(pruner.epoch)
    for place, ids in enumerate(pruner.batches(BATCH)):
        if place == batches:
            return
        pruner.weigh(losses[ids], ids)


def run(epochs: int, stop: int, batches: int = 0, **arguments: Any) -> Pruner:
    """A pruner after ``stop`` epochs and some batches of the next one."""
    pruner = Pruner(N, 0.4, epochs, warmup_epochs=1, explore=0, **arguments)
    for _ in range(stop):
        train(pruner)
        pruner.step()
    if batches:
        train(pruner, batches)
    return pruner


def state_of(pruner: Pruner) -> list[Any]:
    state = pruner.state_dict()
    return [
        *(tensor.numpy().tobytes() for tensor in state["gates"].values()),
        *(state[name].numpy().tobytes() for name in ("kept", "read")),
        *(state[name] for name in ("epoch", "history", "controller", "not_finite")),
    ]


@pytest.mark.parametrize("arguments", [{}, {"labels": np.arange(N) % 3}], ids=["plain", "classes"])
@pytest.mark.parametrize(("stop", "batches"), [(1, 2), (3, 0), (3, 1), (3, 100), (5, 2)])
def test_a_partial_result_keeps_the_exact_number_and_changes_nothing(
    stop: int, batches: int, arguments: dict[str, Any]
) -> None:
    pruner = run(8, stop, batches, **arguments)
    before = state_of(pruner)
    result = pruner.result()
    assert result.partial
    assert len(result.indices) == 48
    assert len(result.history) == stop + (batches > 0)
    assert state_of(pruner) == before
    for _ in range(8 - stop):
        train(pruner)
        pruner.step()
    assert not pruner.result().partial


@pytest.mark.parametrize("method", ["sampled", "published"])
def test_after_a_whole_epoch_the_result_is_that_of_a_run_planned_to_end_there(method: str) -> None:
    # With explore=0 and equal schedules until the end, only the last selection differs.
    early = run(8, 4, 100, method=method).result()
    stepped = run(8, 4, 100, method=method)
    stepped.epochs = 5  # the next step is the last
    stepped.step()
    planned = stepped.result()
    assert torch.equal(early.indices, planned.indices)
    assert torch.equal(early.gate_logits, planned.gate_logits)
    names = [name for name in planned.history[-1] if name != "seconds"]
    for name in names:
        assert early.history[-1][name] == planned.history[-1][name], name


def test_what_it_saved_is_counted_by_the_losses_that_were_given() -> None:
    pruner = run(8, 3, 2)
    read = sum(entry["samples_read"] for entry in pruner.history) + 2 * BATCH
    planned = len(np.flatnonzero(pruner.reads()))
    result = pruner.result()
    assert result.saved["samples_read"] == read
    assert result.saved["samples_read_full"] == round((3 + 2 * BATCH / planned) * N)
    last = result.history[-1]
    assert (last["samples_read"], last["samples_skipped"]) == (2 * BATCH, planned - 2 * BATCH)


def test_a_run_in_its_warm_up_has_learned_nothing() -> None:
    for pruner in (run(8, 0), run(8, 0, 2), run(8, 1)):
        with pytest.raises(RuntimeError, match="nothing was learned yet"):
            pruner.result()


def test_a_partial_result_warns_and_survives_a_file(tmp_path: Path) -> None:
    pruner = run(20, 3, 2)
    with pytest.warns(UserWarning, match="ended in epoch 4 of 20, so its result is partial"):
        result = pruner.result()
    result.save(tmp_path / "kept.safetensors")
    again = PruneResult.load(tmp_path / "kept.safetensors")
    assert again.partial
    assert again.warnings == result.warnings
    assert any("partial" in text for text in again.warnings)


def test_samples_that_no_epoch_has_read_are_kept_last() -> None:
    pruner = Pruner(N, 0.4, 8, warmup_epochs=0)
    train(pruner, 5)
    seen = pruner.gates.age == 0
    with pytest.warns(UserWarning, match="never given to a loss are kept last"):
        result = pruner.result()
    assert int(seen.sum()) == 5 * BATCH
    assert bool(seen[result.indices].all())


def test_a_class_that_is_nearly_gone_is_named() -> None:
    x, y = blobs(100)
    y = torch.cat([torch.zeros(90, dtype=torch.int64), torch.full((10,), 7)])
    pruner = Pruner(100, 0.5, 12, warmup_epochs=0, method="published")
    pruner.loader((x, y))
    losses = torch.where(y == 7, 9.0, 0.5)
    while not pruner.finished:
        for ids in pruner.batches(BATCH):
            pruner.weigh(losses[ids], ids)
        pruner.step()
    with pytest.warns(UserWarning, match="1 of 2 classes keep fewer than 5 samples, and 1 of them"):
        result = pruner.result()
    assert not (y[result.indices] == 7).any()
    assert "classes 7." in result.warnings[-1]
