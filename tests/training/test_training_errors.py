"""fast_prune: errors for bad arguments, runs with broken samples, and full disks."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_disk import small_disk
from support.training_data import Counted, Points, blobs, check_exact, prune
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from adapruner import UnreadableSampleError, fast_prune
from adapruner.training import CHECKPOINT_NAME
from adapruner.training.checkpoint import load_checkpoint
from adapruner.training.groups import hold_out
from adapruner.vision import to_tensor

pytestmark = pytest.mark.usefixtures("seeded")


# --- bad arguments


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(*blobs(10), strict=True)


def far_targets() -> tuple[Tensor, Tensor]:
    x, y = blobs(30)
    y[17] = 3
    return x, y


X, Y = blobs(30)


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        ((X, Y), {"keep_ratio": 0}, ValueError, r"keep_ratio must be in \(0, 1\]"),
        ((X, Y), {"keep_ratio": 1.01}, ValueError, r"keep_ratio must be in \(0, 1\]"),
        ((X, Y), {"keep_ratio": "most"}, TypeError, "keep_ratio must be a number"),
        ((X, Y), {"keep_ratio": 0.01}, ValueError, "must keep at least one sample"),
        ((X, Y), {"epochs": 0}, ValueError, "epochs must be at least 1"),
        ((X, Y), {"batch_size": 0}, ValueError, "batch_size must be at least 1; found 0"),
        ((X, Y), {"warmup_epochs": 4}, ValueError, "warmup_epochs must be less than epochs"),
        ((X, Y), {"balance": "sex"}, ValueError, "or the group of each sample; found 'sex'"),
        ((X, Y), {"balance": [0.5] * len(Y)}, TypeError, "balance must"),
        ((X, Y), {"balance": Y[1:]}, ValueError, "balance must have shape"),
        ((X, Y), {"balance": Y - 1}, ValueError, "balance must be at least 0; found -1"),
        ((X, Y), {"precision": "fp8"}, ValueError, 'one of "fp32", "bf16"; found .fp8.'),
        (
            (X, Y),
            {"method": "best"},
            ValueError,
            "method must be one of .*; found 'best'",
        ),
        ((X, Y), {"on_error": "ignore"}, ValueError, 'on_error must be "skip" or "raise"'),
        ((X, Y), {"device": "meta"}, ValueError, "device must be 'cpu' or 'cuda'; found 'meta'"),
        ((X, Y), {"transform": 3}, TypeError, "transform must be callable"),
        ((X, Y), {"optimizer": torch.optim.SGD([X], 0.1)}, TypeError, "function of.*found SGD"),
        ((X, Y), {"seed": -1}, ValueError, "seed must be at least 0; found -1"),
        ((X, Y), {"optimizer": lambda p: None}, TypeError, "optimizer must be .*returns NoneType"),
        ((X, Y), {"optimizer": lambda p: [1, 2]}, TypeError, "optimizer must be .*returns int"),
        ((X, Y), {"loss": nn.CrossEntropyLoss()}, ValueError, "sample_loss"),
        ((X, Y), {"precision": ["bf16"]}, ValueError, 'one of "fp32", "bf16"; found .*bf16'),
        ((X, Y), {"method": ["sampled"]}, TypeError, "method must be one of sampled"),
        ((X, Y), {"device": ["cpu"]}, ValueError, "device must be 'cpu' or 'cuda'; found"),
        ((X, Y), {"class_weights": "balanced"}, ValueError, "class_weights must be numbers"),
        ((X, Y), {"class_weights": {0: 1.0}}, ValueError, "class_weights must be numbers"),
        ((X, Y), {"ignore_index": 1.7}, TypeError, "ignore_index must be a whole number"),
        ((X, Y), {"ignore_index": None}, TypeError, "ignore_index must be a whole number"),
        ((X, Y), {"collate_fn": None}, TypeError, "collate_fn must be callable; found NoneType"),
        ((X, Y), {"evaluation_transform": "x"}, TypeError, "evaluation_transform must be call"),
        (
            (X, Y),
            {"optimizer": lambda p: (torch.optim.SGD(p, 0.1), "x")},
            TypeError,
            "optimizer must be .* found a str as the scheduler",
        ),
        ((X, Y), {"optimizer": torch.optim.LBFGS}, TypeError, "optimizer must be .*LBFGS"),
        ((X, Y), {"loss": "mse"}, TypeError, "loss must be a function of .* found 'mse'"),
        (
            (X, Y),
            {"loss": lambda o, t: -o.square().sum(1)},
            ValueError,
            "must be at least 0; found -",
        ),
        ((X, Y[:29]), {}, ValueError, "30 inputs and 29 targets"),
        ((X[:0], Y[:0]), {}, ValueError, "at least one sample; found arrays of length 0"),
        (Points(0), {}, ValueError, "at least one sample; found a Points of length 0"),
        (Stream(), {}, TypeError, "expected a map-style dataset"),
        ((x for x in X), {}, TypeError, "expected a map-style dataset"),
        (X, {}, TypeError, r"found a single Tensor; pass a tuple \(inputs, targets\)"),
        ((X, Y), {"validation_data": (X[:0], Y[:0])}, ValueError, "at least one sample"),
        ((X, Y.float()), {}, TypeError, "target.*integer"),
        ((X, Y.double()), {"balance": "class"}, ValueError, 'balance="class" needs the classes'),
        ((X, Y - 1), {"balance": "class"}, ValueError, "labels must be at least 0; found -1"),
        ((X, Y), {"loss": lambda o, t: None}, TypeError, "sample_loss must be a tensor; found No"),
        ((X, Y), {"loss": lambda o, t: 0.5}, TypeError, "sample_loss must be .* found float, 0.5"),
        ([(x, "a") for x in X], {}, UnreadableSampleError, "the target of sample .* is text, 'a'"),
        (
            (X, Y),
            {"validation_data": (X, Y + 1)},
            IndexError,
            "must be a class of the logits, at most 2, or -100; found 3",
        ),
        (far_targets(), {}, IndexError, r"target.* must be a class .*; found 3"),
        ((X, Y - 1), {}, IndexError, r"target.* must be a class .*; found -1"),
        ("/no/such/folder", {}, FileNotFoundError, "/no/such/folder"),
    ],
)
def test_arguments(data: Any, arguments: dict[str, Any], error: Any, message: str) -> None:
    model = nn.Linear(5, 3)
    before = model.weight.clone()
    with pytest.raises(error, match=message):
        prune(data, model, **arguments)
    assert model.training
    if error is not IndexError and "loss" not in arguments:
        assert torch.equal(model.weight, before)


def test_a_model_is_trained() -> None:
    frozen = nn.Linear(5, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="a parameter that requires gradients; found none"):
        prune((X, Y), frozen)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, pytest.raises(RuntimeError, match=r"called under torch\.no_grad"):
            prune((X, Y), nn.Linear(5, 3))


@pytest.mark.parametrize("count", [9, 420])
def test_broken_inputs_in_every_batch_do_not_end_the_run(count: int) -> None:
    """They are excluded, so the next epoch trains on the others."""
    bad = tuple(range(0, count, 40))
    result = prune(Points(count, nan=bad), keep_ratio=0.5, batch_size=count, epochs=12)
    assert [index for index, _ in result.unreadable] == list(bad)
    assert not result.kept[list(bad)].any()
    assert [entry["training_loss"] is None for entry in result.history][1:] == [False] * 11
    # Where no input is broken, it is the training that is.
    with pytest.raises(FloatingPointError, match="no batch of epoch 0 had a finite loss"):
        prune(Points(420), loss=lambda outputs, targets: outputs.sum(1) * math.nan)


def test_targets_that_are_all_ignored_are_no_visits_of_held_out_samples() -> None:
    inputs, targets = blobs(420)
    ignored = torch.arange(420) % 3 == 0
    targets = targets.masked_fill(ignored, -100)
    result = prune((inputs, targets), epochs=12)
    part = torch.from_numpy(hold_out(420, 0))
    assert 0 < ignored[part].sum() < len(part)
    assert result.visits is not None
    assert (result.visits[ignored] == 0).all()
    assert (result.visits[part][~ignored[part]] == 12).all()
    assert (result.gate_logits[ignored] == -1000).all()
    assert not result.kept[ignored].any()
    # The held-out loss is that of the samples that have one.
    model = nn.Linear(5, 3)
    losses = []
    for places in (part, part[~ignored[part]]):
        held_out = inputs[places], targets[places]
        run = prune((inputs, targets), copy.deepcopy(model), validation_data=held_out)
        losses.append([entry["validation_loss"] for entry in run.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_model_must_be_a_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module; found function"):
        fast_prune(lambda x: x, (X, Y))


def test_model_must_give_logits() -> None:
    class Pair(nn.Linear):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs), 0

    with pytest.raises(
        TypeError, match=r"must return logits as a tensor.*a tuple of 2.*need loss="
    ):
        prune((X, Y), Pair(5, 3))


def test_dataset_without_a_length() -> None:
    class Endless(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return X[0], 0

    with pytest.raises(TypeError, match="found Endless, which has no length"):
        prune(Endless())


# --- samples that are broken


def test_unreadable_samples_are_listed_and_never_kept() -> None:
    bad = tuple(range(0, 420, 10))  # some of them held out
    with pytest.warns(UserWarning, match="42 of 420 samples .* sample 0: OSError: torn file"):
        result = prune(Points(420, bad=bad), keep_ratio=0.85)
    check_exact(result, 357)
    assert result.unreadable == [(index, "OSError: torn file") for index in bad]
    assert not set(result.indices.tolist()) & set(bad)
    assert (result.gate_logits[list(bad)] == -torch.inf).all()


@pytest.mark.parametrize("bad", [5, "held out"])
def test_unreadable_sample_can_stop_the_run(bad: Any) -> None:
    if bad == "held out":
        from adapruner.training.groups import hold_out

        bad = int(hold_out(420, 0)[3])
    with pytest.raises(UnreadableSampleError, match=f"sample {bad} cannot be read: OSError: torn"):
        prune(Points(420, bad=(bad,)), on_error="raise")


def test_unreadable_validation_samples_are_left_out_with_a_warning() -> None:
    data = (X, Y)
    with pytest.warns(UserWarning, match="1 samples of the validation data cannot be read.*torn"):
        result = prune(data, validation_data=Points(20, bad=(3,)))
    assert result.unreadable == []
    assert all(math.isfinite(entry["validation_loss"]) for entry in result.history)


def test_nothing_readable_is_an_error_at_once() -> None:
    with pytest.raises(UnreadableSampleError, match="none of the first 16 samples can be read"):
        prune(Points(420, bad=tuple(range(420))))


def test_too_few_readable_samples() -> None:
    with pytest.raises(ValueError, match="needs 60 readable samples; found 54"):
        prune(Points(100, bad=tuple(range(20, 66))))


@pytest.mark.parametrize("balance", [None, "class"])
def test_one_unreadable_sample_of_which_all_are_to_be_kept(balance: str | None) -> None:
    few = pytest.warns(UserWarning, match="expected 100 kept samples .*; found 99, since no more")
    with few, pytest.warns(UserWarning, match="1 of 100 samples cannot be read"):
        result = prune(Points(100, bad=(20,)), keep_ratio=1.0, balance=balance)
    assert result.indices.tolist() == [index for index in range(100) if index != 20]
    assert not result.forced


@pytest.mark.parametrize("held_out", [False, True])
def test_one_sample_that_is_not_a_number(held_out: bool) -> None:
    part = hold_out(420, 0)
    broken = int(part[3]) if held_out else int(np.setdiff1d(np.arange(420), part)[8])
    result = prune(Points(420, nan=(broken,)), epochs=8)
    of_loss = [text for text in result.warnings if "needs about" not in text]
    check_exact(result, 252)
    assert result.not_finite == [broken]
    assert broken not in result.indices.tolist()
    # Noted as unreadable, and not read again.
    assert result.unreadable == [(broken, "its input is not finite")]
    assert result.gate_logits[broken] == -torch.inf
    assert of_loss == [
        *(
            "steps left out because the loss or a gradient of their batch was not finite: 1; the "
            "result lists samples whose loss was not finite"
            for _ in range(not held_out)
        ),
        f"1 of 420 samples cannot be read and are not kept; the first is sample {broken}: "
        "its input is not finite",
    ]
    assert result.gate_logits.isfinite().sum() == 419
    for data, arguments in ((Points(420, nan=(broken,)), {}), (Points(420), {"nan": (broken,)})):
        if arguments:  # as validation data
            arguments = {"validation_data": Points(420, **arguments)}
        with pytest.raises(UnreadableSampleError, match=f"sample {broken} cannot be read: its inp"):
            prune(data, epochs=2, on_error="raise", **arguments)
    # It does not make the controller pause.
    assert not result.forced
    assert all(math.isfinite(entry["validation_loss"]) for entry in result.history)


def test_an_input_that_is_not_finite_can_stop_the_run() -> None:
    with pytest.raises(UnreadableSampleError, match="sample 9 cannot be read: its input is not fi"):
        prune(Points(420, nan=(9,)), on_error="raise", validation_data=(X, Y))


def test_a_model_may_take_inputs_that_are_not_finite() -> None:
    class Careful(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.nan_to_num())

    result = prune(Points(420, nan=(9,)), Careful(5, 3))
    assert not result.unreadable
    assert not result.not_finite


def test_a_loss_that_is_never_finite_is_not_kept() -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets % 3, reduction="none") / (targets < 3)

    x, y = blobs(420)
    y[:4] = 3
    with pytest.warns(UserWarning, match="steps left out"):
        result = prune((x, y), loss=loss, keep_ratio=0.95, validation_data=(x[4:], y[4:]))
    check_exact(result, 399)
    assert result.not_finite == [0, 1, 2, 3]
    assert result.indices[0] >= 4
    assert not result.unreadable


@pytest.mark.parametrize("wrap", [list, tuple, lambda parts: dict(enumerate(parts))])
def test_inputs_of_several_parts_are_looked_through(wrap: Any) -> None:
    from adapruner.training.steps import not_finite_inputs

    first, second = torch.zeros(4, 2, 3), torch.zeros(4)
    first[1, 0, 2], second[3] = torch.inf, torch.nan
    others = [torch.arange(4), "x", torch.tensor(torch.nan), torch.full((3,), torch.nan)]
    parts = wrap([first, second, *others])
    assert not_finite_inputs(parts, 4, torch.device("cpu")).tolist() == [False, True, False, True]


def test_nothing_but_nan_is_an_error_and_the_checkpoint_stands(tmp_path: Path) -> None:
    x, y = blobs(60)

    class Breaks(nn.Linear):
        calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(inputs) * (math.nan if self.calls > 8 else 1)

    with pytest.raises(FloatingPointError, match="no batch of epoch 2 had a finite loss") as caught:
        prune((x, y), Breaks(5, 3), checkpoint_dir=tmp_path)
    first = [int(word) for word in str(caught.value).split("[")[1].split("]")[0].split(",")]
    assert first == sorted(first)
    state = load_checkpoint(tmp_path)
    assert state["pruner"]["epoch"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    # Without the cause, the run resumes from there.
    result = prune((x, y), nn.Linear(5, 3), checkpoint_dir=tmp_path)
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2, 3]


def test_inputs_that_are_nan_everywhere(tmp_path: Path) -> None:
    x, y = blobs(60)
    model = nn.Linear(5, 3)
    with pytest.raises(FloatingPointError, match=r"no batch of epoch 0.*check the learning rate"):
        prune((x * math.nan, y), model, checkpoint_dir=tmp_path)
    assert model.weight.isfinite().all()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_data_that_go_away_are_named_and_not_the_learning_rate(tmp_path: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    image_module = pytest.importorskip("PIL.Image")
    for index in range(24):
        path = tmp_path / "images" / str(index % 2) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(np.full((8, 8, 3), index * 10, np.uint8)).save(path)

    class Moves(nn.Sequential):
        calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 6:  # the end of the first epoch
                (tmp_path / "images").rename(tmp_path / "away")
            return super().forward(inputs)

    model = Moves(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(UnreadableSampleError, match="expected a readable sample"):
        prune(str(tmp_path / "images"), model, loader=loader, batch_size=4, transform=to_tensor)


# --- where the checkpoint cannot be written


@pytest.mark.parametrize("place", ["file", "file/inside", "/proc/self/checkpoints"])
def test_folder_that_cannot_be_made_is_an_error_before_the_first_epoch(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("old")
    dataset = Counted(30)
    with pytest.raises(OSError, match=r"file|/proc"):
        prune(dataset, nn.Linear(4, 3), checkpoint_dir=tmp_path / place)
    assert dataset.reads.sum() == 0
    assert (tmp_path / "file").read_text() == "old"


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    data = blobs(60)
    torch.manual_seed(0)
    whole = prune(data)
    with small_disk(tmp_path / "disk") as disk:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)

        class Filling(nn.Linear):
            calls = 0

            def forward(self, inputs: Tensor) -> Tensor:
                self.calls += 1
                if self.calls == 9:  # the third epoch
                    fill(disk / "filler")
                return super().forward(inputs)

        torch.manual_seed(0)
        with pytest.raises(OSError, match=r"No space left|File too large") as caught:
            prune(data, Filling(5, 3), checkpoint_dir=disk)
        assert str(disk / CHECKPOINT_NAME) in str(caught.value)
        assert sorted(os.listdir(disk)) == [CHECKPOINT_NAME, "filler"]
        (disk / "filler").unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert load_checkpoint(disk)["pruner"]["epoch"] == 2
        result = prune(data, checkpoint_dir=disk)
        assert torch.equal(result.gate_logits, whole.gate_logits)


def fill(path: Path) -> None:
    """Fill the disk of ``path``. If it is not a separate disk, limit files to 1 KiB."""
    if not os.path.ismount(path.parent):
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (1 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        )
    with path.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(bytes(4096))
