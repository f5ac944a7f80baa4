"""A run that is killed at any moment and resumed ends like a run that never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.training_data import Stop, blobs, checkpointed, outcome
from torch import nn
from torch.nn import functional
from torch.utils.data import default_collate

from adapruner import PruneResult
from adapruner.errors import PruningWarning
from adapruner.training import CHECKPOINT_NAME
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint
from adapruner.training.trainer import FUNCTIONS

# Starts the same run again and again, each time in a new process. The processes are forked before
# torch has done any work, because importing torch and its compiler takes longer than the runs. Each
# process ends by SIGKILL at its place.
SCRIPT = '''
import json, os, random, signal, sys

import numpy as np
import torch
import torch._dynamo
from safetensors.torch import save_file
from torch import nn

from adapruner import fast_prune
from adapruner._util.files import read_file
from adapruner.training import CHECKPOINT_NAME

torch.set_num_threads(1)


class Noisy(torch.utils.data.Dataset):
    """Classes of stripes, under noise from torch, NumPy and random."""

    def __init__(self):
        self.targets = [index % 4 for index in range(400)]

    def __len__(self):
        return 400

    def __getitem__(self, index):
        x = torch.zeros(1, 8, 8)
        x[0, self.targets[index] :: 4] = 1 + random.random()
        x = x + torch.randn(1, 8, 8) * np.random.uniform(0.5, 1.5)
        return (x.flip(1) if index % 37 == 0 else x), self.targets[index]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Network(nn.Module):
    def __init__(self, die_at_batch):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3),
            nn.Flatten(), nn.Linear(216, 4),
        )
        self.left = die_at_batch

    def forward(self, x):
        if self.training:
            self.left -= 1
            if self.left == 0:
                die()
        return self.layers(x)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


def sgd(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)


def call_then_die(name, number, before):
    """Kill this process at the number-th call of os.NAME, before or after it has done its work."""
    original, left = getattr(os, name), [number]

    def wrapper(*arguments):
        left[0] -= 1
        if left[0] == 0 and before:
            die()
        result = original(*arguments)
        if left[0] == 0:
            die()
        return result

    setattr(os, name, wrapper)


def live(folder, optimizer, death):
    how, number = death.split()
    if how == "replace":
        call_then_die("replace", int(number), before=True)
    elif how == "fsync":
        call_then_die("fsync", int(number), before=True)
    elif how == "written":
        call_then_die("replace", int(number), before=False)
    torch.manual_seed(0)
    model = Network(int(number) if how == "batch" else -1)
    torch.seed()  # whatever the caller's generators are at
    np.random.seed(os.getpid())
    random.seed(os.getpid())
    result = fast_prune(
        model, Noisy(), 0.5, 7, batch_size=64, seed=5, num_workers=2,
        optimizer=globals()[optimizer], checkpoint_dir=os.path.join(folder, "checkpoint"),
        progress=False,
    )
    result.save(os.path.join(folder, "result"))
    save_file(model.state_dict(), os.path.join(folder, "model"))


def main(folder, optimizer, *deaths):
    for death in deaths:
        child = os.fork()
        if child == 0:
            try:
                live(folder, optimizer, death)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        files = sorted(os.listdir(os.path.join(folder, "checkpoint")))
        structure = read_file(os.path.join(folder, "checkpoint", CHECKPOINT_NAME), "checkpoint")[1]
        pruner = dict(structure["structure"]["dict"])["pruner"]
        print(json.dumps([death, status, dict(pruner["dict"])["epoch"], len(files)]), flush=True)


main(*sys.argv[1:])
'''


def live(folder: Path, optimizer: str, *deaths: str) -> list[list[Any]]:
    """For each process: its death, its exit code, the epoch of the checkpoint, and the files."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", ".", optimizer, *deaths],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_killed_run_ends_as_one_that_never_stopped(tmp_path: Path, optimizer: str) -> None:
    never = live(tmp_path / "never", optimizer, "end 0")
    assert never == [["end 0", 0, 7, 1]]
    # An epoch of 380 samples has 6 batches; later ones have fewer.
    killed = live(
        tmp_path / "killed",
        optimizer,
        "batch 9",  # in the middle of epoch 1
        "replace 1",  # epoch 1 is trained and its checkpoint written, but not in its place
        "fsync 1",  # the same, but the file may not be on the disk yet
        "batch 1",  # at the very start of epoch 1
        "written 2",  # right after the checkpoint of epoch 2
        "fsync 4",  # epochs 3 and 4: their files are in place, maybe not the folder's entry
        "batch 7",  # in the middle of a late epoch
        "end 0",
    )
    assert killed == [
        ["batch 9", -9, 1, 2],  # the checkpoint and the lock of the killed run
        ["replace 1", -9, 1, 3],  # with the temporary folder left behind
        ["fsync 1", -9, 1, 3],  # the earlier folder was removed; this is a new one
        ["batch 1", -9, 1, 2],
        ["written 2", -9, 3, 3],
        ["fsync 4", -9, 5, 2],
        ["batch 7", -9, 6, 2],
        ["end 0", 0, 7, 1],
    ]
    expected = PruneResult.load(tmp_path / "never" / "result")
    result = PruneResult.load(tmp_path / "killed" / "result")
    assert len(result.indices) == 200
    assert outcome(result) == outcome(expected)
    weights = load_file(tmp_path / "killed" / "model")
    for name, tensor in load_file(tmp_path / "never" / "model").items():
        assert torch.equal(weights[name], tensor), name


