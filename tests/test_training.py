"""fast_prune: every form of data and option, what the result says, and what is refused."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_disk import small_disk
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset
from training_data import Counted, blobs, generator_states

import adapruner
from adapruner import UnreadableSampleError, fast_prune
from adapruner.checkpoint import NAME, load_checkpoint
from adapruner.training import describe_epoch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def prune(data: Any, model: nn.Module | None = None, **arguments: Any) -> adapruner.PruneResult:
    """A short run on points in 5 dimensions."""
    settings: dict[str, Any] = {"keep_ratio": 0.6, "epochs": 4, "batch_size": 16}
    settings |= {"progress": False, **arguments}
    return fast_prune(model or nn.Linear(5, 3), data, **settings)


def check_exact(result: adapruner.PruneResult, count: int) -> None:
    indices = result.indices.tolist()
    assert len(indices) == count
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < result.num_samples


class Points(Dataset[Any]):
    """Blobs as a map-style dataset, with samples that fail or are not numbers."""

    def __init__(self, num_samples: int, bad: tuple[int, ...] = (), nan: tuple[int, ...] = ()):
        self.x, self.y = blobs(num_samples)
        self.targets = self.y.tolist()
        self.bad = bad
        self.x[list(nan)] = torch.nan

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.bad:
            raise OSError("torn file")
        return self.x[index], self.targets[index]


# --- forms of data


@pytest.mark.parametrize("form", ["tensors", "arrays", "dataset"])
def test_forms_of_the_same_samples_give_the_same_set(form: str) -> None:
    x, y = blobs(80)
    data = {"tensors": (x, y), "arrays": (x.numpy(), y.numpy()), "dataset": Points(80)}
    results = []
    for each in (data["tensors"], data[form]):
        torch.manual_seed(0)
        results.append(prune(each))
    check_exact(results[1], 48)
    assert torch.equal(results[0].indices, results[1].indices)
    assert torch.equal(results[0].gate_logits, results[1].gate_logits)


def test_image_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 128, (6, 6, 3)) + 100 * (number % 2)
        image.fromarray(pixels.astype(np.uint8)).save(path)
    (tmp_path / "dog" / "99.png").write_bytes(b"no image")
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    result = prune(str(tmp_path), model, balance="class")
    check_exact(result, 15)
    assert [index for index, _ in result.unreadable] == [24]
    assert torch.bincount(result.targets[result.indices]).tolist() == [7, 8]
    assert result.dataset["kind"] == "image folder"
    assert result.dataset["class_names"] == ["cat", "dog"]
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*/*"))]
    gone = set(range(25)) - set(result.indices.tolist())
    assert result.saved["bytes"] == sum(sizes[index] for index in gone)
    assert result.saved["samples"] == 10


def test_hugging_face_dataset() -> None:
    datasets = pytest.importorskip("datasets")
    x, y = blobs(60)
    held = datasets.Dataset.from_dict({"x": x.numpy(), "label": y.numpy()}).with_format("torch")
    torch.manual_seed(0)
    result = prune(held)
    check_exact(result, 36)
    assert result.dataset["kind"] == "hugging face"
    torch.manual_seed(0)
    assert torch.equal(prune((x, y)).indices, result.indices)


def test_dictionaries_in_and_logits_out() -> None:
    class Both(Points):
        def __getitem__(self, index: int) -> Any:
            return {"a": self.x[index, :2], "b": self.x[index, 2:]}, self.targets[index]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, a: Tensor, b: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.head(torch.cat([a, b], 1)))

    check_exact(prune(Both(50), Model()), 30)


def test_several_rows_to_a_sample() -> None:
    x = torch.randn(40, 6, 7)
    y = torch.randint(0, 3, (40, 7))
    y[:, 5:] = -100
    y[11] = -100  # all of its rows ignored
    result = prune((x, y), nn.Conv1d(6, 3, 1), validation_data=(x, y))
    check_exact(result, 24)
    assert not result.not_finite
    assert result.targets is None


def test_workers_give_the_same_result() -> None:
    results = []
    for num_workers in (0, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        results.append((prune(Points(420), model, epochs=3, num_workers=num_workers), model))
    (one, model), (two, other) = results
    assert torch.equal(one.gate_logits, two.gate_logits)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


# --- options


def test_validation_data() -> None:
    x, y = blobs(450)
    held_x, held_y = blobs(50, seed=0)
    seen = []

    def note(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return inputs

    result = prune((x, y), validation_data=(held_x, held_y), evaluation_transform=note)
    check_exact(result, 270)
    assert len(seen) == 4 * 50  # once in every epoch
    assert all(torch.equal(row, held_x[place % 50]) for place, row in enumerate(seen))
    for entry in result.history:
        assert entry["samples_evaluated"] == 0  # none of the dataset
        assert math.isfinite(entry["validation_loss"])
    assert result.history[0]["samples_read"] == 450  # nothing held out
    assert result.config["held_out"] == 0


def test_held_out_loss_is_that_of_the_model() -> None:
    x, y = blobs(60)
    model = nn.Linear(5, 3)
    result = prune((x, y), model, validation_data=(x[:20], y[:20]))
    with torch.no_grad():
        expected = functional.cross_entropy(model(x[:20]), y[:20]).item()
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_twentieth_is_held_out_and_kept_by_its_own_share() -> None:
    dataset = Counted(400)
    read_in_training: set[int] = set()

    class Noting(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                read_in_training.update(inputs[:, 0].int().tolist())
            return super().forward(inputs / 400)

    result = prune(dataset, Noting(4, 3))
    check_exact(result, 240)
    held_out = set(range(400)) - read_in_training
    assert len(held_out) == 20
    assert len(held_out & set(result.indices.tolist())) == 12
    assert [entry["samples_evaluated"] for entry in result.history] == [20] * 4
    assert (result.gate_logits[sorted(held_out)] != 1).all()
    assert prune(Counted(399), Noting(4, 3)).history[0]["samples_evaluated"] == 0


def test_classes_in_balance() -> None:
    x, y = blobs(500)
    y[:200] = 0
    result = prune((x, y), balance="class", keep_ratio=0.5)
    counts = torch.bincount(y)
    kept = torch.bincount(y[result.indices])
    assert kept.sum() == 250
    assert (kept.double() - counts.double() / 2).abs().max() < 1
    assert result.config["balance"] == "class"


def test_own_optimizer() -> None:
    made = []

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.07))
        return made[0]

    check_exact(prune(blobs(50), optimizer=sgd), 30)
    assert len(made) == 1
    assert made[0].param_groups[0]["lr"] == 0.07  # no schedule of ours


def test_own_optimizer_and_scheduler() -> None:
    made = []

    def both(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.8, momentum=0.9)
        made.append(torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
        return optimizer, made[0]

    check_exact(prune(blobs(50), optimizer=both), 30)
    assert made[0].last_epoch == 4  # once for every epoch
    assert made[0].get_last_lr() == [0.05]


def test_own_loss_of_a_regression() -> None:
    x = torch.randn(60, 5)
    y = 100 * x @ torch.randn(5, 2)
    model = nn.Linear(5, 2)
    shapes = set()

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        shapes.add((tuple(outputs.shape[1:]), tuple(targets.shape[1:])))
        return (outputs - targets).square().mean(1)

    result = prune((x, y), model, loss=squared, normalize_loss=True, validation_data=(x, y))
    check_exact(result, 36)
    assert shapes == {((2,), (2,))}
    expected = squared(model(x), y).mean().item()
    assert result.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-4)
    assert result.config["normalize_loss"] is True


def test_no_warm_up_for_a_trained_model() -> None:
    result = prune(blobs(50), warmup_epochs=0)
    assert [entry["phase"] for entry in result.history] == ["prune"] * 4


@pytest.mark.parametrize("keep_ratio", [1.0, 0.85, 0.33, 0.02])
@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_exactly_k(keep_ratio: float, epochs: int) -> None:
    result = prune(blobs(75), keep_ratio=keep_ratio, epochs=epochs)
    check_exact(result, math.floor(keep_ratio * 75 + 0.5))


# --- what the result says


def test_result_equals_independent_counts() -> None:
    dataset = Counted(420)
    counts: list[tuple[int, int]] = []  # in training, in evaluation, for each epoch
    now = [0, 0]

    class Counting(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            now[0 if self.training else 1] += len(inputs)
            if not self.training and now[1] == 21:
                counts.append((now[0], now[1]))
                now[:] = [0, 0]
            return super().forward(inputs / 400)

    result = prune(dataset, Counting(4, 3), epochs=6, seed=3)
    check_exact(result, 252)
    assert [(e["samples_read"], e["samples_evaluated"]) for e in result.history] == counts
    read = sum(training + evaluation for training, evaluation in counts)
    assert dataset.reads.sum() == read
    saved = result.saved
    assert saved["samples"] == 420 - 252
    assert saved["samples_read"] == read
    assert saved["samples_read_full"] == 6 * 420
    seconds = sum(entry["seconds"] for entry in result.history)
    assert saved["seconds"] == pytest.approx(seconds)
    assert saved["seconds_full"] == pytest.approx(seconds / read * 6 * 420)
    assert "bytes" not in saved
    expected = {
        "keep_ratio": 0.6,
        "epochs": 6,
        "warmup_epochs": 1,
        "method": "balanced",
        "seed": 3,
        "balance": None,
        "held_out": 21,
        "explore": 0.02,
        "normalize_loss": False,
        "batch_size": 16,
    }
    assert result.config == expected
    assert result.fingerprint == adapruner.as_source(dataset).fingerprint()
    assert result.dataset["num_samples"] == result.num_samples == 420
    assert result.targets.tolist() == dataset.targets
    assert result.sample_losses.isfinite().all()
    assert result.versions["torch"] == torch.__version__
    assert result.source is not None
    assert [entry["epoch"] for entry in result.history] == list(range(6))
    assert [entry["phase"] for entry in result.history] == ["warm-up"] + ["prune"] * 5


def test_seed_decides_everything_but_the_weights() -> None:
    def run(seed: int) -> bytes:
        torch.manual_seed(0)
        return prune(blobs(420), seed=seed, epochs=3).gate_logits.numpy().tobytes()

    assert run(1) == run(1) != run(2)


def test_model_is_trained_in_place_and_keeps_its_modes() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mode in (False, True):
        model.train(mode)
        model[2].train(not mode)
        prune(blobs(450), model, epochs=2)
        assert [module.training for module in model] == [mode, mode, not mode, mode]
    for name, tensor in model.state_dict().items():
        assert not torch.equal(tensor, before[name])


def test_callers_generators_are_untouched() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.Linear(8, 3))
    before = generator_states()
    for data in (blobs(420), Points(420)):
        prune(data, model, transform=lambda x: x + np.random.rand())  # noqa: NPY002
        assert generator_states() == before
    with pytest.raises(UnreadableSampleError):
        prune(Points(60, bad=(1,)), model, on_error="raise")
    assert generator_states() == before


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    result = prune(blobs(40), epochs=2, progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    for entry in result.history:
        assert describe_epoch(entry, 2) in printed.err
    prune(blobs(40), epochs=2)
    assert capsys.readouterr().err == ""


# --- what is refused


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
        ((X, Y), {"keep_ratio": 0.01}, ValueError, "keeps fewer than one sample"),
        ((X, Y), {"epochs": 0}, ValueError, "epochs must be at least 1"),
        ((X, Y), {"batch_size": 0}, ValueError, "batch_size must be a whole number"),
        ((X, Y), {"warmup_epochs": 4}, ValueError, "warmup_epochs must be less than epochs"),
        ((X, Y), {"balance": "sex"}, ValueError, 'balance must be None or "class"; found \'sex\''),
        ((X, Y), {"method": "best"}, ValueError, "unknown method 'best'"),
        ((X, Y), {"on_error": "ignore"}, ValueError, 'on_error must be "skip" or "raise"'),
        ((X, Y), {"device": "cuda"}, ValueError, "kernels for device 'cpu' only"),
        ((X, Y), {"transform": 3}, TypeError, "transform must be callable"),
        ((X, Y), {"optimizer": lambda p: None}, TypeError, "optimizer must be .*gave NoneType"),
        ((X, Y), {"optimizer": lambda p: [1, 2]}, TypeError, "optimizer must be .*gave int"),
        ((X, Y), {"loss": nn.CrossEntropyLoss()}, ValueError, "sample_loss"),
        ((X, Y), {"loss": lambda o, t: -o.square().sum(1)}, ValueError, "a loss of at least 0"),
        ((X, Y[:29]), {}, ValueError, "30 inputs and 29 targets"),
        ((X[:0], Y[:0]), {}, ValueError, "at least one sample, got arrays of length 0"),
        (Points(0), {}, ValueError, "at least one sample, got a Points of length 0"),
        (Stream(), {}, TypeError, "a map-style dataset.* is needed"),
        ((x for x in X), {}, TypeError, "a map-style dataset.* is needed"),
        (X, {}, TypeError, r"expected a tuple \(inputs, targets\)"),
        ((X, Y), {"validation_data": (X[:0], Y[:0])}, ValueError, "at least one sample"),
        ((X, Y.float()), {}, TypeError, "target.*integer"),
        ((X, Y.double()), {"balance": "class"}, ValueError, 'balance="class" needs the classes'),
        ((X, Y - 1), {"balance": "class"}, ValueError, "labels must be at least 0; found -1"),
        (far_targets(), {}, IndexError, r"target.* is 3"),
        ((X, Y - 1), {}, IndexError, r"target.* is -1"),
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


def test_model_must_be_a_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module; found function"):
        fast_prune(lambda x: x, (X, Y))


def test_model_must_give_logits() -> None:
    class Pair(nn.Linear):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs), 0

    with pytest.raises(TypeError, match=r"must give logits as a tensor.*gave tuple.*need loss="):
        prune((X, Y), Pair(5, 3))


def test_dataset_without_a_length() -> None:
    class Endless(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return X[0], 0

    with pytest.raises(TypeError, match="Endless has no length"):
        prune(Endless())


# --- samples that are broken


def test_unreadable_samples_are_listed_and_never_kept() -> None:
    bad = tuple(range(0, 420, 10))  # some of them held out
    result = prune(Points(420, bad=bad), keep_ratio=0.85)
    check_exact(result, 357)
    assert result.unreadable == [(index, "OSError: torn file") for index in bad]
    assert not set(result.indices.tolist()) & set(bad)
    assert (result.gate_logits[list(bad)] == -torch.inf).all()


@pytest.mark.parametrize("bad", [5, "held out"])
def test_unreadable_sample_can_stop_the_run(bad: Any) -> None:
    if bad == "held out":
        from adapruner.training import _hold_out

        bad = int(_hold_out(420, 0)[3])
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
    with pytest.raises(ValueError, match="asks for 60, and only 59 of them can be read"):
        prune(Points(100, bad=tuple(range(20, 61))))


@pytest.mark.parametrize("held_out", [False, True])
def test_one_sample_that_is_not_a_number(held_out: bool) -> None:
    from adapruner.training import _hold_out

    part = _hold_out(420, 0)
    broken = int(part[3]) if held_out else int(np.setdiff1d(np.arange(420), part)[8])
    result = prune(Points(420, nan=(broken,)), epochs=8)
    check_exact(result, 252)
    assert result.not_finite == [broken]
    assert result.gate_logits[broken] == 1  # left alone
    assert result.gate_logits.isfinite().all()
    # And nothing is held back because of it.
    assert not result.forced
    assert all(math.isfinite(entry["validation_loss"]) for entry in result.history)


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
    # Where the cause is gone, the run goes on from there.
    result = prune((x, y), nn.Linear(5, 3), checkpoint_dir=tmp_path)
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2, 3]


def test_inputs_that_are_nan_everywhere(tmp_path: Path) -> None:
    x, y = blobs(60)
    model = nn.Linear(5, 3)
    with pytest.raises(FloatingPointError, match=r"no batch of epoch 0.*check the learning rate"):
        prune((x * math.nan, y), model, checkpoint_dir=tmp_path)
    assert model.weight.isfinite().all()
    assert os.listdir(tmp_path) == []


# --- where the checkpoint cannot be written


@pytest.mark.parametrize("place", ["file", "file/inside", "/proc/self/checkpoints"])
def test_folder_that_cannot_be_made_is_an_error_before_the_first_epoch(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("old")
    dataset = Counted(30)
    with pytest.raises(OSError, match="file|/proc"):
        prune(dataset, nn.Linear(4, 3), checkpoint_dir=tmp_path / place)
    assert dataset.reads.sum() == 0
    assert (tmp_path / "file").read_text() == "old"


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    data = blobs(60)
    torch.manual_seed(0)
    whole = prune(data)
    with small_disk(tmp_path / "disk") as disk:

        class Filling(nn.Linear):
            calls = 0

            def forward(self, inputs: Tensor) -> Tensor:
                self.calls += 1
                if self.calls == 9:  # the third epoch
                    fill(disk / "filler")
                return super().forward(inputs)

        torch.manual_seed(0)
        with pytest.raises(OSError, match="No space left|File too large") as caught:
            prune(data, Filling(5, 3), checkpoint_dir=disk)
        assert str(disk / NAME) in str(caught.value)
        assert sorted(os.listdir(disk)) == [NAME, "filler"]
        (disk / "filler").unlink()
        assert load_checkpoint(disk)["pruner"]["epoch"] == 2
        result = prune(data, checkpoint_dir=disk)
        assert torch.equal(result.gate_logits, whole.gate_logits)


def fill(path: Path) -> None:
    """Fill the disk of ``path``; where it is no disk of its own, let files have 1 KiB and no more."""
    if not os.path.ismount(path.parent):
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (1 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        )
    with path.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(bytes(4096))
