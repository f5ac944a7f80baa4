"""States with values that would be used as places, counts or masks."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.training_data import drive, frozen

from adapruner import Pruner, ops
from adapruner.ops import _C

N = 30


def pruner() -> Pruner:
    return Pruner(N, 0.5, 4, warmup_epochs=0)


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """The state of a run in its third epoch."""
    running = pruner()
    losses = frozen(N)
    for epoch in range(2):
        for ids in running.batches(8):
            running.weigh(losses(epoch)[ids], ids)
        running.step(1.0)
    return running.state_dict()


def set_at(*path: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets the value at the end of ``path``."""

    def change(state: Any) -> None:
        *places, last, value = path
        for place in places:
            state = state[place]
        state[last] = value

    return change


def set_slot(name: str, value: int) -> Callable[[dict[str, Any]], None]:
    return lambda state: set_at("gates", "state", _C.state_slots[name], value)(state)


def too_many_bits(state: dict[str, Any]) -> None:
    state["read"][-1] |= 128


HOSTILE = {
    "epoch of the state must be a whole number": set_at("epoch", -(10**9)),
    "epoch of the state must be a whole number in [0, 4]; found 5": set_at("epoch", 5),
    "epoch of the state must be a whole number in [0, 4]; found 2.0": set_at("epoch", 2.0),
    "history of the state must be a list of 2 epochs": set_at("history", []),
    "history.kept of the state must be a number": set_at("history", 0, "kept", "x"),
    "history.fitted of the state must be a number": set_at("history", 1, "fitted", None),
    "history.slope of the state must be a number in [1, 1]": set_at("history", 1, "slope", -1e9),
    "history.slope of the state must be a number in [1, 1]; found nan": set_at(
        "history", 1, "slope", math.nan
    ),
    "history of the state must be epochs with all their values; found none of kept": lambda state: (
        state["history"][0].pop("kept")
    ),
    "history.phase of the state must be text": set_at("history", 0, "phase", None),
    "kept of the state must be a mask, uint8 [4]": set_at("kept", torch.ones(3, dtype=torch.uint8)),
    "read of the state must be a mask, uint8 [4]": set_at("read", torch.ones(4)),
    "read of the state must be a mask of 30 samples": too_many_bits,
    "a sample of the state must be a dataset index": set_at("unreadable", [[N, "torn"]]),
    "a sample of the state must be a dataset index in [0, 30); found -1": set_at(
        "not_finite", [-1]
    ),
    "controller.progress of the state must be": set_at("controller", "progress", math.inf),
    "controller.best of the state must be": set_at("controller", "best", "low"),
    "controller.behind of the state must be": set_at("controller", "behind", 3),
    "not_finite_count of the state must be at least 0": set_slot("not_finite_count", -(10**6)),
    "population of the state must be 30": set_slot("population", 10**9),
    "evaluated of the state must be a whole number of at least 0": set_at("evaluated", -1),
    "warnings of the state must be texts by name": set_at("warnings", ["few epochs"]),
    "targets_of_constant of the state must be int64 ids": set_at(
        "targets_of_constant", {"ids": torch.arange(3), "targets": torch.zeros(2)}
    ),
    "another type: KeyError: 'ids'": set_at("targets_of_constant", {}),
    "another type: AttributeError": set_at("settings", None),
    "another type: TypeError": set_at("gates", None),
    "another type: KeyError: 'mask'": set_at("best", {}),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_it_is_refused_and_changes_nothing(state: dict[str, Any], message: str) -> None:
    hostile = copy.deepcopy(state)
    HOSTILE[message](hostile)
    fresh = pruner()
    before = repr(fresh.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        fresh.load_state_dict(hostile)
    assert repr(fresh.state_dict()) == before


def test_the_state_itself_is_taken(state: dict[str, Any]) -> None:
    fresh = pruner()
    fresh.load_state_dict(copy.deepcopy(state))
    drive(fresh, frozen(N))
    assert len(fresh.result().indices) == 15


@pytest.mark.parametrize("other", [None, [], "state", 3])
def test_what_is_no_state_is_refused(other: Any) -> None:
    with pytest.raises(
        ValueError, match=f"expected the state of a Pruner; found {type(other).__name__}"
    ):
        pruner().load_state_dict(other)


def test_a_final_mask_of_another_size_is_refused() -> None:
    running = pruner()
    drive(running, frozen(N))
    state = running.state_dict()
    state["kept"] = torch.full_like(state["kept"], 1)
    with pytest.raises(
        ValueError, match="kept of the state must be a mask with 15 samples; found 4"
    ):
        pruner().load_state_dict(state)


@pytest.mark.parametrize("count", [-1, -(2**40), 2**62])
def test_the_operator_writes_nowhere_else_for_a_count_that_no_run_has(count: int) -> None:
    """The count is a place in the list of samples whose loss is not finite."""
    gates = pruner().gates
    gates.set_integer("not_finite_count", count)
    before = gates.state.clone()
    losses = torch.tensor([math.nan])
    ops.gate_update(
        gates.logits, gates.age, gates.state, gates.last_loss, torch.tensor([3]), losses, losses
    )
    changed = (gates.state != before).nonzero().flatten().tolist()
    assert changed == [_C.state_slots["not_finite_count"]]
