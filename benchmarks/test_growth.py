"""How a whole run grows with the number of samples: a trivial model, so that the rest is seen.

A row is a run of a few epochs to 0.7 with ``Pruner``, beside the same loop over all samples without
it, in an order by torch.randperm. Both take their batches out of tensors in memory.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import nn
from torch.nn import functional

import adapruner

from .inputs import OURS, generator

EPOCHS, BATCH, FEATURES = 3, 16384, 2
QUICK = 1_000_000


def train(model: nn.Module, x, y, batches, loss_of) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for ids in batches:
        loss = loss_of(model(x[ids]), y[ids].long(), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("n", [10**power for power in range(4, 9)], ids=lambda n: f"{n:.0e}")
def test_growth(benchmark, compare, full, n):
    if n > QUICK and not full:
        pytest.skip("part of --full")
    x = torch.randn(n, FEATURES, generator=generator(1))
    y = (x.sum(1) > 0).to(torch.uint8)
    ending = []

    def pruning():
        model = nn.Linear(FEATURES, 2)
        pruner = adapruner.Pruner(n, keep_ratio=0.7, epochs=EPOCHS)
        ending.append(0.0)
        for _ in range(EPOCHS):
            train(model, x, y, pruner.batches(BATCH), pruner.loss)
            start = time.perf_counter()
            pruner.step()
            ending[-1] += time.perf_counter() - start
        return pruner.result()

    def plain():
        model = nn.Linear(FEATURES, 2)
        for epoch in range(EPOCHS):
            batches = torch.randperm(n, generator=generator(epoch)).split(BATCH)
            train(model, x, y, batches, lambda logits, y, ids: functional.cross_entropy(logits, y))

    # Of the largest, a run of each takes a minute.
    least = 3 if n < 10**8 else 2
    rivals = {OURS: pruning, "without pruning": plain}
    result = compare(rivals, least=least, samples=n, epochs=EPOCHS)
    assert len(result.indices) == int(0.7 * n + 0.5)
    benchmark.extra_info["samples_read"] = result.saved["samples_read"]
    benchmark.extra_info["seconds_ending_epochs"] = statistics.median(ending)
