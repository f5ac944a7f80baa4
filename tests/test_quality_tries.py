"""What is tried for the default in the quality suite."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pytest.importorskip("sklearn")
from adapruner.gates import Gates
from adapruner.methods import find_method
from adapruner.selection import Selection
from benchmarks.quality import experimental
from benchmarks.quality.scores import Records


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


def test_pressure_is_least_where_the_loss_is_the_weight():
    made = records([0.01, 0.2, 0.4, 0.8, 4.0])
    score = experimental.pressure(made, 0.4)
    assert int(score.argmax()) == 2
    expected = -3 * (0.8 - 0.4 * torch.tensor(0.8 + 1e-5, dtype=torch.float64).log())
    assert score[3].item() == pytest.approx(expected.item())


def test_relative_pressure_does_not_see_the_scale():
    some, twice = records([0.1, 0.2, 0.4]), records([0.2, 0.4, 0.8])
    one, other = (experimental.relative_pressure(r, 0.5) for r in (some, twice))
    torch.testing.assert_close(one, other)


def test_without_chance_the_best_are_kept_and_with_much_anything():
    score = torch.arange(1000.0, dtype=torch.float64)
    assert experimental.gumbel(score, 0.0, 3).argsort().tolist() == list(range(1000))
    kept = experimental.gumbel(score, 1e6, 3).argsort()[500:]
    # Half of them by chance, give or take eight.
    assert 210 < int((kept >= 500).sum()) < 290


def test_chance_keeps_exactly_as_many_and_leaves_the_gates_alone():
    generator = torch.Generator().manual_seed(1)
    plain, chance = (Gates(1000, 0.3, find_method("balanced")) for _ in range(2))
    for gates in (plain, chance):
        gates.logits.copy_(torch.randn(1000, generator=generator.manual_seed(1)))
    steady, noisy = Selection(1000, 0.3), experimental.ChanceSelection(1000, 0.3)
    noisy.variant = replace(experimental.Variant(), chance=0.3)
    steady.select(plain, 0.3, 2.0)
    first = noisy.select(chance, 0.3, 2.0) or noisy.kept.clone()
    noisy.select(chance, 0.3, 2.0)
    assert steady.kept_count == noisy.kept_count == 300
    assert torch.equal(plain.logits, chance.logits)
    assert torch.equal(plain.state, chance.state)
    assert not torch.equal(first, noisy.kept)
    assert not torch.equal(steady.kept, noisy.kept)
