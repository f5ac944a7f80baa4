"""Masked cross entropy, forward and backward, on the GPU, beside the same formula in eager and
compiled torch, Liger-Kernel's (plain) cross entropy where installed, and a copy of the logits.

Ours and Liger's write the gradient over the logits; the gradient becomes the next call's logits, as
long as they. A copy reads and writes as many bytes as that must: its time by ours is the share of
the device's copy bandwidth that ours reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import (
    COMPILED,
    EAGER,
    OURS,
    alternate,
    captured,
    claim,
    generator,
    prepared,
    row,
    times_ours,
    warmed,
)
from torch.nn import functional

from adapruner import ops
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

N = 1_000_000
EPSILON, BALANCE = 1e-5, 0.1
LIGER, COPY, PLAIN = "Liger-Kernel, plain", "copy of the logits", "plain cross entropy"
SMALL = [(256, 10), (1024, 100), (1024, 1000)]
LARGE = [(8192, 32000), (4096, 128256)]
REPEATS = 20  # small ones, in one graph
CHECKED_ROWS = 256  # at a time


class Layer(torch.autograd.Function):
    """Stands for a model: gives the logits in a buffer and takes their gradient, at no cost."""

    @staticmethod
    def forward(ctx, anchor, buffer):
        ctx.nothing = anchor.detach()
        return buffer.detach()

    @staticmethod
    def backward(ctx, gradient):
        Layer.gradient = gradient
        return ctx.nothing, None


def find_liger() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
    except ImportError:
        return None
    return liger_cross_entropy


def make_rivals(shape, dtype) -> tuple[dict[str, Callable[[], object]], Callable[[], None]]:
    """Name to a call; and a check of ours, before anything is timed."""
    rows, classes = shape
    gates = Gates(N, 0.7, find_method("published"), "cuda")
    gates.logits.normal_(generator=generator(0))
    gates.set_slope(1.0)
    logits = torch.randn(shape, generator=generator(1), device="cuda", dtype=dtype)
    target = torch.randint(classes, (rows,), generator=generator(2), device="cuda")
    ids = torch.randint(N, (rows,), generator=generator(3), device="cuda")

    def formula(logits):
        loss = functional.cross_entropy(logits, target, reduction="none").float()
        detached = loss.detach()
        pressure = detached - torch.log(detached + EPSILON) + BALANCE
        return (torch.sigmoid(gates.logits[ids]) * loss).mean(), pressure

    def ours(logits):
        return ops.masked_cross_entropy(
            logits, target, ids, gates.logits, gates.state, overwrite_logits=True
        ).loss

    compiled = torch.compile(formula, dynamic=False)
    anchor = torch.zeros((), device="cuda", requires_grad=True)

    def step_of(loss_of, buffer):
        def step():
            loss = loss_of(Layer.apply(anchor, buffer))
            torch.autograd.grad(loss, anchor)
            return loss, Layer.gradient

        return step

    own = logits.clone()
    calls: dict[str, Callable[[], object]] = {
        OURS: step_of(ours, own),
        EAGER: step_of(lambda x: formula(x)[0], logits),
        COMPILED: step_of(lambda x: compiled(x)[0], logits),
        PLAIN: step_of(lambda x: functional.cross_entropy(x, target), logits),
    }
    if liger := find_liger():
        calls[LIGER] = step_of(lambda x: liger(x, target), logits.clone())
    copied = torch.empty_like(logits)
    calls[COPY] = lambda: copied.copy_(logits)

    def check() -> None:
        """Loss and gradient against float64."""
        loss, gradient = calls[OURS]()
        total, scale, error = 0.0, 0.0, 0.0
        weights = torch.sigmoid(gates.logits[ids].double()) / rows
        for begin in range(0, rows, CHECKED_ROWS):
            part = slice(begin, begin + CHECKED_ROWS)
            log_p = functional.log_softmax(logits[part].double(), 1)
            wanted = functional.one_hot(target[part], classes)
            total += -(weights[part] * (log_p * wanted).sum(1)).sum().item()
            expected = (log_p.exp() - wanted) * weights[part, None]
            scale = max(scale, expected.abs().max().item())
            error = max(error, (gradient[part].double() - expected).abs().max().item())
        torch.testing.assert_close(loss.item(), total, rtol=1e-5, atol=1e-6)
        assert error <= scale * (2**-8 if dtype == torch.bfloat16 else 1e-5), error / scale
        own.copy_(logits)

    return calls, check


def rows(quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    seconds = 2.0 if quick else 10.0
    for shape in SMALL:
        calls, check = make_rivals(shape, torch.float32)
        check()
        # Liger's asks the device for a count: no graph takes that.
        calls = {name: call for name, call in calls.items() if name not in (LIGER, COPY)}
        graphs, failed = prepared(calls, lambda call: captured(*[call] * REPEATS))
        timings = alternate(graphs, seconds / 2, repeats=REPEATS, cold=False)
        found = row(timings, failed, dtype="float32", graph=True)
        claim(found, "µs in a graph", 1e6 * timings[OURS].median, 15, most=True)
        yield str(shape), found
    for shape in LARGE:
        calls, check = make_rivals(shape, torch.bfloat16)
        check()
        ready, failed = prepared(calls, warmed)
        timings = alternate(ready, seconds)
        bytes_moved = 2 * 2 * shape[0] * shape[1]
        found = row(timings, failed, dtype="bfloat16", graph=False, copied=bytes_moved)
        found["copy_bandwidth"] = bytes_moved / timings[COPY].median
        claim(found, "of copy bandwidth", times_ours(found, COPY), 0.85)
        claim(found, "× Liger-Kernel", times_ours(found, LIGER), 1.2)
        claim(found, "× eager", times_ours(found, EAGER), 3)
        yield str(shape), found
        del calls, ready
        torch.cuda.empty_cache()
