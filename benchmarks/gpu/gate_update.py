"""The step of a batch's gates, on the GPU, beside a bare scatter of as many values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timing import OURS, alternate, captured, claim, generator, prepared, row

from adapruner import ops
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

BATCH = 4096
REPEATS = 16  # in one graph, other samples each time
BYTES_A_GATE = 10


def check(gates: Gates, ids: torch.Tensor, losses: ops.MaskedLoss) -> None:
    """Against float64 on the batch's own gates, and the sums of all."""
    unique, place = ids.unique(return_inverse=True)
    before = gates.logits[unique].double()
    s = torch.sigmoid(before)
    total = torch.zeros_like(before).index_add_(0, place, losses.pressure.double())
    gates.visit(ids, losses)
    expected = before - 0.05 * s * (1 - s) * total
    torch.testing.assert_close(gates.logits[unique].double(), expected, rtol=0, atol=1e-6)
    sums = ops.topk_mask(gates.logits, 0, 1.0).sums
    assert sums.tolist() == [gates.integer("gate_sum"), gates.integer("open_count")]


def rows(quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    memory = torch.cuda.get_device_properties(0).total_memory
    for n in (10**6, 10**9):
        if BYTES_A_GATE * n > memory:
            continue
        gates = Gates(n, 0.7, find_method("published"), "cuda")
        gates.logits.normal_(generator=generator(0))
        gates.set_slope(1.0)
        batches = torch.randint(n, (REPEATS, BATCH), generator=generator(3), device="cuda")
        pressure = torch.randn(BATCH, generator=generator(5), device="cuda")
        sample_loss = torch.rand(BATCH, generator=generator(6), device="cuda")
        losses = ops.MaskedLoss(sample_loss.mean(), sample_loss, pressure)
        check(gates, batches[0], losses)
        other = torch.zeros(n, device="cuda")
        steps = {
            OURS: [lambda ids=ids, g=gates, x=losses: g.visit(ids, x) for ids in batches],
            "index_add_": [
                lambda ids=ids, to=other, x=pressure: to.index_add_(0, ids, x) for ids in batches
            ],
        }
        ready, failed = prepared(steps, lambda calls: captured(*calls))
        timings = alternate(ready, 1.0 if quick else 5.0, repeats=REPEATS)
        found = row(timings, failed, batch=BATCH, graph=True)
        claim(found, "µs in a graph", 1e6 * timings[OURS].median, 20, most=True)
        yield f"{n:.0e}", found
        del gates, other, steps, ready
        torch.cuda.empty_cache()
