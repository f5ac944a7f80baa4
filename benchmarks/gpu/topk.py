"""Exact top-k to a bit mask beside torch.topk, torch.kthvalue and reading the values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from adapruner import ops

from .device import Cpu
from .timing import OURS, Case, alternate, claim, prepared, row, times_ours, warmed

SIZES, TINY = (10**9, 10**8, 10**7), (10**5, 10**4)
SHARE = 0.7
READ, TOPK, KTHVALUE = "reading the values", "torch.topk", "torch.kthvalue"
BYTES_A_VALUE = 40  # what the rivals take, in all


def check(device: Cpu, m: torch.Tensor, k: int) -> None:
    """Exactly k, none left out larger than one that is kept; and the bits that the CPU gives."""
    mask = ops.topk_mask(m, k).selected
    kept, least_in, largest_out = 0, torch.inf, -torch.inf
    bits = torch.arange(8, device=device.name, dtype=torch.uint8)
    piece = 2**26
    for begin in range(0, len(m), piece):
        values = m[begin : begin + piece]
        inside = (mask[begin // 8 : (begin + piece) // 8, None] >> bits & 1).flatten().bool()
        inside = inside[: len(values)]
        kept += int(inside.sum())
        least_in = min(least_in, values.where(inside, torch.inf).min().item())
        largest_out = max(largest_out, values.where(~inside, -torch.inf).max().item())
    assert kept == k
    assert largest_out <= least_in
    assert torch.equal(mask.cpu(), ops.topk_mask(m.cpu(), k).selected)


def measure(device: Cpu, n: int, seconds: float) -> dict[str, Any]:
    m, k = torch.randn(n, generator=device.generator(2), device=device.name), round(SHARE * n)
    check(device, m, k)
    calls = {
        OURS: lambda: ops.topk_mask(m, k),
        f"{OURS}, with the gate sums": lambda: ops.topk_mask(m, k, 1.0),
        READ: lambda: m.sum(),
        TOPK: lambda: torch.topk(m, k, sorted=False),
        KTHVALUE: lambda: m >= torch.kthvalue(m, n - k + 1).values,
    }
    ready, failed = prepared(calls, partial(warmed, device))
    timings = alternate(device, ready, seconds, least=3)
    found = row(timings, failed, read=m.nbytes)
    found["read_bandwidth"] = m.nbytes / timings[READ].median
    reads = times_ours(found, READ)
    claim(found, "reads' worth of time", None if reads is None else 1 / reads, 3, most=True)
    claim(found, "× torch.topk", times_ours(found, TOPK), 20)
    return found


def cases(device: Cpu, tiny: bool) -> Iterator[Case]:
    for n in TINY if tiny else SIZES:
        if BYTES_A_VALUE * n <= device.memory():
            yield Case(f"{n:.0e}", partial(measure, device, n))
