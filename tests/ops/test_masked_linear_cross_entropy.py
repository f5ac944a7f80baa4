"""masked_linear_cross_entropy against adapruner.ops.reference in float64, and its memory."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.linear_inputs import (
    FEW_LINEAR,
    LINEAR,
    LinearSample,
    found_of,
    linear_sample,
    losses_of,
)
from support.sample_inputs import FLOATS, generator, native_gates
from torch import Tensor
from torch.nn import functional

from adapruner import ops
from adapruner.ops import reference

# Tolerances relative to the largest expected value. Sums of up to 131072 products have another
# order. bfloat16: the logits are first rounded to 8 bits. float16: as float32, with rounded
# gradients.
VALUES = {
    torch.float64: 1e-12,
    torch.float32: 3e-6,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-6,
}
GRADIENT = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 6e-4,
}
SMALLEST = {dtype: 1e-300 for dtype in FLOATS} | {torch.float16: 6e-8}


def distance(found: Tensor, expected: Tensor, least: float = 1e-300) -> float:
    """Largest difference, as a share of the largest value expected, or of ``least``."""
    assert found.shape == expected.shape
    if not found.numel():
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=least)).item()


def expected_of(sample: LinearSample) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Losses and gradients of the reference, float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in sample.leaves()]
    bias = leaves[2] if sample.linear_bias is not None else None
    losses = reference.masked_linear_cross_entropy(
        sample.gates, *leaves[:2], bias, sample.target.long(), sample.ids, **sample.options
    )
    if not losses[0].requires_grad:
        return losses, [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(losses[0], leaves, allow_unused=True)
    return losses, [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    ]


def unfused_of(sample: LinearSample) -> tuple[ops.MaskedLoss, list[Tensor]]:
    """Losses and gradients of a linear layer and ``masked_cross_entropy``."""
    leaves = sample.leaves()
    *_, target, ids, m, state = sample.arguments(leaves)
    logits = functional.linear(*leaves).movedim(-1, 1)
    losses = ops.masked_cross_entropy(logits, target, ids, m, state, **sample.options)
    return losses, list(torch.autograd.grad(losses.loss, leaves))


def check_pressure(found: Tensor, expected: Tensor, sample_loss: Tensor, unit: float) -> None:
    """The logarithm magnifies the error of ℓ near ℓ = 0."""
    assert torch.equal(found.isinf(), expected.isinf())
    assert not found.isnan().any()
    finite = expected.isfinite()
    error = (found.double() - expected)[finite].abs()
    slack = 3 * unit * (1 + expected[finite].abs() + 1 / (sample_loss[finite] + 1e-5))
    assert (error <= slack).all()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    sample = linear_sample(name, dtype)
    losses, gradients = found_of(sample)
    (loss, sample_loss, pressure), expected = expected_of(sample)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    assert losses.loss.dtype == losses.sample_loss.dtype == accumulate
    assert losses.pressure.dtype == torch.float32
    assert not losses.sample_loss.requires_grad
    assert not losses.pressure.requires_grad
    assert distance(losses.loss, loss, least=1.0) <= VALUES[dtype]
    assert distance(losses.sample_loss, sample_loss, least=1.0) <= VALUES[dtype]
    check_pressure(losses.pressure, pressure, sample_loss, max(VALUES[dtype], 1e-6))
    # The difference p − 1 at the target, of numbers of the size of 1 / rows.
    least = 1 / max(sample.target.numel(), 1)
    for ours, theirs, leaf in zip(gradients, expected, sample.leaves(), strict=True):
        assert ours.dtype == dtype
        assert ours.is_contiguous()
        assert ours.shape == leaf.shape
        assert distance(ours, theirs, least) <= GRADIENT[dtype] + SMALLEST[dtype] / least


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["odd", "tokens", "all counted", "everything", "sliced", "chunks"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_is_the_unfused_operator(name: str, dtype: torch.dtype) -> None:
    sample = linear_sample(name, dtype)
    losses, gradients = found_of(sample)
    others, other_gradients = unfused_of(sample)
    # Half types: both round, torch's linear layer not always as its own addmm; float16 logits are
    # rounded only where they are held, gradients of logits too.
    values = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 2e-3}
    limits = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-2}
    for ours, theirs in zip(losses[:2], others[:2], strict=True):
        assert distance(ours, theirs, least=1.0) <= values[dtype]
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert distance(ours, theirs) <= limits[dtype]


@pytest.mark.usefixtures("device")
def test_float16_keeps_gradients_that_its_range_would_lose() -> None:
    # Every p_c / B is below float16's smallest number; their sums over the rows are not.
    rows, classes = 2048, 40_000
    random = generator("range")
    sample = dataclasses.replace(
        linear_sample("plain", torch.float16),
        input=torch.ones(rows, 1, dtype=torch.float16) * 8,
        linear_weight=torch.zeros(classes, 1, dtype=torch.float16),
        target=torch.randint(0, 8, (rows,), generator=random),
        ids=torch.randint(0, 50, (rows,), generator=random),
    )
    gradient = found_of(sample)[1][1]
    assert 1 / classes / rows < 6e-8 / 2
    expected = expected_of(sample)[1][1]
    assert torch.allclose(gradient[8:].double(), expected[8:], rtol=2e-3, atol=6e-8)
    assert (gradient[8:] > 0).all()


def test_gradients_of_finite_differences() -> None:
    for name in FEW_LINEAR:
        sample = linear_sample(name, torch.float64)
        assert torch.autograd.gradcheck(
            lambda *leaves, sample=sample: losses_of(sample, list(leaves)).loss, sample.leaves()
        )


@pytest.mark.usefixtures("device")
def test_same_bits_every_time() -> None:
    sample = linear_sample("chunks")
    first, second = found_of(sample), found_of(sample)
    for one, two in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert torch.equal(one, two)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_several_threads(threads: Callable[[int], None]) -> None:
    sample = linear_sample("chunks")
    one = found_of(sample)
    threads(2)
    two = found_of(sample)
    for ours, theirs in zip([*two[0], *two[1]], [*one[0], *one[1]], strict=True):
        assert torch.equal(ours.isinf(), theirs.isinf())
        assert distance(ours.nan_to_num(posinf=0.0), theirs.nan_to_num(posinf=0.0)) < 1e-5


@pytest.mark.usefixtures("device")
def test_rows_that_are_ignored_take_no_part_whatever_they_hold() -> None:
    sample = linear_sample("tokens")
    broken = sample.input.clone()
    broken[sample.target == -100] = torch.nan
    losses, gradients = found_of(dataclasses.replace(sample, input=broken))
    expected, expected_gradients = found_of(sample)
    for ours, theirs in zip([*losses, *gradients], [*expected, *expected_gradients], strict=True):
        assert torch.equal(ours, theirs)
    assert not gradients[0][sample.target == -100].any()
    assert losses.pressure[[0, -1]].tolist() == [torch.inf] * 2


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_loss_that_is_not_finite(value: float) -> None:
    sample = linear_sample("odd")
    broken = sample.input.clone()
    broken[2, 3] = value
    losses, gradients = found_of(dataclasses.replace(sample, input=broken))
    assert not losses.loss.isfinite()
    assert losses.pressure.isnan().tolist() == [False, False, True, False, False]
    assert gradients[0].isfinite().all(1).tolist() == [True, True, False, True, True]
    assert not gradients[1].isfinite().any(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_that_of_linear(dtype: torch.dtype) -> None:
    sample = linear_sample("all counted")
    with torch.autocast("cpu", dtype=dtype):
        losses, gradients = found_of(sample)
        expected, expected_gradients = unfused_of(sample)
    limit = 1e-6 if dtype == torch.bfloat16 else 2e-3
    assert distance(losses.loss, expected.loss) <= limit
    assert distance(losses.sample_loss, expected.sample_loss) <= limit
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert ours.dtype == torch.float32
        assert distance(ours, theirs) <= 1e-2
    exact = distance(found_of(sample)[0].loss, expected_of(sample)[0][0])
    assert distance(losses.loss, expected_of(sample)[0][0]) > 10 * exact  # the input was cast


def test_autocast_leaves_float64_alone() -> None:
    sample = linear_sample("odd", torch.float64)
    expected = found_of(sample)[0].loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found_of(sample)[0].loss, expected)


def change(**changes: Any) -> dict[str, Any]:
    return changes


# input [5, 17], linear_weight [33, 17], linear_bias [33], N = 50
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "integer input": (change(input=torch.ones(5, 17).long()), TypeError, "input must be.*Long"),
    "one dimension": (change(input=torch.ones(5)), ValueError, r"\[B, H\].*\[5\]"),
    "weight's dtype": (
        change(linear_weight=torch.ones(33, 17).double()),
        TypeError,
        "linear_weight must have the dtype of input, Float; found Double",
    ),
    "weight's dims": (change(linear_weight=torch.ones(17)), ValueError, r"\[C, 17\].*\[17\]"),
    "features": (change(linear_weight=torch.ones(33, 16)), ValueError, r"\[C, 17\].*\[33, 16\]"),
    "no class": (change(linear_weight=torch.ones(0, 17)), ValueError, r"least one.*\[0, 17\]"),
    "bias's dtype": (
        change(linear_bias=torch.ones(33).half()),
        TypeError,
        "linear_bias must have the dtype of input, Float; found Half",
    ),
    "bias's shape": (change(linear_bias=torch.ones(32)), ValueError, r"\[33\].*\[32\]"),
    "float target": (change(target=torch.ones(5)), TypeError, "target must hold integers.*Float"),
    "target shape": (
        change(target=torch.ones(4).long()),
        ValueError,
        r"target must have shape \[5\], the shape of input without its features; found shape \[4\]",
    ),
    "target too large": (
        change(target=torch.tensor([0, 1, 33, 3, 40])),
        IndexError,
        r"target\[2\] .* must be a class in \[0, 33\) or ignore_index -100; found 33",
    ),
    "target negative": (change(target=torch.tensor([0, 1, 2, 3, -1])), IndexError, r"\[4\].* -1"),
    "ids shape": (change(ids=torch.ones(4).long()), ValueError, r"ids must have shape \[5\].*4"),
    "id too large": (
        change(ids=torch.tensor([0, 50, 1, 2, 3])),
        IndexError,
        r"ids\[1\].*found 50",
    ),
    "gates of float64": (change(gate_logits=torch.ones(50).double()), TypeError, "float32"),
    "short state": (change(state=torch.zeros(9).long()), ValueError, r"shape \[\d+\].*\[9\]"),
    "integer weight": (change(weight=torch.ones(33).long()), TypeError, "weight must be.*Long"),
    "weight shape": (change(weight=torch.ones(32)), ValueError, r"\[33\].*\[32\]"),
    "smoothing": (change(label_smoothing=1.5), ValueError, r"\[0, 1\]; found 1.5"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    changes, error, message = ERRORS[name]
    sample = linear_sample("odd")
    gates = native_gates(sample.gates)
    arguments: dict[str, Any] = {
        "input": sample.input,
        "linear_weight": sample.linear_weight,
        "linear_bias": sample.linear_bias,
        "target": sample.target,
        "ids": sample.ids,
        "gate_logits": gates.logits,
        "state": gates.state,
    }
    with pytest.raises(error, match=message) as caught:
        ops.masked_linear_cross_entropy(**arguments | changes)
    assert not re.search(r"0x|csrc", str(caught.value).split("Exception raised from")[0])


MEMORY = """
import sys
from pathlib import Path
import torch
from torch.nn import functional
from adapruner import Pruner

