"""The objective of docs/method.md over whole runs, against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.sample_inputs import constants_of
from torch import Tensor

from adapruner import Pruner, ops
from adapruner.ops import reference
from adapruner.ops.reference import ReferenceGates
from adapruner.pruning import bitmask
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import HOMES, find_method

N, EPOCHS, BATCH, RATIO = 2000, 6, 64, 0.7


def stream(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (ids, ℓ): shuffled, a few ids twice; losses fall, each sample at its own pace."""
    difficulty = np.exp(np.random.default_rng(0).normal(-0.5, 1.2, N))
    random = np.random.default_rng([1, epoch])
    order = random.permutation(N)
    again = random.integers(0, N, N // 20)
    order = np.insert(order, random.integers(0, N, len(again)), again)
    noise = np.exp(random.normal(0, 0.2, N))
    loss = difficulty * np.exp(-0.5 * epoch / (0.2 + difficulty)) * noise
    for ids in np.array_split(order, len(order) // BATCH):
        yield torch.from_numpy(ids), torch.from_numpy(loss[ids]).float()


def reference_of(method: str) -> ReferenceGates:
    constants = find_method(method)
    return ReferenceGates(
        torch.ones(N),
        RATIO,
        constants.slope[0],
        **constants_of(constants),
        age_cap=constants.age_cap,
    )


@pytest.mark.parametrize("method", HOMES)
def test_a_recorded_stream_of_losses(method: str) -> None:
    expected = reference_of(method)
    # test_pruner_reference.py tests the loss scale.
    gates = Gates(N, RATIO, replace(find_method(method), by_first_loss=False))
    for epoch in range(EPOCHS):
        for ids, sample_loss in stream(epoch):
            losses = ops.masked_loss(sample_loss, ids, gates.logits, gates.state)
            loss = reference.masked_loss(expected, sample_loss, ids)
            pressure = expected.pressure(sample_loss)
            assert losses.loss.item() == pytest.approx(loss.item(), rel=1e-5)
            assert torch.allclose(losses.pressure.double(), pressure, rtol=1e-5, atol=1e-5)
            gates.visit(ids, losses)
            expected.update(ids.tolist(), pressure.tolist())
            assert (gates.logits.double() - expected.m).abs().max() <= 1e-5
            m, k = gates.logits.double(), gates.real("slope")
            assert abs(gates.mean_gate - torch.sigmoid(k * m).mean().item()) <= 1e-9
            assert gates.open_share == (m > 0).double().mean().item()
        assert gates.age.tolist() == expected.age
        gates.end_epoch()
        expected.end_epoch()
        if epoch + 1 < EPOCHS:
            first, last = find_method(method).slope
            expected.slope = first + (last - first) * (epoch + 1) / (EPOCHS - 1)
            sums = ops.topk_mask(gates.logits, round(RATIO * N), expected.slope).sums
            gates.use_sums(expected.slope, sums)
    spread = gates.logits.std().item()
    assert spread > {"published": 0.05, "sampled": 0.02}[method]  # the run did something
    kept = bitmask.indices(ops.topk_mask(gates.logits, round(RATIO * N)).selected)
    also = reference.largest(expected.m, round(RATIO * N))
    assert len(np.intersect1d(kept, also)) >= len(also) - 2  # m that differ by less than 1e-5


def balanced_gates(method: str) -> Gates:
    """Gates with s̄ = r, where the pressure is that of the losses alone."""
    gates = Gates(4, 0.5, find_method(method))
    gates.logits[:] = 0
    gates.set_slope(1.0)
    assert gates.mean_gate == 0.5
    return gates


def pressures(method: str, loss: torch.Tensor) -> torch.Tensor:
    gates = balanced_gates(method)
    ids = torch.zeros(len(loss), dtype=torch.int64)
    return ops.masked_loss(loss, ids, gates.logits, gates.state).pressure


def test_the_published_pressure_is_least_at_a_loss_of_one() -> None:
    loss = torch.logspace(-6, 3, 3001, dtype=torch.float64)
    pressure = pressures("published", loss)
    least = pressure.argmin()
    assert loss[least].item() == pytest.approx(1, rel=0.01)
    assert pressure[least].item() == pytest.approx(1, abs=1e-4)
    assert (pressure[:least].diff() <= 1e-6).all()
    assert (pressure[least:].diff() >= -1e-6).all()


def test_the_default_presses_by_difficulty() -> None:
    loss = torch.logspace(-6, 3, 3001, dtype=torch.float64)
    expected = (loss + 0.15 * (loss + 1e-5).log()).clamp(max=1)
    torch.testing.assert_close(pressures("sampled", loss).double(), expected, rtol=1e-6, atol=1e-6)
    assert (expected.diff() >= 0).all()


def test_pressure_as_published() -> None:
    gates = balanced_gates("published")
    loss = torch.tensor([0.0, 0.01, 1.0, 4.0])
    pressure = ops.masked_loss(loss, torch.arange(4), gates.logits, gates.state).pressure
    assert pressure.tolist() == pytest.approx([11.5129, 4.6142, 1.0, 2.6137], abs=1e-4)
    assert (pressure >= 1 - 1e-5).all()


def test_balance_pushes_the_mean_gate_towards_the_ratio() -> None:
    # λ = 1 + 50·|ρ − r|: m = ±1 in equal parts, k = 1: s̄ = ρ = 0.5.
    for ratio, expected in ((0.7, 2 * (1 + 50 * 0.2) * -0.2), (0.3, 2 * (1 + 50 * 0.2) * 0.2)):
        gates = Gates(4, ratio, find_method("published"))
        gates.logits.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        gates.set_slope(1.0)
        pressure = ops.masked_loss(
            torch.ones(1), torch.zeros(1).long(), gates.logits, gates.state
        ).pressure
        assert pressure.item() == pytest.approx(1.0 + expected, abs=2e-5)


def test_losses_on_another_scale_give_the_same_pressures() -> None:
    gates, scaled = balanced_gates("published"), balanced_gates("published")
    scaled.set_real("loss_scale", 37.0)
    loss = torch.rand(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.arange(4)
    plain = ops.masked_loss(loss, ids, gates.logits, gates.state)
    other = ops.masked_loss(37 * loss, ids, scaled.logits, scaled.state)
    assert torch.allclose(other.pressure, plain.pressure)
    assert other.loss.item() == pytest.approx(37 * plain.loss.item())  # the model's loss is not


def kept_of(
    method: str, losses: np.ndarray, *, everything: bool, seed: int, epochs: int, track: bool
) -> np.ndarray:
    """What a run with frozen losses keeps, reading everything or what is kept; the seed is of the
    order, that of the draws is the same."""
    pruner = Pruner(N, RATIO, epochs, method=method, seed=7, track_losses=track)
    random = np.random.default_rng(seed)
    while not pruner.finished:
        order = np.arange(N) if everything else np.flatnonzero(pruner.reads())
        random.shuffle(order)
        for batch in np.array_split(order, len(order) // BATCH):
            ids = torch.from_numpy(batch)
            pruner.weigh(torch.from_numpy(losses[batch]), ids)
        pruner.step()
    return pruner.result().indices.numpy()


@pytest.mark.parametrize("method", HOMES)
@pytest.mark.parametrize("kind", ["lognormal", "uniform"])
@pytest.mark.parametrize(("epochs", "track"), [(20, True), (30, True), (40, False)])
def test_reading_what_is_kept_selects_what_reading_everything_does(
    method: str, kind: str, epochs: int, track: bool
) -> None:
    # Without last losses, the quantile that ends the sampled method's range is inexact.
    share = 0.9 if (method, kind, track) == ("sampled", "uniform", False) else 0.95
    random = np.random.default_rng(3)
    losses = np.exp(random.normal(-1, 1.2, N)) if kind == "lognormal" else random.uniform(0, 3, N)
    full = kept_of(method, losses, everything=True, seed=1, epochs=epochs, track=track)
    kept = kept_of(method, losses, everything=False, seed=2, epochs=epochs, track=track)
    assert len(np.intersect1d(full, kept)) >= share * round(RATIO * N)
