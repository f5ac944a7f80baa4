"""Batches of any form go to the model, and one sample alone is no end to a batch norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.training_data import Counted, blobs, check_exact, prune
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import default_collate

from adapruner._util.tensors import to_cpu
from adapruner.training.batches import batch_norms_for, to_device

pytestmark = pytest.mark.usefixtures("seeded")
CPU = torch.device("cpu")


class Pair(NamedTuple):
    image: Tensor
    size: int


def packed() -> PackedSequence:
    return pack_sequence([torch.arange(3.0), torch.arange(2.0)])


MOVES = {"batch": lambda value: to_device(value, CPU), "copy": to_cpu}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_structures_keep_their_types(move: Any) -> None:
    value = {"a": [torch.ones(2), (torch.zeros(1), "x")], "b": Pair(torch.ones(3), 4), "c": None}
    found = move(value)
    assert isinstance(found["a"], list)
    assert type(found["a"][1]) is tuple
    assert type(found["b"]) is Pair
    assert (found["b"].size, found["c"], found["a"][1][1]) == (4, None, "x")
    assert torch.equal(found["b"].image, torch.ones(3))
    sequence = move(packed())
    assert type(sequence) is PackedSequence
    assert torch.equal(sequence.data, packed().data)


def test_a_model_gets_what_the_collate_function_made() -> None:
    seen: set[type] = set()

    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, sequences: PackedSequence) -> Tensor:
            seen.add(type(sequences))
            return self.head(self.rnn(sequences)[1][0])

    def collate(pairs: list[Any]) -> tuple[PackedSequence, Tensor]:
        sequences = [x.repeat(1 + int(y), 1) for x, y in pairs]
        targets = default_collate([y for _, y in pairs])
        return pack_sequence(sequences, enforce_sorted=False), targets

    x, y = blobs(120)
    data = list(zip(x, y.tolist(), strict=True))
    check_exact(prune(data, Lengths(), collate_fn=collate), 72)
    assert seen == {PackedSequence}


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(("samples", "batch_size"), [(9, 2), (31, 1), (33, 4)])
def test_batches_of_one_sample(samples: int, batch_size: int) -> None:
    result = prune(blobs(samples), normed(), batch_size=batch_size)
    check_exact(result, int(0.6 * samples + 0.5))
    assert result.sample_losses is not None
    assert result.sample_losses.isfinite().all()


def test_a_broken_sample_that_leaves_another_alone() -> None:
    class Broken(Counted):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            inputs, target = super().__getitem__(index)
            return torch.cat([inputs, inputs[:1]]) / 10, target

    data = Broken(10, bad=[1, 4])
    with pytest.warns(UserWarning, match="2 of 10 samples cannot be read"):
        result = prune(data, normed(), batch_size=2, keep_ratio=0.5)
    assert len(result.indices) == 5
    assert not set(result.indices.tolist()) & {1, 4}


def test_running_statistics_serve_one_sample_alone() -> None:
    model = normed()
    model(torch.randn(64, 5) * 3)
    one = torch.randn(1, 5)
    norm = model[1]
    mean = norm.running_mean.clone()
    with batch_norms_for(model, 1):
        found = model(one)
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(found, model.eval()(one))
    model.train()
    with batch_norms_for(model, 2):
        model(torch.randn(2, 5))
    assert not torch.equal(norm.running_mean, mean)
    assert all(module.training for module in model.modules())
    assert np.isfinite(found.detach().numpy()).all()
