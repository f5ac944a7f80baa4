"""Warnings about a run: each is given once, is kept in the result, and has a run without it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from support.training_data import frozen
from torch import Tensor

from adapruner import Pruner
from adapruner.errors import PruningWarning

N = 100


def epoch(pruner: Pruner, batches: Iterable[Tensor] | None = None) -> None:
    losses = frozen(N)(pruner.epoch)
    for ids in pruner.batches(16) if batches is None else batches:
        pruner.weigh(losses[ids], ids)


def messages(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if one.category is PruningWarning]


@pytest.mark.parametrize(("epochs", "ratio", "count"), [(9, 0.5, 1), (10, 0.5, 0), (2, 1.0, 0)])
def test_short_runs_are_warned_of(epochs: int, ratio: float, count: int) -> None:
    found = messages(lambda: Pruner(N, ratio, epochs))
    assert len(found) == count
    assert all(f"found epochs={epochs}" in text for text in found)


def test_a_whole_run_has_no_warning() -> None:
    def run() -> None:
        pruner = Pruner(N, 0.5, 12, labels=np.arange(N) % 2)
        while not pruner.finished:
            epoch(pruner)
            pruner.step()
        assert pruner.result().warnings == []

    assert messages(run) == []


@pytest.mark.parametrize("warmup", [0, 2])
def test_samples_without_a_loss_are_warned_of_once(warmup: int) -> None:
    pruner = Pruner(N, 0.5, 12, warmup_epochs=warmup)

    def part() -> None:
        batches = list(pruner.batches(16))
        epoch(pruner, batches[:-1])
        pruner.step()

    left = N - 6 * 16
    [text] = messages(part)
    assert text.startswith(f"epoch 0 was to train on {N} samples; found {left} of them without")
    assert pruner.history[0]["samples_skipped"] == left
    assert messages(part) == []  # once
    assert pruner.state_dict()["warnings"] == {"reads": text}
    later = Pruner(N, 0.5, 12, warmup_epochs=warmup)
    later.load_state_dict(pruner.state_dict())
    assert later.warnings == {"reads": text}


def test_a_last_batch_that_is_dropped_on_purpose_is_not_warned_of() -> None:
    pruner = Pruner(N, 0.5, 12)
    loader = pruner.loader((torch.rand(N, 2), torch.arange(N) % 2), 16, drop_last=True)

    planned = loader.sampler.planned_batches()
    delivered = []

    def counted() -> None:
        while not pruner.finished:
            batches = [ids for _, _, ids in loader]
            delivered.append(len(batches))
            epoch(pruner, batches)
            pruner.step()

    assert messages(counted) == []
    assert sum(entry["samples_skipped"] for entry in pruner.history) > 0
    assert sum(delivered) == planned  # samples of dropped batches do not delay the pruning


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("warmup", [0, 1])
def test_places_in_a_batch_given_as_ids_are_warned_of(warmup: int, track: bool) -> None:
    pruner = Pruner(N, 0.5, 12, warmup_epochs=warmup, track_losses=track)

    def run() -> None:
        for _ in range(2):
            epoch(pruner, [torch.arange(len(ids)) for ids in pruner.batches(16)])
            pruner.step()

    [text] = messages(run)
    assert "look like places in a batch: found losses for the ids 0 to 15 again" in text


@pytest.mark.parametrize("ids", [[0], list(range(8)), list(range(1, 17))])
def test_ids_that_are_indices_are_not_taken_for_places(ids: list[int]) -> None:
    # One sample, the first ones once, and a few that do not start at 0.
    pruner = Pruner(N, 0.5, 12, warmup_epochs=0)
    times = 1 if ids[0] == 0 else 4
    epoch(pruner, [torch.tensor(ids)] * times)
    found = messages(pruner.step)
    assert [text for text in found if "places" in text] == []


@pytest.mark.parametrize("what", ["loss twice", "observe twice", "once"])
def test_several_losses_of_a_sample_in_an_epoch_are_warned_of(what: str) -> None:
    pruner = Pruner(N, 0.5, 12, held_out=range(10))
    told = []
    for _ in range(4):
        for _ in range(1 + (what == "loss twice")):
            epoch(pruner)
        for _ in range(1 + (what == "observe twice")):
            pruner.observe(torch.ones(10), torch.arange(10))
        told += messages(pruner.step)
    expected = {
        "loss twice": ["epoch 0 has 180 losses of 90 samples that were read"],
        "observe twice": ["epoch 0 has 20 losses of 10 samples that are held out"],
        "once": [],
    }[what]
    assert [text.partition(". ")[0] for text in told] == expected


def test_samples_that_turn_out_to_be_unreadable_after_their_loss_are_none_of_them() -> None:
    pruner = Pruner(N, 0.5, 12)
    epoch(pruner)
    pruner.exclude([(3, "torn"), (7, "torn")])
    assert messages(pruner.step) == []


def test_a_run_without_a_loss_has_no_result() -> None:
    pruner = Pruner(N, 0.5, 12)
    told = []
    pruner.may_drop = N  # as many as a loader may leave out
    while not pruner.finished:
        told += messages(pruner.step)
    assert len(told) == 1
    assert told[0].startswith(f"epoch 0 was to train on {N} samples; found {N} of them without")
    with pytest.raises(RuntimeError, match="nothing was learned: no batch of the run was given"):
        pruner.result()


def test_a_result_tells_of_samples_that_cannot_be_read() -> None:
    pruner = Pruner(N, 0.5, 12)
    while not pruner.finished:
        epoch(pruner)
        if pruner.epoch == 6:
            pruner.exclude([(3, "torn"), (7, "gone")])
        pruner.step()
    text = f"2 of {N} samples cannot be read and are not kept; the first is sample 3: torn"
    assert messages(pruner.result) == [text]
    assert pruner.result().warnings == [text]


def test_a_result_keeps_the_warnings_of_the_run_and_its_own() -> None:
    pruner, texts = Pruner(N, 0.5, 8), []
    while not pruner.finished:
        epoch(pruner)
        pruner.step()
        if pruner.epoch in (3, 5, 8):
            shown = messages(pruner.result)
            again = messages(pruner.result)
            assert again == []
            texts.append(pruner.result().warnings)
            assert shown == texts[-1][1:]
    few = "a selection needs about 10 epochs to be better than a random set; found epochs=8"
    ended = "the run ended in epoch {} of 8, so its result is partial"
    assert texts == [[few, ended.format(3)], [few, ended.format(5)], [few]]


class Named(torch.utils.data.Dataset):
    """The attribute `labels` names classes, and items have targets of their own."""

    def __init__(self, target_of: Callable[[int], int]) -> None:
        self.labels, self.target_of = [i % 4 for i in range(N)], target_of

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), self.target_of(index)


@pytest.mark.parametrize(
    ("target_of", "told"),
    [
        pytest.param(lambda i: i // 10, True, id="another field"),
        pytest.param(lambda i: i % 4 if i != 50 else 3, True, id="one sample"),
        pytest.param(lambda i: i % 4, False, id="the same"),
        pytest.param(lambda i: i % 2, False, id="classes merged"),
        pytest.param(lambda i: 3 - i % 4, False, id="classes numbered anew"),
        pytest.param(lambda i: i % 4 if i < 50 else 9, False, id="some ignored"),
    ],
)
def test_targets_that_are_not_the_classes_of_the_dataset_are_warned_of(
    target_of: Callable[[int], int], told: bool
) -> None:
    pruner = Pruner(N, 0.5, 12)
    loader = pruner.loader(Named(target_of), 16)
    logits = torch.zeros(N, 10, requires_grad=True)
    for _, targets, ids in loader:
        pruner.loss(logits[ids], targets, ids, ignore_index=9)
    found = [text for text in messages(pruner.step) if "names other classes" in text]
    assert len(found) == told
    assert not told or "found the targets" in found[0]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_held_out_loss_that_is_not_finite_is_warned_of(loss: float) -> None:
    pruner = Pruner(N, 0.5, 12)

    def run(*losses: float | None) -> None:
        for one in losses:
            epoch(pruner)
            pruner.step(one)

    assert messages(lambda: run(None, 1.0, 0.9)) == []
    [text] = messages(lambda: run(loss, loss))
    assert text.startswith(f"the held-out loss of epoch 3 is {loss}.")
    assert pruner.history[-1]["decision"] == "back off"
