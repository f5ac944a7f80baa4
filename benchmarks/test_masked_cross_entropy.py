"""Masked cross entropy, forward and backward, beside the same formula in eager and compiled torch,
and beside plain, unmasked cross entropy. Each is checked before it is timed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from adapruner import ops
from adapruner.ops import reference

from .inputs import COMPILED, EAGER, OURS, generator, make_gates, masked

N = 50_000
PLAIN = "plain cross entropy"


class Layer(torch.autograd.Function):
    """Stands for the last layer of a model: gives the logits in a buffer and takes their gradient.

    It costs nothing, so that the loss alone is timed, and its output may be overwritten.
    """

    @staticmethod
    def forward(ctx, anchor, buffer):
        return buffer.detach()

    @staticmethod
    def backward(ctx, gradient):
        Layer.gradient = gradient
        return torch.zeros(()), None


def make_rivals(shape, dtype=torch.float32, overwrite=False, classes_last=False):
    """Name to a call that gives the loss and the gradient on the logits; and what they are given.

    ``shape``: [B, C], or [B, C, ...] for several rows a sample; in memory like that, or
    [B, ..., C], as a last linear layer gives them.
    """
    gates = make_gates(N)
    buffer = torch.randn(shape, generator=generator(1)).to(dtype)
    if classes_last:
        buffer = buffer.movedim(1, -1).contiguous().movedim(-1, 1)
    rows = (shape[0], *shape[2:])
    target = torch.randint(shape[1], rows, generator=generator(2))
    ids = torch.randint(N, rows[:1], generator=generator(3))

    def ours(logits):
        return ops.masked_cross_entropy(
            logits, target, ids, gates.logits, gates.state, overwrite_logits=overwrite
        ).loss

    def formula(logits):
        loss = functional.cross_entropy(logits, target, reduction="none")
        return masked(loss.float().flatten(1).mean(1) if loss.ndim > 1 else loss, gates, ids)

    compiled = torch.compile(formula, dynamic=False)
    losses = {
        OURS: ours,
        EAGER: lambda logits: formula(logits)[0],
        COMPILED: lambda logits: compiled(logits)[0],
        PLAIN: lambda logits: functional.cross_entropy(logits, target),
    }

    def call(loss_of):
        logits = buffer.clone().requires_grad_()

        def step():
            loss = loss_of(logits)
            return loss, torch.autograd.grad(loss, logits)[0]

        return step

    def call_through_layer(loss_of):
        # Ours overwrites a buffer of its own: a gradient becomes the next call's logits, as long.
        mine, anchor = buffer.clone(), torch.zeros((), requires_grad=True)

        def step():
            loss = loss_of(Layer.apply(anchor, mine))
            torch.autograd.grad(loss, anchor)
            return loss, Layer.gradient

        return step

    make = call_through_layer if overwrite else call
    calls = {name: make(loss_of) for name, loss_of in losses.items()}
    return calls, (gates, buffer, target, ids)


def check(call, given) -> None:
    """Ours against the reference, on the loss and the gradient."""
    gates, logits, target, ids = given
    oracle = reference.ReferenceGates(gates.logits, keep_ratio=0.7, slope=1.0)
    exact = logits.double().requires_grad_()
    expected, _, _ = reference.masked_cross_entropy(oracle, exact, target, ids)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    loss, gradient = call()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    # A gradient in bfloat16 has 8 bits.
    tolerance = 1e-5 if gradient.dtype == torch.float32 else 2**-8
    error = (gradient.double() - expected_gradient).abs().max() / expected_gradient.abs().max()
    assert error < tolerance


@pytest.mark.parametrize("shape", [(256, 10), (1024, 100), (1024, 1000), (4096, 1000)], ids=str)
def test_masked_cross_entropy(compare, threads, shape):
    calls, given = make_rivals(shape)
    check(calls[OURS], given)
    compare(calls)


@pytest.mark.parametrize("shape", [(512, 32000), (64, 128256)], ids=str)
def test_over_the_logits(compare, threads, bandwidth, shape):
    calls, given = make_rivals(shape, overwrite=True)
    check(calls[OURS], given)
    compare(calls, copied=2 * given[1].nbytes, copy_bandwidth=bandwidth.copy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1024, 1000), (512, 32000)], ids=str)
def test_half_precision(compare, threads, full, shape, dtype):
    if not full:
        pytest.skip("part of --full")
    calls, given = make_rivals(shape, dtype)
    if dtype != torch.float16:  # a float16 gradient this small is 0 in places, for everybody
        check(calls[OURS], given)
    compare(calls)


@pytest.mark.parametrize(
    ("shape", "classes_last"),
    [((8, 10000, 256), True), ((64, 1000, 49), True), ((16, 21, 64, 64), False)],
    ids=["sequences of 256, 10000 classes", "49 patches, 1000 classes", "64x64 pixels, 21 classes"],
)
def test_rows_per_sample(compare, threads, full, shape, classes_last):
    if not full:
        pytest.skip("part of --full")
    calls, given = make_rivals(shape, classes_last=classes_last)
    check(calls[OURS], given)
    compare(calls)
