"""Pruner in the user's own loop: gates, epochs, kept sets and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import blobs, drive, frozen
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adapruner import Pruner, PruneResult
from adapruner.ops import reference
from adapruner.pruning import bitmask
from adapruner.pruning.methods import HOMES
from adapruner.pruning.selection import keep_count

# --- warm-up


def test_warm_up_trains_on_everything_unweighted_while_gates_rest() -> None:
    x, y = blobs(48)
    model = nn.Linear(5, 3)
    pruner = Pruner(48, 0.5, epochs=5, warmup_epochs=2, method="published")
    for _ in range(2):
        for ids in torch.randperm(48).split(16):
            loss = pruner.loss(model(x[ids]), y[ids], ids)
            assert torch.allclose(loss, functional.cross_entropy(model(x[ids]), y[ids]))
        entry = pruner.step()
        assert (entry["phase"], entry["kept"], entry["samples_read"]) == ("warm-up", 48, 48)
        assert (pruner.gates.logits == 1).all()
    ids = torch.arange(16)
    loss = pruner.loss(model(x[ids]), y[ids], ids)
    plain = functional.cross_entropy(model(x[ids]), y[ids])
    assert torch.allclose(loss, torch.sigmoid(torch.tensor(0.1)) * plain)
    assert (pruner.gates.logits[:16] != 1).all()
    assert (pruner.gates.logits[16:] == 1).all()


@pytest.mark.parametrize(
    ("epochs", "warmup"), [(1, 0), (2, 1), (3, 1), (10, 1), (16, 2), (20, 2), (100, 10)]
)
def test_warm_up_is_a_tenth_of_the_run(epochs: int, warmup: int) -> None:
    assert Pruner(10, 0.5, epochs).warmup_epochs == warmup


def test_training_loss_is_that_of_the_training_samples() -> None:
    pruner = Pruner(40, 0.5, epochs=3, held_out=range(30, 40))
    losses = torch.linspace(0, 3, 40)
    for _ in range(3):
        reads = torch.from_numpy(np.flatnonzero(pruner.reads()))
        for ids in reads.split(8):
            pruner.weigh(losses[ids], ids)
        pruner.observe(torch.full((10,), 50.0), torch.arange(30, 40))
        entry = pruner.step()
        assert entry["training_loss"] == pytest.approx(losses[reads].mean().item(), rel=1e-6)
        assert (entry["samples_read"], entry["samples_evaluated"]) == (len(reads), 10)


# --- exactly K


@pytest.mark.parametrize("keep_ratio", [1.0, 0.995, 0.7, 0.31, 0.1, 0.01])
@pytest.mark.parametrize("epochs", [1, 2, 3, 8])
def test_exactly_k_whatever_the_length_of_the_run(keep_ratio: float, epochs: int) -> None:
    pruner = Pruner(105, keep_ratio, epochs)
    kept = drive(pruner, frozen(105))
    counts = [len(each) for each in kept]
    assert counts == sorted(counts, reverse=True)
    result = pruner.result()
    indices = result.indices.tolist()
    assert len(indices) == keep_count(keep_ratio, 105)
    assert indices == sorted(set(indices))
    assert result.indices.dtype == torch.int64
    if epochs > 2:
        assert counts[-1] == len(indices)
        assert not result.forced


def test_ratio_that_one_minus_one_minus_it_is_not() -> None:
    # 0.1 of 15 samples is 2. But 1 − (1 − 0.1) of them is 1, which is not the final count.
    pruner = Pruner(15, 0.1, epochs=8, method="published")
    kept = drive(pruner, frozen(15), validation=lambda epoch: 1.0)
    assert [len(each) for each in kept][-4:] == [2, 2, 2, 2]
    assert not pruner.result().forced
    assert pruner.result().selected_epoch == 7


def test_classes_keep_their_share_exactly_in_every_epoch() -> None:
    labels = torch.arange(300) % 3
    held_out = torch.arange(0, 300, 13)
    pruner = Pruner(300, 0.6, epochs=10, labels=labels, held_out=held_out, seed=4)
    losses = frozen(300)(0) + labels  # one class is far harder
    while not pruner.finished:
        kept = bitmask.indices(pruner.selection.kept)
        counts = torch.bincount(labels[kept])
        assert counts.max() - counts.min() <= 1
        for ids in torch.from_numpy(np.flatnonzero(pruner.reads())).split(32):
            pruner.weigh(losses[ids], ids)
        pruner.observe(losses[held_out], held_out)
        pruner.step()
    assert torch.bincount(labels[pruner.result().indices]).tolist() == [60, 60, 60]
    kept_of_held_out = torch.isin(pruner.result().indices, held_out).sum()
    assert kept_of_held_out == keep_count(0.6, len(held_out))


# --- pruning starts after every sample was visited once


@pytest.mark.parametrize("until", [4, 100])
def test_nothing_is_pruned_before_every_sample_was_visited(until: int) -> None:
    pruner = Pruner(50, 0.5, epochs=10, warmup_epochs=1)
    losses = frozen(50)(0)
    while not pruner.finished:
        # A loop that leaves out the batch with sample 7, up to an epoch.
        for ids in torch.arange(50)[torch.from_numpy(pruner.reads())].split(10):
            if 7 not in ids or pruner.epoch >= until:
                pruner.weigh(losses[ids], ids)
        pruner.step()
    counts = [entry["kept"] for entry in pruner.history]
    assert counts[: until + 1] == [50] * min(until + 1, 10)
    assert all(count < 50 for count in counts[until + 1 :])
    result = pruner.result()
    assert len(result.indices) == 25
    assert result.forced == (until == 100)


def test_visits_of_the_warm_up_do_not_count() -> None:
    # Gates do not learn from it.
    pruner = Pruner(20, 0.5, epochs=4, warmup_epochs=1)
    for epoch in range(3):
        ids = torch.arange(20 if epoch == 0 else 19)
        pruner.weigh(torch.ones(len(ids)), ids)
        pruner.step()
    assert pruner.reads().all()


def test_sample_without_a_finite_loss_counts_as_visited() -> None:
    losses = torch.ones(20)
    losses[3] = torch.nan
    pruner = Pruner(20, 0.5, epochs=6, warmup_epochs=1)
    assert len(drive(pruner, lambda epoch: losses)[-1]) == 10


@pytest.mark.parametrize("observed", [False, True])
def test_held_out_samples_without_losses_are_warned_of(observed: bool) -> None:
    pruner, losses = Pruner(20, 0.5, epochs=8, held_out=[0, 5]), frozen(20)
    while not pruner.finished:
        for ids in pruner.batches(4):
            pruner.weigh(losses(pruner.epoch)[ids], ids)
        if observed:
            pruner.observe(losses(pruner.epoch)[[0, 5]], torch.tensor([0, 5]))
        pruner.step()
    result = pruner.result()
    assert any("2 samples are held out" in text for text in result.warnings) is not observed
    assert not result.forced
    assert len(result.indices) == 10


def test_nothing_is_noted_after_the_end() -> None:
    pruner = Pruner(20, 0.5, epochs=4)
    drive(pruner, frozen(20))
    before = pruner.result()
    pruner.weigh(torch.full((20,), 9.0), torch.arange(20))
    pruner.observe(torch.full((20,), 9.0), torch.arange(20))
    pruner.exclude([(int(before.indices[0]), "gone")])
    after = pruner.result()
    assert torch.equal(after.indices, before.indices)
    assert torch.equal(after.gate_logits, before.gate_logits)
    assert after.unreadable == before.unreadable == []


@pytest.mark.parametrize("index", [-1, 20])
def test_an_unreadable_sample_must_be_one_of_the_dataset(index: int) -> None:
    pruner = Pruner(20, 0.5, epochs=4)
    with pytest.raises(IndexError, match=rf"index in \[0, 20\); found {index}"):
        pruner.exclude([(3, "gone"), (index, "gone")])
    assert pruner.unreadable == []


@pytest.mark.parametrize("make", [np.int64, np.uint8, torch.tensor])
def test_unreadable_samples_are_noted_as_plain_values(make: Any, tmp_path: Path) -> None:
    pruner = Pruner(20, 0.5, epochs=4)
    pruner.exclude([(make(3), OSError("gone")), [make(7), "torn"]])
    assert pruner.unreadable == [(3, "gone"), (7, "torn")]
    again = Pruner(20, 0.5, epochs=4)
    again.load_state_dict(pruner.state_dict())
    drive(again, frozen(20))
    again.result().save(tmp_path / "kept")
    assert PruneResult.load(tmp_path / "kept").unreadable == [(3, "gone"), (7, "torn")]


@pytest.mark.parametrize("item", [(1.5, "gone"), (True, "gone"), ("1", "gone"), [1, 2, 3], 7])
def test_what_names_no_unreadable_sample(item: Any) -> None:
    pruner = Pruner(20, 0.5, epochs=4)
    with pytest.raises(TypeError, match=r"must be a whole number|pairs \(index, reason\)"):
        pruner.exclude([(3, "gone"), item])
    assert pruner.unreadable == []


@pytest.mark.parametrize("ids", [torch.tensor(3), 3, torch.zeros(4, 1, dtype=torch.int64)])
def test_ids_are_a_list(ids: Any) -> None:
    pruner, outputs = Pruner(20, 0.5, epochs=4), torch.zeros(4, 3, requires_grad=True)
    target = torch.zeros(4, dtype=torch.int64)
    for call in (
        lambda: pruner.loss(outputs, target, ids),
        lambda: pruner.custom_loss(lambda o, t: o.sum(1), outputs, target, ids),
        lambda: pruner.weigh(outputs.sum(1), ids),
        lambda: pruner.observe(outputs.sum(1), ids),
    ):
        with pytest.raises(ValueError, match=r"ids must have shape \[B\]; found \["):
            call()


# --- pauses, and the choice of the best selection


@pytest.mark.parametrize("method", HOMES)
def test_held_back_to_the_end_the_last_selection_is_forced(method: str) -> None:
    pruner = Pruner(100, 0.5, epochs=12, method=method)
    drive(pruner, frozen(100), validation=lambda epoch: 1.0 + epoch)
    words = [entry["decision"] for entry in pruner.history]
    assert words == ["warm-up", "pause"] + ["back off"] * 10
    result = pruner.result()
    assert result.forced
    assert result.selected_epoch is None
    assert len(result.indices) == 50
    if method == "published":
        expected = reference.largest(result.gate_logits, 50)
        assert result.indices.tolist() == expected.tolist()


def test_selection_of_the_best_epoch_at_the_ratio_wanted_is_chosen() -> None:
    losses = [frozen(100, seed)(0) for seed in range(12)]  # so that selections differ

    def held_out(best: int) -> Callable[[int], float]:
        # The lowest loss is before the run reaches its keep ratio.
        return lambda epoch: 0.90 if epoch == 2 else 0.95 if epoch == best else 0.98

    chosen = set()
    for best in (7, 8, 10, 11):
        pruner = Pruner(100, 0.5, epochs=12, method="published")
        kept = drive(pruner, lambda epoch: losses[epoch], held_out(best))
        assert {len(each) for each in kept[7:]} == {50}
        assert len(kept[2]) > 50
        result = pruner.result()
        assert result.selected_epoch == best
        assert result.indices.tolist() == kept[best].tolist()
        assert not result.forced
        chosen.add(tuple(result.indices.tolist()))
    assert len(chosen) > 1


def test_of_selections_within_a_standard_error_of_the_best_the_latest_is_chosen() -> None:
    losses = frozen(100)(0)
    held_out = {7: 0.90, 8: 0.97, 9: 0.94, 10: 0.951, 11: 0.99}
    pruner = Pruner(100, 0.5, epochs=12, method="published")
    kept = []
    while not pruner.finished:
        kept.append(bitmask.indices(pruner.selection.kept))
        ids = torch.from_numpy(np.flatnonzero(pruner.reads()))
        pruner.weigh(losses[ids].requires_grad_(), ids)
        pruner.step(held_out.get(pruner.epoch, 1.0), standard_error=0.05)
    assert pruner.result().selected_epoch == 9
    assert torch.equal(pruner.result().indices, kept[9])


def test_of_equally_good_selections_the_latest_is_chosen() -> None:
    pruner = Pruner(100, 0.5, epochs=8, method="published")
    kept = drive(pruner, frozen(100), validation=lambda epoch: 0.5)
    assert pruner.result().selected_epoch == 7
    assert pruner.result().indices.tolist() == kept[7].tolist()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_held_out_loss_that_is_not_finite_is_no_best(broken: float) -> None:
    pruner = Pruner(100, 0.5, epochs=10, method="published")
    # The first epoch at the keep ratio has no finite loss; later epochs have one.
    values = {6: broken}
    kept = drive(pruner, frozen(100), validation=lambda epoch: values.get(epoch, 0.5))
    at_target = [epoch for epoch, each in enumerate(kept) if len(each) == 50]
    assert 6 in at_target
    result = pruner.result()
    assert result.selected_epoch in set(at_target) - {6}
    values.update(dict.fromkeys(at_target, broken))
    pruner = Pruner(100, 0.5, epochs=10)
    drive(pruner, frozen(100), validation=lambda epoch: values.get(epoch, 0.5))
    assert pruner.result().selected_epoch is None
    assert len(pruner.result().indices) == 50


@pytest.mark.parametrize("last", [2.0, 0.5])  # the best selection is an earlier one, or this one
def test_choice_with_a_sample_that_turns_out_unreadable_is_taken_back(last: float) -> None:
    pruner = Pruner(100, 0.5, epochs=10)
    losses = frozen(100)(0)
    before: set[int] = set()
    while not pruner.finished:
        kept = set(bitmask.indices(pruner.selection.kept).tolist())
        if pruner.epoch == 9:
            lost = min(kept & before)
            pruner.exclude([(lost, "gone")])
        before = kept
        for ids in torch.from_numpy(np.flatnonzero(pruner.reads())).split(16):
            pruner.weigh(losses[ids], ids)
        pruner.step(1.0 if pruner.epoch < 9 else last)
    result = pruner.result()
    assert result.unreadable == [(lost, "gone")]
    assert len(result.indices) == 50
    assert lost not in result.indices.tolist()


# --- losses of every kind


def test_loss_that_is_not_finite_is_reported_and_its_gate_left_alone() -> None:
    pruner = Pruner(30, 0.5, epochs=4, warmup_epochs=0, track_losses=True)
    losses = torch.ones(30)
    losses[11], losses[12] = torch.nan, torch.inf
    gradient = losses.clone().requires_grad_()
    loss = pruner.weigh(gradient, torch.arange(30))
    assert not loss.isfinite()
    logits = pruner.gates.logits
    assert logits[11] == logits[12] == 1
    assert (logits[[i for i in range(30) if i not in (11, 12)]] != 1).all()
    entry = pruner.step()
    assert entry["training_loss"] == 1.0
    drive(pruner, lambda epoch: losses)
    result = pruner.result()
    assert result.not_finite == [11, 12]
    assert result.gate_logits[[11, 12]].tolist() == [-1000, -1000]
    assert not {11, 12} & set(result.indices.tolist())
    assert result.sample_losses[11].isnan()
    assert result.sample_losses[12].isinf()
    assert result.gate_logits.isfinite().all()


@pytest.mark.parametrize("warmup_epochs", [0, 1])
@pytest.mark.parametrize(
    ("method", "normalize"), [("sampled", False), ("sampled", True), ("published", True)]
)
def test_normalised_losses_are_on_no_scale(
    method: str, normalize: bool, warmup_epochs: int
) -> None:
    losses = frozen(200)(0)
    results = []
    for scale in (1.0, 1000.0, 1e-3):
        pruner = Pruner(
            200, 0.5, 12, warmup_epochs=warmup_epochs, method=method, normalize_loss=normalize
        )
        drive(pruner, lambda epoch, scale=scale: scale * losses)
        results.append(pruner.result())
    plain = results[0]
    for scaled in results[1:]:
        assert len(set(plain.indices.tolist()) & set(scaled.indices.tolist())) >= 98
        assert torch.allclose(plain.gate_logits, scaled.gate_logits, atol=1e-3)


def test_normalising_does_not_touch_the_gradient_of_the_model() -> None:
    pruner = Pruner(8, 0.5, 3, warmup_epochs=0, method="published", normalize_loss=True)
    losses = torch.linspace(100, 900, 8, requires_grad=True)
    pruner.weigh(losses, torch.arange(8)).backward()
    assert torch.allclose(losses.grad, torch.sigmoid(torch.full((8,), 0.1)) / 8)


def test_negative_loss_is_refused() -> None:
    pruner = Pruner(8, 0.5, epochs=3)
    with pytest.raises(ValueError, match=r"dataset index 5\) must be at least 0; found -1"):
        pruner.weigh(torch.tensor([1.0, -1.0]), torch.tensor([2, 5]))


@pytest.mark.parametrize("kind", [list, np.array])
def test_ids_may_be_a_list_or_an_array(kind: Any) -> None:
    pruner = Pruner(30, 0.5, epochs=4, warmup_epochs=0)
    pruner.weigh(torch.ones(3), kind([4, 2, 7]))
    assert (pruner.gates.logits != 1).nonzero().flatten().tolist() == [2, 4, 7]


def test_class_ids_far_apart_take_no_more_than_the_classes_there_are() -> None:
    apart, close = (
        Pruner(40, 0.5, epochs=3, warmup_epochs=0, labels=labels)
        for labels in (torch.arange(40) % 4 * 10**9, torch.arange(40) % 4)
    )
    losses = torch.linspace(0, 3, 40)
    for pruner in (apart, close):
        drive(pruner, lambda epoch: losses)
    assert apart.selection._class_sizes.tolist() == [10, 10, 10, 10, 0, 0, 0, 0]
    assert apart.result().indices.tolist() == close.result().indices.tolist()


def test_gates_step_only_with_gradients() -> None:
    pruner = Pruner(8, 0.5, epochs=3, warmup_epochs=0)
    x, y, ids = torch.randn(8, 3), torch.arange(8) % 3, torch.arange(8)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            pruner.loss(x, y, ids)
            pruner.weigh(torch.ones(8), ids)
    assert (pruner.gates.logits == 1).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_forward_steps_the_gates_once(reentrant: bool) -> None:
    x, y, ids = torch.randn(8, 5), torch.arange(8) % 3, torch.arange(8)
    model = nn.Linear(5, 3)

    def forward(pruner: Pruner, x: Tensor) -> Tensor:
        return pruner.loss(model(x), y, ids)

    plain = Pruner(8, 0.5, epochs=3, warmup_epochs=0)
    forward(plain, x).backward()
    twice = Pruner(8, 0.5, epochs=3, warmup_epochs=0)
    inputs = x.clone().requires_grad_()
    checkpoint(lambda x: forward(twice, x), inputs, use_reentrant=reentrant).backward()
    assert torch.equal(twice.gates.logits, plain.gates.logits)
    assert not torch.equal(plain.gates.logits, torch.ones(8))
