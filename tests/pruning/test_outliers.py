"""The mean of losses without outliers, and the unit of losses that rests on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapruner import Pruner
from adapruner.pruning import bitmask
from adapruner.pruning.outliers import mean_without_outliers
from adapruner.training import losses


def expected(values: np.ndarray) -> float:
    """Leave out what is above a thousand times the mean of the rest, until that is nothing."""
    values = np.sort(values[np.isfinite(values)].astype(float))
    while len(values) and values[-1] > 1000 * values.mean() and values[:-1].any():
        values = values[values <= 1000 * values.mean()]
    return values.mean()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([2, 999, 1100, 4001, 9000]),
    outliers=st.integers(0, 4),
)
def test_losses_far_above_the_mean_do_not_count(seed: int, size: int, outliers: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.exponential(1.0, size).astype(np.float32)
    places = generator.choice(size, min(outliers, size), replace=False)
    values[places] = 10.0 ** generator.uniform(2, 9, len(places))
    values[generator.random(size) < 0.01] = np.nan
    values[0] = 0.5
    mean = float(np.nanmean(values.astype(float)))
    found = mean_without_outliers(torch.from_numpy(values), mean)
    assert found == pytest.approx(expected(values), rel=1e-6)


def test_without_outliers_the_mean_is_returned_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    assert mean_without_outliers(values, 0.123) == 0.123
    values[3] = 1e9
    whole = mean_without_outliers(values, float(values.double().mean()))
    monkeypatch.setattr(bitmask, "PIECE", 700)
    assert mean_without_outliers(values, float(values.double().mean())) == whole


@pytest.mark.parametrize("values", [[], [0.0] * 3000, [0.0] * 3000 + [5.0], [float("inf")] * 5])
def test_losses_of_which_nothing_is_left_keep_their_mean(values: list[float]) -> None:
    assert mean_without_outliers(torch.tensor(values), 0.001) == 0.001


@pytest.mark.parametrize("how", ["weigh", "custom_loss"])
def test_one_disturbed_target_does_not_set_the_unit(how: str) -> None:
    count = 3000
    targets = torch.randn(count, generator=torch.Generator().manual_seed(1))
    units = []
    for far in (1.0, 500.0):
        targets[7] = far
        pruner = Pruner(count, 0.5, 3)
        for ids in pruner.batches(64):
            outputs = torch.zeros(len(ids), requires_grad=True)
            if how == "weigh":
                pruner.weigh(losses.squared_error(outputs, targets[ids]), ids)
            else:
                pruner.custom_loss(losses.squared_error, outputs, targets[ids], ids)
        pruner.step()
        units.append(pruner.gates.real("loss_scale"))
    assert units[1] == pytest.approx(units[0], rel=0.01)
