"""gate_drift against adapruner.ops.reference in float64, and its errors."""

from __future__ import annotations

import math

import pytest
import torch
from support.sample_inputs import native_gates, same_values
from torch import Tensor

from adapruner import ops
from adapruner.ops.reference import ReferenceGates
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import HOMES, find_method

pytestmark = pytest.mark.usefixtures("device")
N = 301  # not a multiple of a block or vector


@same_values
def gates_of_ages(
    method: str, seed: int, *, device: torch.device
) -> tuple[ReferenceGates, Gates, Tensor]:
    """Native and reference gates after some epochs, and the last losses."""
    random = torch.Generator().manual_seed(seed)
    ages: list[int | None] = torch.randint(0, 5, (N,), generator=random).tolist()
    ages[::17] = [None] * len(ages[::17])
    reference = ReferenceGates(
        (3 * torch.randn(N, generator=random)).to(device),
        keep_ratio=0.6,
        slope=1.7,
        easy_weight=find_method(method).easy_weight,
        pressure_cap=find_method(method).pressure_cap,
        age=ages,
    )
    losses = torch.rand(N, generator=random) * 6
    losses[::13], losses[5], losses[6] = math.nan, math.inf, 0.0
    return reference, native_gates(reference), losses.to(device)


@pytest.mark.parametrize("method", HOMES)
@pytest.mark.parametrize("threads", [1, 2])
def test_agrees_with_the_reference(method: str, threads: int) -> None:
    reference, gates, losses = gates_of_ages(method, 4)
    before, state = gates.logits.clone(), gates.state.clone()
    torch.set_num_threads(threads)
    try:
        ops.gate_drift(gates.logits, gates.age, gates.state, losses)
    finally:
        torch.set_num_threads(1)
    reference.drift(losses.tolist())
    assert torch.allclose(gates.logits.double(), reference.m, rtol=0, atol=1e-6)
    assert torch.equal(gates.state, state)
    still = (gates.age == 0) | (gates.age == ops.NEVER_VISITED) | ~losses.isfinite()
    assert torch.equal(gates.logits[still], before[still])
    # All gates have moved, except saturated gates.
    assert (gates.logits[~still] != before[~still]).double().mean() > 0.9


def test_no_gates() -> None:
    gates = Gates(1, 1.0, find_method("sampled"))
    empty = torch.zeros(0)
    ops.gate_drift(empty, torch.zeros(0, dtype=torch.uint8), gates.state, empty.clone())


def test_an_excluded_sample_stays_out() -> None:
    gates = Gates(3, 1.0, find_method("sampled"), track_losses=True)
    assert gates.last_loss is not None
    gates.age.fill_(2)
    gates.last_loss.fill_(0.5)
    gates.exclude(torch.tensor([1]))
    gates.end_epoch()
    assert gates.logits.isneginf().tolist() == [False, True, False]


def test_errors() -> None:
    _, gates, losses = gates_of_ages("sampled", 5)
    with pytest.raises(TypeError, match="last_loss must be float32; found Double"):
        ops.gate_drift(gates.logits, gates.age, gates.state, losses.double())
    with pytest.raises(ValueError, match=r"shape of gate_logits, \[301\]; found shape \[300\]"):
        ops.gate_drift(gates.logits, gates.age, gates.state, losses[1:])
    with pytest.raises(TypeError, match="age must be uint8; found Int"):
        ops.gate_drift(gates.logits, gates.age.int(), gates.state, losses)
