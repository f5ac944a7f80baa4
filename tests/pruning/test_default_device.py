"""torch's default device does not matter for gates and data on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapruner import Pruner, PruneResult, fast_prune
from adapruner.pruning import bitmask

N = 203
X = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, N)


def linear() -> nn.Module:
    """The same small network every time."""
    model = nn.Linear(5, 3, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    return model


def own_loop(**settings: Any) -> tuple[PruneResult, list[Tensor]]:
    """The result of the user's own loop, and the ids of its batches."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    pruner = Pruner(N, 0.5, 4, device="cpu", **settings)
    loader = pruner.loader((X, Y), batch_size=32)
    seen: list[Tensor] = []
    while not pruner.finished:
        for number, (inputs, targets, ids) in enumerate(loader):
            seen.append(ids)
            given = [ids, ids.numpy(), ids.tolist()][number % 3]
            loss = pruner.loss(model(inputs), targets, given)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (held_out := settings.get("held_out")) is not None:
            pruner.observe(torch.ones(len(held_out), device="cpu"), held_out)
        pruner.exclude([(pruner.epoch, "gone")])
        seen += list(pruner.batches(50))
        pruner.step(1.0, 0.1)
    return pruner.result(), seen


@pytest.mark.parametrize(
    "settings",
    [{}, {"labels": Y}, {"held_out": np.arange(0, N, 9), "method": "published"}],
    ids=["plain", "classes", "published, held out"],
)
def test_a_loop_of_ones_own(settings: dict[str, Any]) -> None:
    expected, order = own_loop(**settings)
    with torch.device("meta"):  # reading a value of this device is an error
        result, seen = own_loop(**settings)
        assert torch.equal(result.kept, expected.kept)
    assert torch.equal(result.indices, expected.indices)
    assert torch.equal(result.gate_logits, expected.gate_logits)
    assert len(seen) == len(order)
    assert all(torch.equal(a, b) for a, b in zip(seen, order, strict=True))


@pytest.mark.parametrize("balance", [None, "class"])
def test_fast_prune(balance: str | None) -> None:
    inputs = X.copy()
    inputs[7] = np.nan
    found = []
    for device in ("cpu", "meta"):
        broken = pytest.warns(UserWarning, match="sample 7")
        left_out = pytest.warns(UserWarning, match="steps left out")
        with torch.device(device), broken, left_out:
            found.append(fast_prune(linear(), (inputs, Y), 0.5, 4, balance=balance, progress=False))
    one, other = found
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.gate_logits, other.gate_logits)


@pytest.mark.parametrize("num_samples", [1, 8, 203])
def test_masks_are_on_the_cpu(num_samples: int) -> None:
    with torch.device("meta"):
        full = bitmask.full(num_samples)
        packed = bitmask.pack_pieces(num_samples, lambda begin, end: np.ones(end - begin, bool))
        assert torch.equal(bitmask.indices(full), bitmask.indices(packed))
        assert bitmask.indices(full).tolist() == list(range(num_samples))
