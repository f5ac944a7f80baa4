"""The step of a batch's gates, O(B), beside optimisers of torch on a mask of N parameters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from adapruner import ops
from adapruner.ops import reference

from .inputs import OURS, generator, make_gates

BATCH = 1024
QUICK = 10_000_000


@pytest.mark.parametrize("pool", [1024, 1], ids=["other samples each time", "the same ones"])
@pytest.mark.parametrize("n", [10**4, 10**6, 10**7, 10**8], ids=lambda n: f"{n:.0e}")
def test_gate_update(compare, threads, full, n, pool):
    """Other samples at each call, as in training: no cache holds them. The same: the work alone."""
    if n > QUICK and not full:
        pytest.skip("part of --full")
    gates = make_gates(n)
    batches = torch.randint(n, (pool, BATCH), generator=generator(3))
    pressure = torch.randn(BATCH, generator=generator(5))
    losses = ops.MaskedLoss(torch.zeros(()), torch.rand(BATCH, generator=generator(6)), pressure)
    check(gates, batches[0], losses)

    dense = torch.zeros(n, requires_grad=True)
    dense_sgd = torch.optim.SGD([dense], lr=0.05)
    embedding = torch.nn.Embedding(n, 1, sparse=True)
    sparse_sgd = torch.optim.SGD(embedding.parameters(), lr=0.05)

    def dense_step(ids):
        dense_sgd.zero_grad()
        (torch.sigmoid(dense[ids]) * pressure).sum().backward()
        dense_sgd.step()

    def sparse_step(ids):
        sparse_sgd.zero_grad()
        (torch.sigmoid(embedding(ids).squeeze(1)) * pressure).sum().backward()
        sparse_sgd.step()

    def in_turns(step):
        drawn = itertools.cycle(batches)
        return lambda: step(next(drawn))

    steps = {
        OURS: lambda ids: gates.visit(ids, losses),
        "dense SGD": dense_step,
        "sparse embedding, SGD": sparse_step,
    }
    compare({name: in_turns(step) for name, step in steps.items()})


def check(gates, ids, losses) -> None:
    """Against the reference: the gates, and that the sums are still those of all gates."""
    unique, first = np.unique(ids.numpy(), return_index=True)
    before = gates.logits[unique].double()
    oracle = reference.ReferenceGates(gates.logits[ids], keep_ratio=0.7, slope=1.0)
    s = oracle.gates[torch.from_numpy(first)]
    place = torch.from_numpy(np.searchsorted(unique, ids.numpy()))
    total = torch.zeros(len(unique), dtype=torch.float64)
    total.index_add_(0, place, losses.pressure.double())
    gates.visit(ids, losses)
    expected = before - 0.05 * s * (1 - s) * total
    torch.testing.assert_close(gates.logits[unique].double(), expected, rtol=0, atol=1e-6)
    sums = ops.topk_mask(gates.logits, 0, 1.0).sums
    assert sums.tolist() == [gates.integer("gate_sum"), gates.integer("open_count")]
