"""Shares of classes by their losses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training_data import drive, frozen, gates_with

from adapruner import Pruner
from adapruner.pruning import bitmask
from adapruner.pruning.quotas import largest_remainder, weights_by_loss
from adapruner.pruning.selection import LEAST_OF_CLASS, Selection, keep_count

N = 300


def classes(seed: int = 0) -> torch.Tensor:
    """A long tail: classes of about 210, 60, 20, 7 and 3 samples."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([210, 60, 20, 7, 3]))
    return labels[torch.randperm(N, generator=generator)]


def run(labels: torch.Tensor | None, balance: str = "class", ratio: float = 0.3) -> Pruner:
    pruner = Pruner(N, ratio, 8, labels=labels, balance=balance, held_out=torch.arange(0, N, 11))
    drive(pruner, frozen(N))
    return pruner


@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 2**32), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=50)
def test_weights_are_the_root_of_the_capped_losses(
    count: int, classes: int, seed: int, unit: float
) -> None:
    dice = np.random.default_rng(seed)
    labels = dice.integers(0, classes, count)
    losses = dice.exponential(unit, count).astype(np.float32)
    losses[dice.random(count) < 0.1] = dice.choice([np.nan, np.inf])
    found = weights_by_loss(torch.from_numpy(losses), unit, torch.from_numpy(labels))
    shares = np.where(np.isfinite(losses), np.minimum(losses.astype(np.float64) / unit, 1), 0)
    sums = np.bincount(labels, weights=shares)
    assert found.dtype == np.int64
    assert np.allclose(found / 2**20, np.sqrt(sums), atol=1e-3 * math.sqrt(count))


def test_weights_do_not_depend_on_the_order_of_the_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    losses, labels = torch.rand(10_000, generator=generator), classes().repeat(34)[:10_000]
    order = torch.randperm(10_000, generator=generator)
    assert np.array_equal(
        weights_by_loss(losses, 0.7, labels), weights_by_loss(losses[order], 0.7, labels[order])
    )


@pytest.mark.parametrize("held_out", [None, torch.arange(0, N, 7)])
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.1, 0.02])
def test_a_selection_with_weights_keeps_its_number_and_some_of_each_class(
    ratio: float, held_out: torch.Tensor | None
) -> None:
    labels = classes()
    gates = gates_with(torch.randn(N, generator=torch.Generator().manual_seed(1)), ratio)
    selection = Selection(N, ratio, labels=labels, by_loss=True, held_out=held_out)
    weights = np.array([5, 9, 1, 0, 4])
    selection.select(gates, ratio, 1.0, None, weights)
    kept = labels[bitmask.indices(selection.kept)].bincount(minlength=5).numpy()
    sizes, count = labels.bincount().numpy(), keep_count(ratio, N)
    assert kept.sum() == count
    least = np.minimum(sizes, LEAST_OF_CLASS)
    if count >= least.sum():
        assert (kept >= least).all()
        wanted = least + largest_remainder(count - least.sum(), weights, sizes - least)
        assert np.array_equal(kept, wanted)


@pytest.mark.parametrize("ratio", [0.7, 0.3, 0.05])
def test_only_the_kept_set_has_the_shares(ratio: float) -> None:
    labels = classes()
    plain, ours = run(None, ratio=ratio), run(labels, "loss", ratio)
    for name in ("samples_read", "kept", "training_loss", "mean_gate"):
        found = [[entry[name] for entry in pruner.history] for pruner in (plain, ours)]
        assert found[0] == found[1]
    gates = ours.gates
    assert torch.equal(gates.logits, plain.gates.logits)
    weights = weights_by_loss(gates.last_loss, gates.real("loss_scale"), labels)
    sizes = labels.bincount().numpy()
    least = np.minimum(sizes, LEAST_OF_CLASS)
    count = keep_count(ratio, N)
    result = ours.result()
    kept = labels[result.indices].bincount(minlength=5).numpy()
    if count < least.sum():
        assert kept.sum() == count
    else:
        more = largest_remainder(count - least.sum(), weights, sizes - least)
        assert np.array_equal(kept, least + more)
    assert ours.settings["balance"] == result.config["balance"] == "loss"


def test_a_resumed_run_keeps_the_same_samples() -> None:
    labels, losses = classes(), frozen(N)

    def started() -> Pruner:
        return Pruner(N, 0.3, 8, labels=labels, balance="loss")

    whole, first, second = started(), started(), started()
    drive(whole, losses)
    for epoch in range(5):
        for ids in first.batches(32):
            first.weigh(losses(epoch)[ids], ids)
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    drive(second, losses)
    assert torch.equal(whole.result().indices, second.result().indices)
    with pytest.raises(ValueError, match="expected balance='class', found balance='loss'"):
        Pruner(N, 0.3, 8, labels=labels).load_state_dict(first.state_dict())


@pytest.mark.parametrize("ratio", [0.6, 0.31, 0.29, 0.1, 0.03])
def test_another_ratio_keeps_the_shares_of_the_kept_set(ratio: float) -> None:
    labels = classes()
    result = run(labels, "loss").result()
    other = result.at(ratio)
    small, large = sorted((result, other), key=lambda one: len(one.indices))
    assert set(small.indices.tolist()) <= set(large.indices.tolist())
    found, ours = (labels[one.indices].bincount(minlength=5).numpy() for one in (other, result))
    count = keep_count(ratio, N)
    assert np.array_equal(found, largest_remainder(count, ours, labels.bincount().numpy()))
    assert torch.equal(result.at(0.3).indices, result.indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"balance": "size"}, 'balance must be "class" or "loss"; found \'size\''),
        ({"balance": "loss"}, 'balance="loss" needs the classes of all samples'),
        (
            {"balance": "loss", "labels": [0] * N, "method": "published", "track_losses": False},
            'balance="loss" needs track_losses=True and the method "sampled"',
        ),
    ],
)
def test_what_is_missing_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruner(N, 0.5, 4, **arguments)  # type: ignore[arg-type]


def test_sizes_of_zero_come_last() -> None:
    assert largest_remainder(5, np.array([0, 2, 0]), np.array([4, 3, 4])).tolist() == [1, 3, 1]
    assert largest_remainder(4, np.zeros(2, int), np.array([9, 9])).tolist() == [2, 2]
