"""Exact top-k to a bit mask on the GPU beside torch.topk, torch.kthvalue and reading the values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timing import OURS, alternate, claim, generator, prepared, row, times_ours, warmed

from adapruner import ops

SHARE = 0.7
READ, TOPK, KTHVALUE = "reading the values", "torch.topk", "torch.kthvalue"
BYTES_A_VALUE = 40  # what the rivals take, in all


def check(m: torch.Tensor, k: int) -> None:
    """Exactly k, none left out larger than one that is kept; and the bits that the CPU gives."""
    mask = ops.topk_mask(m, k).selected
    kept, least_in, largest_out = 0, torch.inf, -torch.inf
    bits = torch.arange(8, device="cuda", dtype=torch.uint8)
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


def rows(quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    sizes = [10**7, 10**8] if quick else [10**7, 10**8, 10**9]
    memory = torch.cuda.get_device_properties(0).total_memory
    for n in sizes:
        if BYTES_A_VALUE * n > memory:
            continue
        m, k = torch.randn(n, generator=generator(2), device="cuda"), round(SHARE * n)
        check(m, k)
        calls = {
            OURS: lambda m=m, k=k: ops.topk_mask(m, k),
            f"{OURS}, with the gate sums": lambda m=m, k=k: ops.topk_mask(m, k, 1.0),
            READ: lambda m=m: m.sum(),
            TOPK: lambda m=m, k=k: torch.topk(m, k, sorted=False),
            KTHVALUE: lambda m=m, n=n, k=k: m >= torch.kthvalue(m, n - k + 1).values,
        }
        ready, failed = prepared(calls, warmed)
        timings = alternate(ready, 2.0 if quick else 10.0)
        found = row(timings, failed, read=m.nbytes)
        found["read_bandwidth"] = m.nbytes / timings[READ].median
        reads = times_ours(found, READ)
        claim(found, "reads' worth of time", None if reads is None else 1 / reads, 3, most=True)
        claim(found, "× torch.topk", times_ours(found, TOPK), 20)
        yield f"{n:.0e}", found
        del m, calls, ready
        torch.cuda.empty_cache()
