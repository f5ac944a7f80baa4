"""What is tried for the default in the quality suite."""

import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pytest.importorskip("sklearn")
from adapruner.pruning.methods import METHODS
from benchmarks.quality import experimental, one
from benchmarks.quality.scores import Records
from benchmarks.quality.table import Run


def records(losses: list[float]) -> Records:
    """Three epochs of the same losses: p = exp(-loss) for class 0 of two."""
    p = torch.tensor(losses, dtype=torch.float64).neg().exp()
    logits = torch.stack([p.log(), (1 - p).log()], 1).expand(3, -1, -1)
    count = len(losses)
    return Records(
        logits=logits,
        agreement=torch.zeros(3, count),
        features=torch.zeros(count, 2),
        labels=torch.zeros(count, dtype=torch.int64),
        samples_read=0,
        seconds=0.0,
        cpu_seconds=0.0,
    )


def test_cut_takes_the_ends():
    made = records([0.1 * (i + 1) for i in range(10)])
    assert experimental.cut(1.0, 0.0, made, 6, 0).tolist() == [0, 1, 2, 3, 4, 5]
    assert experimental.cut(0.0, 1.0, made, 6, 0).tolist() == [4, 5, 6, 7, 8, 9]
    assert experimental.cut(0.5, 0.5, made, 6, 0).tolist() == [2, 3, 4, 5, 6, 7]
    half = experimental.cut(0.5, 0.0, made, 6, 0).tolist()
    assert len(half) == 6
    assert not {8, 9} & set(half)


def chances(select, made: Records, draws: int = 4000) -> list[float]:
    """How often each sample is the one that is kept."""
    kept = torch.cat([select(made, 1, seed) for seed in range(draws)])
    return (kept.bincount(minlength=len(made.labels)) / draws).tolist()


def test_chances_are_those_of_the_pressure():
    losses = [0.01, 0.2, 0.4, 0.8, 4.0]
    # α = 2, β = 4: ℓ²·e^(−4ℓ), worked out by hand.
    weights = [loss**2 * math.exp(-4 * loss) for loss in losses]
    found = chances(partial(experimental.gamma, 2, 4, math.inf), records(losses))
    assert found == pytest.approx([w / sum(weights) for w in weights], abs=0.03)


def test_chances_above_a_cap_are_even():
    losses = [0.01, 0.2, 0.4, 0.8, 4.0]
    # ℓ − log(ℓ)/2: 2.3, 1.005, 0.858, 0.912, 3.3.
    weights = [math.exp(-4 * p) for p in (1.0, 1.0, 0.858, 0.912, 1.0)]
    found = chances(partial(experimental.gamma, 2, 4, 1.0), records(losses))
    assert found == pytest.approx([w / sum(weights) for w in weights], abs=0.03)


def test_relative_chances_do_not_see_the_scale():
    some, tenfold = records([0.02, 0.2, 0.4]), records([0.2, 2.0, 4.0])
    one, other = (
        [experimental.relative(1.0, 2.0, made, 1, seed).item() for seed in range(50)]
        for made in (some, tenfold)
    )
    assert one == other


def test_a_tilt_favours_an_end():
    made = records([0.1 * (i + 1) for i in range(4)])
    # Ranks 1/8, 3/8, 5/8, 7/8.
    weights = [math.exp(3 * (2 * i + 1) / 8) for i in range(4)]
    found = chances(partial(experimental.tilt, 3.0), made)
    assert found == pytest.approx([w / sum(weights) for w in weights], abs=0.03)


@pytest.mark.parametrize("name", experimental.VARIANTS)
def test_a_run_of_a_variant_has_its_constants(name, monkeypatch):
    monkeypatch.setitem(METHODS, name, METHODS["adapruner"])  # what the run puts there goes again
    data = SimpleNamespace(y=torch.zeros(10, dtype=torch.int64))
    run = Run("digits", "same epochs", name, 0.1, "clean", 0)
    gates = one._adapruner(run, data, 40).pruner.gates
    expected = experimental.VARIANTS[name].at(0.1, 40)
    assert gates.real("easy_weight") == expected.easy_weight
    assert gates.real("pressure_cap") == expected.pressure_cap
    assert gates.real("step_size") == expected.step_size
    assert gates.integer("plain") == (not expected.weighs)
