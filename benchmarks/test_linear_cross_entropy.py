"""Linear layer and masked cross entropy in one, beside the same in two: seconds and peak memory.

    python -m benchmarks.test_linear_cross_entropy RIVAL ROWS FEATURES CLASSES

prints the bytes that a step of one rival takes at most, beyond what it is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from adapruner import ops
from adapruner.ops import reference

from .inputs import COMPILED, EAGER, OURS, generator, make_gates, masked

ROOT = Path(__file__).resolve().parents[1]
PEAK = Path("/proc/self/clear_refs")


def rivals(rows: int, features: int, classes: int) -> tuple[dict[str, Callable], tuple]:
    """Name to a call that gives the loss and the gradients, and what they are given."""
    source = generator(1)
    gates = make_gates(50_000)
    hidden = torch.randn(rows, features, generator=source).requires_grad_()
    weight = (torch.randn(classes, features, generator=source) * 0.1).requires_grad_()
    target = torch.randint(classes, (rows,), generator=source)
    ids = torch.randint(50_000, (rows,), generator=source)

    # Gradients are asked for, not accumulated in leaves: that costs every rival the same.
    def fused():
        loss = ops.masked_linear_cross_entropy(
            hidden, weight, None, target, ids, gates.logits, gates.state
        ).loss
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    def unfused(overwrite_logits=False):
        loss = ops.masked_cross_entropy(
            functional.linear(hidden, weight),
            target,
            ids,
            gates.logits,
            gates.state,
            overwrite_logits=overwrite_logits,
        ).loss
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    def formula(hidden, weight):
        logits = functional.linear(hidden, weight)
        return masked(functional.cross_entropy(logits, target, reduction="none"), gates, ids)

    compiled_formula = torch.compile(formula)

    def eager(formula=formula):
        loss, _ = formula(hidden, weight)
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    calls = {
        OURS: fused,
        "unfused": unfused,
        "unfused, over the logits": lambda: unfused(overwrite_logits=True),
        EAGER: eager,
        COMPILED: lambda: eager(compiled_formula),
    }
    return calls, (gates, hidden, weight, target, ids)


def check(call: Callable, given: tuple) -> None:
    """Against the reference, on the loss and both gradients."""
    gates, hidden, weight, target, ids = given
    oracle = reference.ReferenceGates(gates.logits, keep_ratio=0.7, slope=1.0)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected, _, _ = reference.masked_linear_cross_entropy(oracle, *exact, None, target, ids)
    loss, *gradients = call()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-5


def peak_bytes(name: str, *shape: int) -> int | None:
    """In a process of its own; None where the system does not tell."""
    if not PEAK.exists():
        return None
    # Blocks over a megabyte go back to the system, so that the step before hides nothing.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"}
    command = [sys.executable, "-m", "benchmarks.test_linear_cross_entropy", name]
    command += map(str, shape)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize("shape", [(2048, 64, 50257), (512, 512, 32000)], ids=str)
def test_masked_linear_cross_entropy(compare, threads, shape):
    calls, given = rivals(*shape)
    for call in calls.values():
        check(call, given)
    facts = {}
    if threads > 1 or os.cpu_count() == 1:  # the threads make no difference to it
        facts["peak_bytes"] = {name: peak_bytes(name, *shape) for name in calls}
    compare(calls, **facts)


def status(key: str) -> int:
    """Bytes, of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


def main() -> None:
    name, *shape = sys.argv[1:]
    calls, _ = rivals(*map(int, shape))
    calls[name]()  # loads libraries, compiles
    PEAK.write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    calls[name]()
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main()
