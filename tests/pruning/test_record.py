"""The record of a run: visits, relative losses and predicted classes of each sample."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adapruner import Pruner, PruneResult, fast_prune
from adapruner.pruning.record import MOST_VISITS
from adapruner.results.reasons import reason_counts, samples_of


def run(pruner: Pruner, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a pruner to its end. Returns visits, relative losses and classes, by plain Python."""
    n, generator = pruner.num_samples, torch.Generator().manual_seed(seed)
    visits, sums, classes = np.zeros(n), np.zeros(n), np.full(n, -1)
    while not pruner.finished:
        total, count = 0.0, 0
        for ids in pruner.batches(batch_size):
            logits = torch.randn(len(ids), 4, generator=generator).double() * 3
            targets = torch.randint(0, 4, (len(ids),), generator=generator)
            losses = nn.functional.cross_entropy(logits, targets, reduction="none")
            total, count = total + float(losses.sum()), count + len(ids)
            pruner.loss(logits, targets, ids)
            for i, loss, row in zip(ids.tolist(), losses.tolist(), logits.tolist(), strict=True):
                visits[i] += 1
                sums[i] += loss / (total / count)
                classes[i] = max(range(4), key=row.__getitem__)
        pruner.step()
    return visits, sums / np.maximum(visits, 1), classes


@pytest.mark.parametrize("method", ["sampled", "published"])
@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (60, 16), (33, 40)])
def test_it_counts_every_visit(n: int, batch_size: int, method: str) -> None:
    pruner = Pruner(n, 0.5, 5, method=method)
    visits, relative, classes = run(pruner, batch_size, seed=n)
    result = pruner.result()
    assert result.visits.tolist() == visits.tolist()
    assert result.relative_losses.tolist() == pytest.approx(relative.tolist(), rel=1e-5)
    assert result.predicted.tolist() == classes.tolist()


def test_the_warm_up_counts() -> None:
    pruner = Pruner(20, 0.5, 4, warmup_epochs=3)
    for _ in range(3):
        for ids in pruner.batches(6):
            pruner.weigh(ids.double(), ids)
        pruner.step()
    assert pruner.gates.record.visits[:-1].tolist() == [3] * 20


def test_losses_that_are_not_finite_do_not_count() -> None:
    pruner = Pruner(4, 0.5, 1, warmup_epochs=0)
    ids = torch.arange(4)
    pruner.weigh(torch.tensor([1.0, torch.nan, torch.inf, 3.0]), ids)
    pruner.step()
    result = pruner.result()
    assert result.visits.tolist() == [1, 0, 0, 1]
    assert result.relative_losses[[0, 3]].tolist() == [0.5, 1.5]
    assert result.relative_losses[[1, 2]].isnan().all()
    assert samples_of(result, "never seen").tolist() == [1, 2]


def test_samples_whose_rows_are_all_ignored_do_not_count() -> None:
    pruner = Pruner(3, 1.0, 1, warmup_epochs=0)
    targets = torch.tensor([[0, 1], [-100, -100], [1, -100]])
    pruner.loss(torch.randn(3, 2, 2), targets, torch.arange(3))
    assert pruner.gates.record.visits[:-1].tolist() == [1, 0, 1]


def test_losses_of_zero_are_relative_to_nothing() -> None:
    pruner = Pruner(3, 1.0, 1, warmup_epochs=0)
    pruner.weigh(torch.zeros(3), torch.arange(3))
    pruner.step()
    assert pruner.result().relative_losses.tolist() == [0, 0, 0]


def test_only_training_and_observed_batches_are_noted() -> None:
    pruner = Pruner(6, 0.5, 2, held_out=[4, 5])
    logits, ids = torch.eye(4), torch.arange(4)
    with torch.no_grad():
        pruner.loss(logits, ids, ids)
    assert pruner.gates.record.predicted.tolist() == [-1] * 7
    pruner.observe(torch.ones(2), torch.tensor([4, 5]), logits[:2])
    pruner.weigh(torch.ones(2), torch.tensor([0, 1]), logits[2:])
    assert pruner.gates.record.predicted[:-1].tolist() == [2, 3, -1, -1, 0, 1]
    assert pruner.gates.record.visits[:-1].tolist() == [1, 1, 0, 0, 1, 1]


def test_overwritten_logits_are_read_before() -> None:
    pruner = Pruner(4, 0.5, 2)
    logits = torch.eye(4)[[2, 0, 3, 1]].requires_grad_() * 2
    pruner.loss(logits, torch.zeros(4, dtype=torch.int64), torch.arange(4), overwrite_logits=True)
    assert pruner.gates.record.predicted[:-1].tolist() == [2, 0, 3, 1]


