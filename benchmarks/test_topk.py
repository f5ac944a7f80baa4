"""Exact top-k beside torch.topk, torch.kthvalue and numpy.argpartition, and one read of the gates.

``adapruner`` is the top-k alone, as the rivals do it; ``with the gate sums`` also gives Σs and the
number of open gates at a new slope.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapruner import ops

from .inputs import OURS, generator

SIZES = [1_000_000, 10_000_000, 100_000_000, 1_000_000_000]
QUICK = 10_000_000
# The rivals' indices, copies and sorts take some 30 bytes a value.
RIVALS_TO = 100_000_000
SHARE = 0.7


def gate_logits(n: int) -> torch.Tensor:
    values = torch.empty(n)
    # In pieces: a normal of 1e9 values at once takes its time on one thread.
    source = torch.randn(min(n, 10_000_000), generator=generator(2))
    for begin in range(0, n, len(source)):
        part = values[begin : begin + len(source)]
        torch.mul(source[: len(part)], 1 + begin / 1e12, out=part)
    return values


def check(m: torch.Tensor, k: int, mask: torch.Tensor) -> None:
    """Exactly k, and none left out is larger than one that is kept; equal ones by index."""
    kept, largest_out, least_in = 0, -np.inf, np.inf
    piece = 8_000_000
    for begin in range(0, len(m), piece):
        values = m[begin : begin + piece].numpy()
        bits = mask[begin // 8 : (begin + piece) // 8].numpy()
        inside = np.unpackbits(bits, count=len(values), bitorder="little").view(bool)
        kept += int(inside.sum())
        least_in = min(least_in, values[inside].min(initial=np.inf))
        largest_out = max(largest_out, values[~inside].max(initial=-np.inf))
    assert kept == k
    assert largest_out <= least_in


@pytest.mark.parametrize("n", SIZES, ids=lambda n: f"{n:.0e}")
def test_topk_mask(compare, threads, bandwidth, full, n):
    if n > QUICK and not full:
        pytest.skip("part of --full")
    m, k = gate_logits(n), round(SHARE * n)
    check(m, k, ops.topk_mask(m, k).selected)
    rivals = {
        OURS: lambda: ops.topk_mask(m, k),
        f"{OURS}, with the gate sums": lambda: ops.topk_mask(m, k, 1.0),
        "reading the values": m.sum,
    }
    if n <= RIVALS_TO:
        values = m.numpy()
        rivals |= {
            "torch.topk, sort": lambda: torch.topk(m, k, sorted=False).indices.sort(),
            "torch.kthvalue": lambda: m >= torch.kthvalue(m, n - k + 1).values,
            "numpy.argpartition": lambda: np.argpartition(-values, k)[:k],
        }
    compare(rivals, read=m.nbytes, read_bandwidth=bandwidth.read)


@pytest.mark.parametrize("n", [1_000_000, 10_000_000, 100_000_000], ids=lambda n: f"{n:.0e}")
def test_segmented_topk(compare, threads, full, n):
    """A quota for each of 1000 classes."""
    if n > QUICK and not full:
        pytest.skip("part of --full")
    m, classes = gate_logits(n), 1000
    segments = torch.randint(classes, (n,), dtype=torch.int16, generator=generator(4))
    quotas = (SHARE * torch.bincount(segments.long(), minlength=classes)).long()

    def loop():
        """The members of a class are known beforehand: finding them is not timed."""
        for of_class, k in zip(members, wanted, strict=True):
            yield of_class[torch.topk(m[of_class], k, sorted=False).indices]

    order = torch.argsort(segments, stable=True)
    members = order.split(torch.bincount(segments.long(), minlength=classes).tolist())
    wanted = quotas.tolist()
    mask = ops.segmented_topk(m, segments, quotas).selected.numpy()
    inside = np.unpackbits(mask, count=n, bitorder="little").view(bool)
    values = m.numpy()
    for of_class, k in zip(members, wanted, strict=True):
        in_class, mine = inside[of_class.numpy()], values[of_class.numpy()]
        assert in_class.sum() == k
        assert mine[in_class].min() >= mine[~in_class].max()
    compare(
        {
            OURS: lambda: ops.segmented_topk(m, segments, quotas),
            f"{OURS}, with the gate sums": lambda: ops.segmented_topk(m, segments, quotas, 1.0),
            "a loop of torch.topk": lambda: list(loop()),
        }
    )
