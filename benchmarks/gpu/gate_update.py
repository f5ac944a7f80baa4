"""The step of a batch's gates on the device, beside a bare scatter of as many values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from adapruner import ops
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

from .device import Cpu
from .timing import OURS, Case, alternate, claim, prepared, row

SIZES, TINY = (10**9, 10**6), (10**4,)
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


def measure(device: Cpu, n: int, seconds: float) -> dict[str, Any]:
    gates = Gates(n, 0.7, find_method("published"), device.name)
    gates.logits.normal_(generator=device.generator(0))
    gates.set_slope(1.0)
    draw = {"generator": device.generator(3), "device": device.name}
    batches = torch.randint(n, (REPEATS, BATCH), **draw)
    pressure, sample_loss = torch.randn(BATCH, **draw), torch.rand(BATCH, **draw)
    losses = ops.MaskedLoss(sample_loss.mean(), sample_loss, pressure)
    check(gates, batches[0], losses)
    other = torch.zeros(n, device=device.name)
    steps = {
        OURS: [lambda ids=ids: gates.visit(ids, losses) for ids in batches],
        "index_add_": [lambda ids=ids: other.index_add_(0, ids, pressure) for ids in batches],
    }
    ready, failed = prepared(steps, device.captured)
    timings = alternate(device, ready, seconds, repeats=REPEATS)
    found = row(timings, failed, batch=BATCH, graph=True)
    claim(found, "µs in a graph", 1e6 * timings[OURS].median, 20, most=True)
    return found


def cases(device: Cpu, tiny: bool) -> Iterator[Case]:
    for n in TINY if tiny else SIZES:
        if BYTES_A_GATE * n <= device.memory():
            yield Case(f"{n:.0e}", partial(measure, device, n))
