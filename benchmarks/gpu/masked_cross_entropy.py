"""Masked cross entropy, forward and backward, on the device.

The rivals are the same formula in eager and compiled torch, plain cross entropy, and Liger-Kernel's
plain cross entropy where it can be imported. Ours and Liger's write the gradient over the logits.
The next call takes that gradient as its logits. A copy of the logits moves as many bytes as ours
has to: the copy's time divided by ours is the share of the copy bandwidth that ours reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from adapruner import ops
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

from .device import Call, Cpu
from .timing import (
    COMPILED,
    EAGER,
    OURS,
    Case,
    alternate,
    claim,
    prepared,
    row,
    times_ours,
    warmed,
)

N = 1_000_000
EPSILON, BALANCE = 1e-5, 0.1
LIGER, COPY, PLAIN = "Liger-Kernel, plain", "copy of the logits", "plain cross entropy"
LARGE, TINY_LARGE = ((4096, 128256), (8192, 32000)), ((64, 2000),)
SMALL, TINY_SMALL = ((1024, 1000), (1024, 100), (256, 10)), ((32, 10),)
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
    except ImportError as error:
        print(f"left out: Liger-Kernel cannot be imported: {error}", flush=True)
        return None
    return liger_cross_entropy


def make_rivals(
    device: Cpu, shape: tuple[int, int], dtype: torch.dtype, tiny: bool
) -> tuple[dict[str, Call], Call]:
    """Name to a call; and a check of ours, before anything is timed."""
    rows, classes = shape
    gates = Gates(N, 0.7, find_method("published"), device.name)
    gates.logits.normal_(generator=device.generator(0))
    gates.set_slope(1.0)
    draw = {"generator": device.generator(1), "device": device.name}
    logits = torch.randn(shape, dtype=dtype, **draw)
    target, ids = torch.randint(classes, (rows,), **draw), torch.randint(N, (rows,), **draw)

    def formula(logits):
        loss = functional.cross_entropy(logits, target, reduction="none").float()
        detached = loss.detach()
        pressure = detached - torch.log(detached + EPSILON) + BALANCE
        return (torch.sigmoid(gates.logits[ids]) * loss).mean(), pressure

    def ours(logits):
        return ops.masked_cross_entropy(
            logits, target, ids, gates.logits, gates.state, overwrite_logits=True
        ).loss

    anchor = torch.zeros((), device=device.name, requires_grad=True)

    def step_of(loss_of, buffer):
        def step():
            loss = loss_of(Layer.apply(anchor, buffer))
            torch.autograd.grad(loss, anchor)
            return loss, Layer.gradient

        return step

    own = logits.clone()
    calls: dict[str, Call] = {
        OURS: step_of(ours, own),
        EAGER: step_of(lambda x: formula(x)[0], logits),
        PLAIN: step_of(lambda x: functional.cross_entropy(x, target), logits),
    }
    if not tiny:  # compiling takes longer than a rehearsal may
        compiled = torch.compile(formula, dynamic=False)
        calls[COMPILED] = step_of(lambda x: compiled(x)[0], logits)
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


def measure_large(
    device: Cpu, shape: tuple[int, int], tiny: bool, seconds: float
) -> dict[str, Any]:
    calls, check = make_rivals(device, shape, torch.bfloat16, tiny)
    check()
    ready, failed = prepared(calls, partial(warmed, device))
    timings = alternate(device, ready, seconds)
    bytes_moved = 2 * 2 * shape[0] * shape[1]
    found = row(timings, failed, dtype="bfloat16", graph=False, copied=bytes_moved)
    found["copy_bandwidth"] = bytes_moved / timings[COPY].median
    claim(found, "of copy bandwidth", times_ours(found, COPY), 0.85)
    claim(found, "× Liger-Kernel", times_ours(found, LIGER), 1.2)
    claim(found, "× eager", times_ours(found, EAGER), 3)
    return found


def measure_small(
    device: Cpu, shape: tuple[int, int], tiny: bool, seconds: float
) -> dict[str, Any]:
    calls, check = make_rivals(device, shape, torch.float32, tiny)
    check()
    # Liger's asks the device for a count, which a graph cannot hold.
    calls = {name: call for name, call in calls.items() if name not in (LIGER, COPY)}

    def graph_of(call: Call) -> Call:
        warmed(device, call)
        return device.captured([call] * REPEATS)

    ready, failed = prepared(calls, graph_of)
    timings = alternate(device, ready, seconds, repeats=REPEATS, cold=False)
    found = row(timings, failed, dtype="float32", graph=True)
    claim(found, "µs in a graph", 1e6 * timings[OURS].median, 15, most=True)
    return found


def cases(device: Cpu, tiny: bool) -> Iterator[Case]:
    for shape in TINY_LARGE if tiny else LARGE:
        if 2 * 8 * shape[0] * shape[1] <= device.memory():
            yield Case(str(shape), partial(measure_large, device, shape, tiny))
    for shape in TINY_SMALL if tiny else SMALL:
        yield Case(str(shape), partial(measure_small, device, shape, tiny))
