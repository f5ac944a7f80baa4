"""Checkpoints of other runs, damaged checkpoints, and values that a checkpoint can hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.training_data import Stop, blobs, checkpointed
from torch import nn
from torch.nn import functional

from adapruner import DatasetMismatchError, FileFormatError
from adapruner._util.files import replace_atomically, write_file
from adapruner.training import CHECKPOINT_NAME
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run that was stopped in the middle of epoch 2."""
    with pytest.raises(Stop):
        checkpointed(tmp_path, stop_at=17)
    assert load_checkpoint(tmp_path)["pruner"]["epoch"] == 2
    return tmp_path


# --- checkpoints of other runs


def test_leftovers_of_killed_writers_are_removed(stopped: Path) -> None:
    child = os.fork()
    if child == 0:  # a writer that dies half way
        replace_atomically(stopped / CHECKPOINT_NAME, lambda temporary: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(os.listdir(stopped)) == 2
    (stopped / "notes.txt").write_text("mine")
    checkpointed(stopped)
    assert sorted(os.listdir(stopped)) == [CHECKPOINT_NAME, "notes.txt"]


def test_checkpoint_of_another_dataset_is_refused(stopped: Path) -> None:
    before = (stopped / CHECKPOINT_NAME).read_bytes()
    stored = load_checkpoint(stopped)["fingerprint"]
    x, y = blobs(420)
    x[0, 0] += 1
    given = checkpointed(None, data=(x, y), epochs=1)[1].fingerprint
    assert stored != given
    with pytest.raises(DatasetMismatchError) as caught:
        checkpointed(stopped, data=(x, y))
    assert "belongs to another dataset" in str(caught.value)
    assert stored in str(caught.value)
    assert given in str(caught.value)
    assert (stopped / CHECKPOINT_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"keep_ratio": 0.6}, "keep_ratio"),
        ({"epochs": 7}, "epochs"),
        ({"seed": 1}, "seed"),
        ({"warmup_epochs": 2}, "warmup_epochs"),
        ({"method": "published"}, "method"),
        ({"balance": "class"}, "balance"),
        ({"normalize_loss": True}, "normalize_loss"),
        ({"batch_size": 32}, "batch_size"),
        ({"validation_data": blobs(30)}, "validation_data"),
        ({"loss": lambda o, t: 7 * functional.cross_entropy(o, t, reduction="none")}, "loss"),
        ({"class_weights": [1.0, 2.0, 1.0]}, "class_weights"),
        ({"ignore_index": 2}, "ignore_index"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"model": lambda: nn.Linear(5, 3)}, "model"),
        ({"optimizer": torch.optim.SGD}, "optimizer"),
        ({"learning_rate": 0.01}, "learning_rate"),
        (
            {
                "optimizer": lambda p: (
                    optimizer := torch.optim.AdamW(p),
                    torch.optim.lr_scheduler.StepLR(optimizer, 1),
                )
            },
            "optimizer",
        ),
    ],
)
def test_checkpoint_of_other_settings_is_refused(
    stopped: Path, arguments: dict[str, Any], named: str
) -> None:
    before = (stopped / CHECKPOINT_NAME).read_bytes()
    with pytest.raises(ValueError, match=named):
        checkpointed(stopped, **arguments)
    assert (stopped / CHECKPOINT_NAME).read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "pickle", "result", "rewritten"])
def test_damaged_checkpoint_is_refused_with_advice(stopped: Path, damage: str) -> None:
    path = stopped / CHECKPOINT_NAME
    held = path.read_bytes()
    if damage == "cut":
        path.write_bytes(held[: len(held) // 2])
    elif damage == "flipped":
        path.write_bytes(held[:-100] + bytes([held[-100] ^ 1]) + held[-99:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        torch.save({"model": 1}, path)
    elif damage == "result":
        checkpointed(None, epochs=1)[1].save(path)
    else:  # a tensor altered by someone who kept the metadata
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
        tensors = load_file(path)
        tensors["state.pruner.gates.gate_logits"][3] = 100.0
        save_file(tensors, path, metadata=metadata)
    damaged = path.read_bytes()
    with pytest.raises(FileFormatError, match=r"cannot resume.*remove it to start again") as caught:
        checkpointed(stopped)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == damaged  # only the user removes it
    path.unlink()
    assert len(checkpointed(stopped)[1].indices) == 210


# --- values that a checkpoint can hold


def test_nested_states_go_round(tmp_path: Path) -> None:
    state = {
        "numbers": [1, 2.5, -0.0, 10**12, True, None, "text"],
        "pair": (1, [torch.tensor([1.5, float("nan")])]),
        "keys": {0: {"step": torch.tensor(3.0)}, "0": "another"},
        "empty": [{}, [], (), torch.zeros(0, 3)],
    }
    save_checkpoint(tmp_path, state)
    loaded = load_checkpoint(tmp_path)
    assert repr(loaded) == repr(state)


def test_what_cannot_be_held_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"old": 1})
    for value, message in [
        ({"a": [0, {1, 2}]}, "found set at state.a.1"),
        ({"f": len}, "found builtin_function_or_method at state.f"),
        ({"a": {(1, 2): 3}}, "keys of state.a must be strings or whole numbers; found tuple"),
    ]:
        with pytest.raises(TypeError, match=message):
            save_checkpoint(tmp_path, value)
    assert load_checkpoint(tmp_path) == {"old": 1}


def test_models_with_extra_state(tmp_path: Path) -> None:
    class Remembering(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"calls": 3, "scale": torch.ones(2)}

        def set_extra_state(self, state: Any) -> None:
            self.restored = state

    with pytest.raises(Stop):
        checkpointed(tmp_path, stop_at=17, model=lambda: Remembering(5, 3))
    model, _ = checkpointed(tmp_path, model=lambda: Remembering(5, 3))
    assert model.restored["calls"] == 3


# --- checkpoints with a right checksum, as an attacker would write them


@pytest.mark.parametrize(
    "structure",
    [
        3,
        [],
        {},
        {"dict": 3},
        {"dict": [[1, 2, 3]]},
        {"dict": [[[], 1]]},
        {"dict": [[1.5, 1]]},
        {"tensor": "missing"},
        {"tensor": [1]},
        {"dict": [], "list": []},
        {"list": [1]},
        {"dict": [["a", {"other": 3}]]},
    ],
)
def test_a_structure_that_is_not_a_state_is_refused(tmp_path: Path, structure: Any) -> None:
    write_file(tmp_path / CHECKPOINT_NAME, "checkpoint", {}, {"structure": structure})
    with pytest.raises(FileFormatError, match="cannot resume from the checkpoint") as caught:
        load_checkpoint(tmp_path)
    assert "remove it to start again" in str(caught.value)


def without(state: dict[str, Any], *path: str) -> None:
    for name in path[:-1]:
        state = state[name]
    del state[path[-1]]


@pytest.mark.parametrize(
    "path",
    [
        ("fingerprint",),
        ("settings",),
        ("pruner",),
        ("model",),
        ("optimizer",),
        ("pruner", "controller", "best"),
        ("pruner", "gates", "age"),
        ("optimizer", "param_groups"),
        ("model", "1.running_mean"),
    ],
)
def test_a_state_that_lacks_a_part_is_refused(stopped: Path, path: tuple[str, ...]) -> None:
    state = load_checkpoint(stopped)
    without(state, *path)
    save_checkpoint(stopped, state)
    with pytest.raises(ValueError, match=r"remove it to start|of the state|settings|expected"):
        checkpointed(stopped)