# --- within one process


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


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "rmsprop and steps": lambda p: (
        optimizer := torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
    ),
    "two groups": lambda p: torch.optim.AdamW(
        [{"params": [each]} for each in p], lr=0.01, amsgrad=True
    ),
    "sequence": lambda p: (
        optimizer := torch.optim.SGD(p, lr=0.1),
        torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
            ],
            [2],
        ),
    ),
    "lambda": lambda p: (
        optimizer := torch.optim.SGD(p, lr=0.1),
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.8**epoch),
    ),
}


@pytest.mark.parametrize("optimizer", [None, *OPTIMIZERS])
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch's own
def test_run_goes_on_with_any_optimizer(tmp_path: Path, optimizer: str | None) -> None:
    made = None if optimizer is None else OPTIMIZERS[optimizer]
    model, whole = checkpointed(None, optimizer=made)
    for stop_at in (9, 20):
        with pytest.raises(Stop):
            checkpointed(tmp_path, stop_at=stop_at, optimizer=made)
    other, result = checkpointed(tmp_path, optimizer=made)
    assert outcome(result) == outcome(whole)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


class Scaled:
    """A transform whose repr has the address of a function, which differs in every process."""

    def __init__(self, by: float) -> None:
        self.by, self.function = by, lambda x: x * by

    def __repr__(self) -> str:
        return f"Scaled({self.by}, {self.function!r})"

    def __call__(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        pytest.param({"transform": Scaled(1)}, {"transform": Scaled(1)}, [], id="the same"),
        pytest.param(
            {"transform": Scaled(1)},
            {"transform": Scaled(2)},
            ["another transform: expected Scaled(1, ", "found Scaled(2, "],
            id="another",
        ),
        pytest.param(
            {"evaluation_transform": Scaled(1)},
            {},
            ["another evaluation_transform: expected Scaled(1, ", "found None."],
            id="none",
        ),
        pytest.param(
            {},
            {"collate_fn": partial(default_collate)},
            ["another collate_fn: expected torch.", "found functools.partial("],
            id="collate",
        ),
        pytest.param(
            {"loss": partial(functional.cross_entropy, reduction="none")},
            {"loss": partial(functional.cross_entropy, reduction="none", label_smoothing=0.5)},
            ["another loss_function: expected functools.partial(", "label_smoothing=0.5"],
            id="loss",
        ),
    ],
)
def test_another_transform_at_a_resume_is_warned_of(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(Stop):
        checkpointed(tmp_path, stop_at=17, **first)
    for _ in range(2):  # resumed in the middle, and finished: then the result is that of before
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, result = checkpointed(tmp_path, **then)
        texts = [t for t in result.warnings if "the run goes on with another" in t]
        assert len(texts) == bool(told)
        assert all(part in texts[0] for part in told)
    assert not any("goes on with another" in str(one.message) for one in caught)


def test_a_complete_run_with_another_transform_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first = checkpointed(tmp_path, transform=Scaled(1))
    with pytest.warns(PruningWarning, match=r"complete run with another transform: expected Sc"):
        _, again = checkpointed(tmp_path, transform=Scaled(2), progress=True)
    assert "is of a complete run, so nothing is trained" in capsys.readouterr().err
    assert torch.equal(again.indices, first.indices)


@pytest.mark.parametrize("change", [{"epochs": 7}, {"keep_ratio": 0.4}, {"seed": 1}])
def test_a_checkpoint_of_other_settings_is_named_and_says_what_to_do(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    checkpointed(tmp_path)
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"(?s)the checkpoint in .*{name}.*choose another fold"):
        checkpointed(tmp_path, **change)


def test_an_older_checkpoint_that_names_no_transform_is_not_warned_of(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        checkpointed(tmp_path, stop_at=17, transform=Scaled(1))
    state = load_checkpoint(tmp_path)
    assert state is not None
    for name in FUNCTIONS:
        del state["settings"][name]
    save_checkpoint(tmp_path, state)
    _, result = checkpointed(tmp_path, transform=Scaled(2))
    assert [text for text in result.warnings if "goes on" in text] == []


def test_finished_run_gives_its_result_at_once(tmp_path: Path) -> None:
    model, first = checkpointed(tmp_path)
    before = (tmp_path / CHECKPOINT_NAME).read_bytes()
    other, second = checkpointed(tmp_path, stop_at=1)  # not a single batch
    assert outcome(second) == outcome(first)
    assert second.saved == first.saved
    assert torch.equal(second.targets, first.targets)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert (tmp_path / CHECKPOINT_NAME).read_bytes() == before


def test_checkpoints_do_not_change_the_run(tmp_path: Path) -> None:
    assert outcome(checkpointed(tmp_path / "new" / "folder")[1]) == outcome(checkpointed(None)[1])
    assert os.listdir(tmp_path / "new" / "folder") == [CHECKPOINT_NAME]


def test_number_of_workers_may_change(stopped: Path) -> None:
    assert outcome(checkpointed(stopped, num_workers=2)[1]) == outcome(checkpointed(None)[1])


def test_unreadable_and_broken_samples_are_remembered(tmp_path: Path) -> None:
    class Torn(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.x, self.y = blobs(420)
            self.x[33] = torch.nan

        def __len__(self) -> int:
            return 420

        def __getitem__(self, index: int) -> Any:
            if index % 50 == 7:
                raise OSError("torn")
            return self.x[index], self.y[index]

    def model() -> nn.Module:
        return nn.Linear(5, 3)

    with pytest.raises(Stop):
        checkpointed(tmp_path, stop_at=17, data=Torn(), model=model)
    unreadable = partial(pytest.warns, UserWarning, match="10 of 420 samples cannot be read")
    left_out = partial(pytest.warns, UserWarning, match="steps left out .*: 1;")
    results = []
    for folder in (tmp_path, None, tmp_path):  # resumed, not stopped, and complete
        with unreadable(), left_out():
            results.append(checkpointed(folder, data=Torn(), model=model)[1])
    result, whole, again = results
    assert result.warnings == whole.warnings == again.warnings
    assert result.unreadable == whole.unreadable != []
    assert result.not_finite == whole.not_finite == [33]
    assert torch.equal(result.indices, whole.indices)
