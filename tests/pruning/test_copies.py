"""Copies of a pruner: pickled, saved by torch or copied, they go on as the original does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.training_data import frozen

from adapruner import PrunedBatchSampler, Pruner

N = 60


def saved_by_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch": saved_by_torch,
    "copy": copy.deepcopy,
}


def epoch(pruner: Pruner) -> None:
    losses = frozen(N)(pruner.epoch)
    for ids in pruner.batches(7):
        pruner.weigh(losses[ids], ids)
    pruner.step()


@pytest.mark.parametrize("method", ["sampled", "published"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_copy_ends_as_the_original(stop: int, way: str, method: str) -> None:
    pruner = Pruner(N, 0.4, 6, normalize_loss=True, method=method)
    for _ in range(stop):
        epoch(pruner)
    copied = WAYS[way](pruner)
    before = {name: tensor.clone() for name, tensor in copied.gates.state_dict().items()}
    while not pruner.finished:
        epoch(pruner)
    after = copied.gates.state_dict()
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)
    while not copied.finished:
        epoch(copied)
    one, other = pruner.result(), copied.result()
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.gate_logits, other.gate_logits)
    assert copied.gates.real("slope") == pruner.gates.real("slope")


@pytest.mark.parametrize("way", WAYS)
def test_a_sampler_is_copied_with_its_pruner(way: str) -> None:
    pruner = Pruner(N, 0.4, 3)
    sampler = PrunedBatchSampler(pruner, 7)
    epoch(pruner)
    copied = WAYS[way]({"pruner": pruner, "sampler": sampler})
    epoch(pruner)
    expected = list(sampler)
    epoch(copied["pruner"])
    assert list(copied["sampler"]) == expected