torch.set_num_threads(1)

def peak():
    # Not ru_maxrss: a new process takes that of its parent over.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def step(rows, features, classes, fused):
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, features, generator=random).requires_grad_()
    weight = torch.randn(classes, features, generator=random).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    target = torch.randint(0, classes, (rows,), generator=random)
    pruner = Pruner(rows, epochs=2)
    before = peak()
    if fused:
        loss = pruner.linear_loss(hidden, weight, target, torch.arange(rows), linear_bias=bias)
    else:
        logits = functional.linear(hidden, weight, bias)
        loss = pruner.loss(logits, target, torch.arange(rows))
        del logits
    loss.backward()
    assert weight.grad is not None and bias.grad is not None and hidden.grad is not None
    return peak() - before

fused = sys.argv[1] == "fused"
step(70, 64, 200, fused)  # libraries and pools
print(step(2048, 64, 50257, fused))
"""


def peak_memory(kind: str) -> int:
    """Peak memory of a step in bytes, without its arguments, in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_peak_memory() -> None:
    rows, features, classes = 2048, 64, 50257
    logits = 4 * rows * classes
    gradients = 4 * (rows * features + classes * features + classes)
    scratch, slack = 32 << 20, 48 << 20  # slack for packed matrices and the allocator
    fused, unfused = peak_memory("fused"), peak_memory("unfused")
    assert fused <= scratch + gradients + slack
    assert unfused >= 1.9 * logits
