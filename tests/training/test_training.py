"""fast_prune: every form of data, every option, and the result."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import Counted, Points, blobs, check_exact, generator_states, prune
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

import adapruner
from adapruner import Pruner, UnreadableSampleError
from adapruner.training.trainer import describe_epoch
from adapruner.vision import to_tensor

pytestmark = pytest.mark.usefixtures("seeded")


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


def cats_and_dogs(folder: Path) -> nn.Module:
    """24 images of 6 x 6 pixels and a broken file; returns a model for them."""
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for number in range(24):
        path = folder / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 128, (6, 6, 3)) + 100 * (number % 2)
        image.fromarray(pixels.astype(np.uint8)).save(path)
    (folder / "dog" / "99.png").write_bytes(b"no image")
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 2))


@pytest.mark.parametrize("transform", [None, lambda image: to_tensor(image) * 2])
def test_a_loop_of_ones_own_over_an_image_folder(tmp_path: Path, transform: Any) -> None:
    model = cats_and_dogs(tmp_path)
    pruner = Pruner(25, 0.6, epochs=4)
    loader = pruner.loader(tmp_path, batch_size=8, transform=transform)
    highest = 0.0
    while not pruner.finished:
        for x, y, ids in loader:
            assert x.shape[1:] == (3, 6, 6)
            highest = max(highest, x.max().item())
            pruner.loss(model(x), y, ids).backward()
        pruner.step()
    assert highest == pytest.approx(226 / 255 * (1 if transform is None else 2), abs=0.01)
    result = pruner.result()
    check_exact(result, 15)
    assert result.unreadable[0][0] == 24
    assert result.targets.tolist() == [0] * 12 + [1] * 13
    assert result.dataset["class_names"] == ["cat", "dog"]
    gone = set(range(25)) - set(result.indices.tolist())
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*/*"))]
    assert result.saved["bytes"] == sum(sizes[index] for index in gone)
    assert result.saved["seconds"] == sum(entry["seconds"] for entry in result.history)
    assert result.source.fingerprint() == result.fingerprint


def test_images_of_two_sizes_need_a_transform(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    model = cats_and_dogs(tmp_path)
    image.new("RGB", (5, 4)).save(tmp_path / "cat" / "00.png")
    with pytest.raises(ValueError, match="3 x 4 x 5 and 3 x 6 x 6: pass a transform"):
        prune(str(tmp_path), model, loader="torch", batch_size=25)


def test_image_folder(tmp_path: Path) -> None:
    model = cats_and_dogs(tmp_path)
    with pytest.warns(UserWarning, match="1 of 25 samples cannot be read and are not kept"):
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


def test_lines_of_usual_epochs_fit_80_columns() -> None:
    entry = {"epoch": 99, "keep_ratio": 0.7, "samples_read": 1_281_167, "training_loss": 2.3456}
    entry |= {"validation_loss": 2.3456, "decision": "back off", "seconds": 1234.5}
    assert len(describe_epoch(entry, 100)) <= 80
    first = entry | {"validation_loss": None, "training_loss": None}
    assert "loss - held-out -" in describe_epoch(first, 100)


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
        assert entry["samples_evaluated"] == 0  # not from the dataset
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
    assert result.sample_losses[sorted(held_out)].isfinite().all()
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


def test_rare_classes_keep_their_floors() -> None:
    x, y = blobs(500)
    y[:470] = 0
    model = nn.Linear(5, 3)
    plain, result = (
        prune((x, targets), copy.deepcopy(model), keep_ratio=0.2, loss=loss)
        for targets, loss in ((y.double(), _whole_targets), (y, None))
    )
    kept = torch.bincount(y[result.indices])
    assert kept.sum() == 100
    assert (kept >= torch.bincount(y).clamp(max=30)).all()
    assert result.config["balance"] == "floor"
    # What epochs read is as without classes.
    assert plain.config["balance"] is None
    torch.testing.assert_close(result.gate_logits, plain.gate_logits)


def _whole_targets(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets.long(), reduction="none")


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor, list])
def test_groups_in_balance(form: Callable[[Any], Any]) -> None:
    x, y = blobs(500)
    groups = np.random.default_rng(3).integers(0, 60, 500) ** 3  # large numbers, some unused
    result = prune((x, y), balance=form(groups), keep_ratio=0.3)
    _, of_sample, counts = np.unique(groups, return_inverse=True, return_counts=True)
    kept = np.bincount(of_sample[result.indices.numpy()], minlength=len(counts))
    assert kept.sum() == 150
    # Held-out samples have quotas of their own, so a group has two that are rounded.
    assert np.abs(kept - 0.3 * counts).max() < 2


def test_own_optimizer() -> None:
    made = []

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.07))
        return made[0]

    check_exact(prune(blobs(50), optimizer=sgd), 30)
    assert len(made) == 1
    assert made[0].param_groups[0]["lr"] == 0.07  # the user's schedule


def test_own_optimizer_and_scheduler() -> None:
    made = []

    def both(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.8, momentum=0.9)
        made.append(torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
        return optimizer, made[0]

    check_exact(prune(blobs(50), optimizer=both), 30)
    assert made[0].last_epoch == 4  # once for every epoch
    assert made[0].get_last_lr() == [0.05]


def test_scheduler_that_follows_the_held_out_loss() -> None:
    made = []

    def both(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.0)  # so that the loss never improves
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        made.append(plateau)
        return optimizer, plateau

    result = prune(blobs(50), optimizer=both, validation_data=blobs(30))
    held_out = [entry["validation_loss"] for entry in result.history]
    assert made[0].best == held_out[0] == pytest.approx(held_out[-1])
    assert made[0].last_epoch == 4


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


# --- the result


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
        "method": "sampled",
        "seed": 3,
        "balance": "floor",
        "held_out": 21,
        "explore": 0.02,
        "normalize_loss": False,
        "track_losses": True,
        "batch_size": 16,
        "loader": "torch",
        "loader_reason": "samples of kind 'dataset' are neither image files nor uint8 images",
        "device": "cpu",
        "evaluation_loader": "torch",
        "precision": "fp32",
        "compile": False,
        "ranks": 1,
        "parallel": "none",
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
    def run(seed: int, callers: int) -> bytes:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        torch.manual_seed(callers)
        return prune(blobs(420), model, seed=seed, epochs=3).gate_logits.numpy().tobytes()

    assert run(1, 0) == run(1, 5) != run(2, 0)


def test_a_collate_function_may_draw_from_any_generator() -> None:
    def collate(items: list[Any]) -> Any:
        x, y = default_collate(items)
        noise = np.random.randn(*x.shape) + random.gauss(0, 1)  # noqa: NPY002
        return x + 0.3 * torch.from_numpy(noise).float() * torch.randn(()), y

    def run(seed: int) -> bytes:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        random.seed()
        np.random.seed()  # noqa: NPY002
        before = generator_states()
        prune(Points(420), model, seed=seed, epochs=3, collate_fn=collate)
        assert generator_states() == before
        return model.weight.detach().numpy().tobytes()

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
