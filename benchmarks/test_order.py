"""The order of an epoch beside torch.randperm of all samples, filtered by what is kept.

Both give the same kind of thing, the kept samples in a random order; ours in batches, without an
array of all samples.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapruner.pruning import bitmask
from adapruner.pruning.order import epoch_batches

from .inputs import OURS, generator

BATCH = 4096
QUICK = 10_000_000


@pytest.mark.parametrize("share", [1.0, 0.7, 0.1], ids=lambda share: f"keep {share}")
@pytest.mark.parametrize("n", [10**6, 10**7, 10**8], ids=lambda n: f"{n:.0e}")
def test_order(compare, threads, full, n, share):
    if n > QUICK and not full:
        pytest.skip("part of --full")
    kept = torch.rand(n, generator=generator(7)) < share
    mask = bitmask.pack(kept.numpy())

    def ours():
        return [len(batch) for batch in epoch_batches(mask, n, 0, 0, BATCH)]

    def randperm():
        order = torch.randperm(n)
        return order[kept[order]].split(BATCH)

    seen = np.zeros(n, dtype=bool)
    for batch in epoch_batches(mask, n, 0, 0, BATCH):
        seen[batch.numpy()] = True
    np.testing.assert_array_equal(seen, kept.numpy())
    assert sum(ours()) == int(kept.sum())
    compare({OURS: ours, "torch.randperm, filtered": randperm}, least=3)