def test_logits_with_more_axes_predict_no_single_class() -> None:
    pruner = Pruner(4, 0.5, 2)
    pruner.loss(torch.randn(4, 3, 5), torch.zeros(4, 5, dtype=torch.int64), torch.arange(4))
    assert pruner.gates.record.predicted.tolist() == [-1] * 5


@pytest.mark.parametrize("kind", ["classes", "soft", "multi-label", "reconstruction", "columns"])
def test_a_loss_of_ones_own_notes_predictions_of_classes_alone(kind: str) -> None:
    outputs = torch.eye(3)[[2, 0, 1, 1]] * 2
    targets = {
        "classes": torch.tensor([2, 0, 1, 0]),
        "soft": torch.full((4, 3), 1 / 3),
        "multi-label": torch.ones(4, 3, dtype=torch.int64),
        "reconstruction": outputs,
        "columns": torch.tensor([[2], [0], [1], [0]]),
    }[kind]
    pruner = Pruner(4, 0.5, 2)
    pruner.custom_loss(lambda o, t: o.square().mean(1), outputs, targets, torch.arange(4))
    expected = [2, 0, 1, 1] if kind == "classes" else [-1] * 4
    assert pruner.gates.record.predicted[:-1].tolist() == expected


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_logits_must_have_a_row_for_each_sample(rows: int) -> None:
    pruner = Pruner(4, 0.5, 2, held_out=[3])
    for call, count in ((pruner.weigh, 4), (pruner.observe, 4)):
        with pytest.raises(ValueError, match=rf"a row for each of 4 samples; found \[{rows}, 3\]"):
            call(torch.ones(count), torch.arange(count), torch.eye(5)[:rows, :3])
    assert pruner.gates.visits() == 0


def test_a_repeated_forward_pass_counts_once() -> None:
    pruner, layer = Pruner(4, 0.5, 2), nn.Linear(3, 2)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return pruner.loss(layer(x), torch.zeros(4, dtype=torch.int64), torch.arange(4))

    checkpoint(forward, torch.randn(4, 3), use_reentrant=False).backward()
    assert pruner.gates.record.visits[:-1].tolist() == [1] * 4


def test_a_run_goes_on_with_its_record() -> None:
    whole = Pruner(30, 0.5, 6)
    expected = run(whole, 8, seed=2)
    half = Pruner(30, 0.5, 6)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for ids in half.batches(8):
            logits = torch.randn(len(ids), 4, generator=generator).double() * 3
            half.loss(logits, torch.randint(0, 4, (len(ids),), generator=generator), ids)
        half.step()
    resumed = Pruner(30, 0.5, 6)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    while not resumed.finished:
        for ids in resumed.batches(8):
            logits = torch.randn(len(ids), 4, generator=generator).double() * 3
            resumed.loss(logits, torch.randint(0, 4, (len(ids),), generator=generator), ids)
        resumed.step()
    assert resumed.result().visits.tolist() == expected[0].tolist()
    assert torch.equal(resumed.result().relative_losses, whole.result().relative_losses)
    assert torch.equal(resumed.result().predicted, whole.result().predicted)


def test_without_tracked_losses_there_is_no_record() -> None:
    pruner = Pruner(30, 0.5, 3, track_losses=False)
    run(pruner, 8, seed=1)
    result = pruner.result()
    parts = (result.visits, result.relative_losses, result.predicted, result.sample_losses)
    assert parts == (None, None, None, None)
    assert set(reason_counts(result)) <= {"kept", "low score", "drawn out"}


def test_fast_prune_notes_held_out_samples_too() -> None:
    x, y = torch.randn(500, 5), torch.arange(500) % 3
    result = fast_prune(nn.Linear(5, 3), (x, y), 0.5, 3, progress=False)
    assert isinstance(result, PruneResult)
    assert len(result.held_out) == 25
    assert (result.visits[result.held_out] == 3).all()
    assert (result.predicted >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relative_losses_of_half_types_are_divided_in_float32(dtype: torch.dtype) -> None:
    pruner = Pruner(2, 0.5, 1, warmup_epochs=0)
    losses = torch.tensor([1.0, 1.55]).to(dtype)
    pruner.weigh(losses, torch.arange(2))
    exact = losses.double() / losses.double().mean()
    assert pruner.gates.record.relative_losses().tolist() == pytest.approx(exact.tolist(), rel=1e-5)


def test_more_visits_than_are_recorded_change_nothing() -> None:
    pruner = Pruner(2, 0.5, 1, warmup_epochs=0)
    record = pruner.gates.record
    record.visits[:] = MOST_VISITS - 1
    record.relative_sum[:] = 2.0 * (MOST_VISITS - 1)
    for _ in range(3):
        pruner.weigh(torch.tensor([1.0, 1.0]), torch.arange(2))
    assert record.visits[:2].tolist() == [MOST_VISITS] * 2
    assert record.relative_losses().tolist() == pytest.approx([2.0, 2.0], rel=1e-3)
