"""Pruner: errors for bad arguments, and stopping and resuming."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import drive, frozen
from torch import Tensor

from adapruner import DatasetMismatchError, Pruner
from adapruner.errors import PruningWarning


def saved_lists(result: Any) -> list[Any]:
    """The parts of a result, without seconds."""
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]
    return [
        result.indices.tolist(),
        result.gate_logits.numpy().tobytes(),
        history,
        result.selected_epoch,
        result.forced,
        result.unreadable,
        result.not_finite,
        {k: v for k, v in result.saved.items() if "seconds" not in k},
        result.config,
    ]


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": list(range(9999))}, TypeError, r"whole number; found \[0, 1, .*\.\.\.\]$"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1; found 0"),
        ({"num_samples": 10.0}, TypeError, "num_samples must be a whole number; found 10.0"),
        ({"num_samples": True}, TypeError, "num_samples must be a whole number; found True"),
        ({"keep_ratio": 1.5}, ValueError, r"keep_ratio must be in \(0, 1\].*found 1.5"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1; found 0"),
        ({"epochs": 2.5}, TypeError, "epochs must be a whole number; found 2.5"),
        ({"warmup_epochs": 5}, ValueError, r"must be less than epochs \(5\).*found 5"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs must be at least 0; found -1"),
        ({"seed": -1}, ValueError, "seed must be at least 0; found -1"),
        ({"seed": "0"}, TypeError, "seed must be a whole number; found '0'"),
        (
            {"method": "magic"},
            ValueError,
            "method must be one of .*; found 'magic'",
        ),
        ({"explore": 1.5}, ValueError, r"explore must be a share in \[0, 1\]; found 1.5"),
        ({"explore": float("nan")}, ValueError, "found nan"),
        ({"device": "meta"}, ValueError, "device must be 'cpu' or 'cuda'; found 'meta'"),
        ({"labels": [0, 1]}, ValueError, r"labels must have shape \[10\].*found \[2\]"),
        ({"labels": np.zeros((10, 2), int)}, ValueError, r"found \[10, 2\]"),
        ({"labels": [0.5] * 10}, TypeError, "labels must hold integers; found float64"),
        ({"labels": [True] * 10}, TypeError, "labels must hold integers; found bool"),
        ({"labels": [0] * 9 + [-1]}, ValueError, "labels must be at least 0; found -1"),
        ({"held_out": [10]}, ValueError, r"held_out must hold dataset indices in \[0, 10\)"),
        ({"held_out": [-1]}, ValueError, r"held_out must hold dataset indices in \[0, 10\)"),
        ({"held_out": [0.5, 1.9]}, TypeError, "held_out must hold integers; found float64"),
        ({"held_out": [True] * 9}, TypeError, "held_out must hold integers; found bool"),
        ({"held_out": [3, 3]}, ValueError, "held_out must hold each index once; found 1 repeats"),
        ({"held_out": range(10)}, ValueError, "must leave a sample to train on; found all 10"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pruner(**{"num_samples": 10, "keep_ratio": 0.5, "epochs": 5, **arguments})


def test_a_step_after_the_end_is_refused() -> None:
    pruner = Pruner(20, 0.5, epochs=3)
    drive(pruner, frozen(20))
    before = saved_lists(pruner.result())
    with pytest.raises(RuntimeError, match="this run has ended after 3 epochs"):
        pruner.step()
    assert saved_lists(pruner.result()) == before


# --- state


def interrupted(stop: int, **arguments: Any) -> Pruner:
    """A run that stops at the start of an epoch and is resumed by another pruner."""

    def losses(epoch: int) -> Tensor:
        loss = frozen(120, epoch)(0)
        loss[3] = torch.nan
        return loss

    def validation(epoch: int) -> float:
        return [1.0, 0.9, 0.7, 0.8, 0.9, 0.7, 0.6, 0.5, 0.55, 0.52][epoch]

    def pruner() -> Pruner:
        return Pruner(120, 0.5, epochs=10, seed=2, **arguments)

    first = pruner()
    first.exclude([(8, "torn")])
    while first.epoch < stop:
        for ids in torch.from_numpy(np.flatnonzero(first.reads())).split(16):
            first.weigh(losses(first.epoch)[ids], ids)
        first.step(validation(first.epoch))
    second = pruner()
    second.load_state_dict(first.state_dict())
    # From here both pruners run on their own.
    state = first.gates.logits.clone()
    drive(second, losses, validation)
    assert torch.equal(first.gates.logits, state)
    return second


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"warmup_epochs": 0, "normalize_loss": True, "track_losses": True},
        {"labels": torch.arange(120) % 3, "method": "published", "explore": 0.1},
    ],
)
def test_run_goes_on_from_any_epoch_as_if_never_stopped(arguments: dict[str, Any]) -> None:
    whole = saved_lists(interrupted(0, **arguments).result())
    for stop in (1, 2, 4, 7, 9, 10):
        assert saved_lists(interrupted(stop, **arguments).result()) == whole


def test_state_of_other_segments_or_another_dataset_is_refused() -> None:
    def started(x: torch.Tensor, labels: list[int], held_out: list[int]) -> Pruner:
        pruner = Pruner(30, 0.5, epochs=4, labels=labels, held_out=held_out)
        pruner.loader((x, torch.zeros(30)))
        return pruner

    x, labels = torch.zeros(30, 2), [0, 1] * 15
    state = started(x, labels, [3, 4]).state_dict()
    started(x, labels, [3, 4]).load_state_dict(state)
    for others in ((labels, [3, 5]), (labels[::-1], [3, 4])):
        with pytest.raises(ValueError, match="other labels or other held-out samples"):
            started(x, *others).load_state_dict(state)
    with pytest.raises(DatasetMismatchError, match="the state belongs to another dataset"):
        started(x + 1, labels, [3, 4]).load_state_dict(state)
    unknown = Pruner(30, 0.5, epochs=4, labels=labels, held_out=[3, 4])  # it has no loader yet
    unknown.load_state_dict(state)
    assert unknown.reads().sum() == 28


def test_a_state_that_is_loaded_first_knows_its_dataset_too() -> None:
    x, y = torch.randn(30, 5), torch.arange(30) % 3
    first = Pruner(30, 0.5, epochs=3)
    first.loader((x, y))
    state = first.state_dict()
    again = Pruner(30, 0.5, epochs=3)
    again.load_state_dict(state)
    with pytest.raises(DatasetMismatchError, match="the state belongs to another dataset"):
        again.loader((x + 1, y))
    again.loader((x, y))
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize("state", [{}, {"settings": {}, "epoch": 0}])
def test_what_is_no_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected the state of a Pruner; not found: .*gates"):
        Pruner(30, 0.5, epochs=4).load_state_dict(state)


def test_state_of_other_settings_is_refused_and_changes_nothing() -> None:
    pruner = Pruner(30, 0.5, epochs=4, warmup_epochs=0)
    drive(pruner, frozen(30))
    state = pruner.state_dict()
    others: list[tuple[str, int, dict[str, Any]]] = [
        ("expected keep_ratio=0.6, found keep_ratio=0.5", 30, {"keep_ratio": 0.6}),
        ("expected epochs=5, found epochs=4", 30, {"epochs": 5}),
        ("expected warmup_epochs=1, found warmup_epochs=0", 30, {"warmup_epochs": 1}),
        ("expected method='published', found method='sampled'", 30, {"method": "published"}),
        ("expected seed=1, found seed=0", 30, {"seed": 1}),
        ("expected balance='class', found balance=None", 30, {"labels": [0] * 30}),
        ("expected explore=0.0, found explore=0.02", 30, {"explore": 0.0}),
        ("expected normalize_loss=True, found normalize_loss=False", 30, {"normalize_loss": True}),
        ("expected held_out=2, found held_out=0", 30, {"held_out": [1, 2]}),
        (r"gate_logits of the state must have shape \[31\]; found \[30\]", 31, {}),
        ("expected track_losses=False, found track_losses=True", 30, {"track_losses": False}),
    ]
    for message, num_samples, arguments in others:
        settings = {"keep_ratio": 0.5, "epochs": 4, "warmup_epochs": 0, **arguments}
        other = Pruner(num_samples, **settings)
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert other.epoch == 0
        assert (other.gates.logits == 1).all()


@pytest.mark.parametrize("constants", ["Sampled(sharpness=4.0)", None, 3])
def test_a_state_with_other_constants_of_the_method_is_warned_of(constants: Any) -> None:
    pruner = Pruner(30, 0.5, epochs=12)
    drive(pruner, frozen(30))
    state = pruner.state_dict() | {"constants": constants}
    other = Pruner(30, 0.5, epochs=12)
    with pytest.warns(PruningWarning, match="whose method had other constants"):
        other.load_state_dict(state)
    assert other.epoch == 12
    assert "other constants" in other.warnings["constants"]


def test_states_with_these_constants_load_silently() -> None:
    pruner = Pruner(30, 0.5, epochs=12, method="published")
    drive(pruner, frozen(30))
    state = pruner.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pruner(30, 0.5, epochs=12, method="published").load_state_dict(state)
        del state["constants"]  # as in version 0.1.0, which had the same published method
        Pruner(30, 0.5, epochs=12, method="published").load_state_dict(state)
        pruner = Pruner(30, 0.5, epochs=12)
        Pruner(30, 0.5, epochs=12).load_state_dict(pruner.state_dict())
