"""The public samplers: any DataLoader reads the selection, and the plan is what happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import frozen
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from adapruner import PrunedBatchSampler, PrunedSampler, Pruner, with_ids

N = 203
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "held out": {"held_out": np.arange(0, N, 9)},
    "classes": {"labels": np.arange(N) % 3, "warmup_epochs": 3},
    "published": {"method": "published", "warmup_epochs": 0, "explore": 0.2},
    "all kept": {"keep_ratio": 1.0},
}


def pruner_of(settings: dict[str, Any], epochs: int = 7) -> Pruner:
    return Pruner(N, settings.get("keep_ratio", 0.4), epochs, **without_ratio(settings))


def without_ratio(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "keep_ratio"}


def end_epoch(pruner: Pruner) -> None:
    """Visit what the epoch reads, with given losses, and step."""
    losses = frozen(N)(pruner.epoch)
    for ids in torch.from_numpy(np.flatnonzero(pruner.reads())).split(16):
        pruner.weigh(losses[ids], ids)
    if pruner.selection.held_out is not None:
        held_out = torch.arange(0, N, 9)
        pruner.observe(losses[held_out], held_out)
    pruner.step()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_samplers_give_what_the_epoch_reads_in_the_order_of_batches(
    settings: dict[str, Any],
) -> None:
    pruner = pruner_of(settings)
    single, batched = PrunedSampler(pruner), PrunedBatchSampler(pruner, 16)
    while not pruner.finished:
        expected = [ids.tolist() for ids in pruner.batches(16)]
        order = list(single)
        assert sorted(order) == np.flatnonzero(pruner.reads()).tolist()
        assert order == [index for batch in expected for index in batch]
        assert list(batched) == expected
        assert (len(single), len(batched)) == (len(order), len(expected))
        single.set_epoch(pruner.epoch)
        end_epoch(pruner)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_plan_is_what_the_run_reads(settings: dict[str, Any], drop_last: bool) -> None:
    pruner = pruner_of(settings)
    single, batched = PrunedSampler(pruner), PrunedBatchSampler(pruner, 16, drop_last)
    planned = pruner.planned_reads()
    plans = [(single.planned_samples(), batched.planned_batches())]
    samples = batches = 0
    while not pruner.finished:
        samples, batches = samples + len(list(single)), batches + len(list(batched))
        end_epoch(pruner)
        assert pruner.planned_reads() == planned
        plans.append((single.planned_samples(), batched.planned_batches()))
    assert [entry["samples_read"] for entry in pruner.history] == planned
    assert set(plans) == {(samples, batches)}


def test_a_pause_changes_the_plan_for_the_epochs_to_come() -> None:
    pruner = Pruner(N, 0.4, 6)
    planned = pruner.planned_reads()
    losses = frozen(N)(0)
    for validation in (1.0, 1.0, 9.0, 1.0):
        for ids in pruner.batches(16):
            pruner.weigh(losses[ids], ids)
        pruner.step(validation)
    later = pruner.planned_reads()
    assert later[:3] == planned[:3]
    assert later[3] > planned[3]
    assert len(later) == len(planned) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_any_dataloader_reads_by_them(workers: int) -> None:
    dataset = with_ids(TensorDataset(torch.arange(N) * 2, torch.arange(N) % 3))
    pruner = Pruner(N, 0.4, 3)
    forms = {
        "sampler": {"batch_size": 16, "sampler": PrunedSampler(pruner)},
        "batch sampler": {"batch_sampler": PrunedBatchSampler(pruner, 16)},
        "torch's batches": {"batch_sampler": BatchSampler(PrunedSampler(pruner), 16, True)},
    }
    loaders = {name: DataLoader(dataset, num_workers=workers, **f) for name, f in forms.items()}
    while not pruner.finished:
        expected = list(pruner.batches(16))
        for name, loader in loaders.items():
            read = list(loader)
            assert len(read) == len(loader)
            for inputs, targets, ids in read:
                assert torch.equal(inputs, ids * 2)
                assert torch.equal(targets, ids % 3)
            whole = torch.cat([ids for _, _, ids in read])
            every = torch.cat(expected)
            assert torch.equal(whole, every[: len(every) // 16 * 16] if name[0] == "t" else every)
        end_epoch(pruner)


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("kind", ["single", "batched"])
def test_a_saved_place_is_gone_on_from(kind: str, taken: int) -> None:
    def sampler(pruner: Pruner) -> PrunedSampler | PrunedBatchSampler:
        if kind == "single":
            return PrunedSampler(pruner, block_size=10)
        return PrunedBatchSampler(pruner, 16, block_size=10)

    pruner = Pruner(N, 0.4, 3)
    end_epoch(pruner)
    whole, stopped = list(sampler(pruner)), sampler(pruner)
    iterator = iter(stopped)
    for _ in range(taken):
        next(iterator)
    again = sampler(pruner)
    again.load_state_dict(stopped.state_dict())
    assert list(again) == whole[taken:]
    assert list(again) == whole


def test_an_epoch_without_a_step_is_refused() -> None:
    pruner = Pruner(N, 0.4, 3)
    sampler = PrunedBatchSampler(pruner, 16)
    sampler.set_epoch(0)
    with pytest.raises(ValueError, match=r"the epoch of the pruner, 0; found 1. Call pruner.step"):
        sampler.set_epoch(1)
    end_epoch(pruner)
    sampler.set_epoch(1)


def test_a_state_of_another_epoch_or_setting_is_refused() -> None:
    pruner = Pruner(N, 0.4, 3)
    state = PrunedBatchSampler(pruner, 16).state_dict()
    with pytest.raises(ValueError, match="expected batch_size 8, found 16"):
        PrunedBatchSampler(pruner, 8).load_state_dict(state)
    late = PrunedBatchSampler(pruner, 16)
    late.load_state_dict(state)
    end_epoch(pruner)
    with pytest.raises(ValueError, match="expected 1, found 0; load two states"):
        list(late)
