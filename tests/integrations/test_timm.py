"""timm's datasets, loaders and mixup with a pruner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

timm = pytest.importorskip("timm", reason="needs timm")
image = pytest.importorskip("PIL.Image", reason="needs Pillow")

from timm.data import FastCollateMixup, ImageDataset, Mixup, create_dataset, create_loader  # noqa: E402
from timm.data.distributed_sampler import RepeatAugSampler  # noqa: E402
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # noqa: E402

from adapruner import DatasetMismatchError, Pruner, as_source, pruned_loader  # noqa: E402
from adapruner.errors import PruningWarning  # noqa: E402
from adapruner.integrations.timm import pruned_timm_loader, soft_target_losses  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded")
CLASSES = ("bus", "cat", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images whose red value is 3 times their index in timm's order, and an equal test set."""
    for part in ("train", "test"):
        for i in range(24):
            path = tmp_path / part / CLASSES[i // 8] / f"{part}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.new("RGB", (16, 16), (3 * i, 0, 0)).save(path)
    return tmp_path


def dataset_of(root: Path, part: str = "train") -> Any:
    return ImageDataset(str(root / part))


def loader_of(dataset: Any, **arguments: Any) -> Any:
    settings = {"input_size": (3, 16, 16), "batch_size": 6, "num_workers": 0, "mean": (0.0,) * 3}
    settings |= {"std": (1.0,) * 3, "is_training": True, "no_aug": True}
    settings |= {"persistent_workers": False, "device": torch.device("cpu")}
    return create_loader(dataset, **settings | arguments)


def test_a_dataset_knows_its_classes_and_paths(root: Path) -> None:
    dataset = dataset_of(root)
    source = as_source(dataset)
    assert source.targets.tolist() == [i // 8 for i in range(24)]
    assert source.class_names == list(CLASSES)
    assert source.paths == [f"{CLASSES[i // 8]}/train{i}.png" for i in range(24)]
    assert source.doubts == {}
    for index in (0, 9, 23):
        found, target = source[index]
        wanted, expected = dataset[index]
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
        assert target == expected
    by_name = create_dataset("", str(root / "train"))
    assert as_source(by_name).fingerprint() == source.fingerprint()


def test_training_and_test_sets_of_one_length_are_told_apart(root: Path) -> None:
    training, test = (as_source(dataset_of(root, part)) for part in ("train", "test"))
    assert training.fingerprint() != test.fingerprint()
    assert training.fingerprint() == as_source(dataset_of(root)).fingerprint()
    (root / "train").rename(root / "moved")
    assert training.fingerprint() == as_source(dataset_of(root, "moved")).fingerprint()
    pruner = Pruner(24, 0.5, 12)
    pruner.loader(dataset_of(root, "test"), 4)
    while not pruner.finished:
        for ids in pruner.batches(6):
            pruner.weigh(torch.rand(len(ids)), ids)
        pruner.step()
    with pytest.raises(DatasetMismatchError, match="fingerprint"):
        pruner.result().subset(dataset_of(root, "moved"))


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_read_what_the_pruner_chooses(root: Path, prefetch: bool, workers: int) -> None:
    dataset = dataset_of(root)
    ordinary = loader_of(dataset, use_prefetcher=prefetch, num_workers=workers)
    pruner = Pruner(24, 0.5, 12)
    loader = pruned_timm_loader(ordinary, pruner)
    for _ in range(4):
        expected = list(pruner.batches(6, drop_last=True))  # as timm does
        assert len(loader) == len(expected)
        found = list(loader)
        for (inputs, targets, ids), wanted in zip(found, expected, strict=True):
            assert torch.equal(ids, wanted)
            assert torch.equal(targets, ids // 8)
            red = (inputs[:, 0] * 255).round().long().flatten(1)
            assert torch.equal(red, (3 * ids)[:, None].expand_as(red))
            pruner.weigh(torch.rand(len(ids)), ids)
        pruner.step()
    assert pruner.samples.paths == as_source(dataset).paths


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(
    root: Path, prefetch: bool, workers: int
) -> None:
    def start() -> tuple[Pruner, Any]:
        ordinary = loader_of(
            dataset_of(root), batch_size=4, use_prefetcher=prefetch, num_workers=workers
        )
        pruner = Pruner(24, 0.5, 12)
        return pruner, pruned_timm_loader(ordinary, pruner)

    def train(pruner: Pruner, loader: Any, stop: tuple[int, int] | None = None) -> list[list[int]]:
        read: list[list[int]] = []
        while not pruner.finished:
            if stop and stop == (pruner.epoch, 0):
                return read
            for place, (_, targets, ids) in enumerate(loader, 1):
                assert torch.equal(targets, ids // 8)
                read.append(ids.tolist())
                pruner.weigh(losses[ids], ids)
                if stop and stop == (pruner.epoch, place):
                    return read
            pruner.step()
        return read

    losses = torch.rand(24)
    pruner, loader = start()
    whole = train(pruner, loader)
    assert len(whole[-1]) == 4
    for stop in ((0, 2), (4, 1), (4, 3), (5, 0)):
        stopped, its_loader = start()
        read = train(stopped, its_loader, stop)
        states = json.loads(json.dumps(its_loader.state_dict()))
        assert (states["epoch"], states["position"]) == stop
        again, next_loader = start()
        again.load_state_dict(stopped.state_dict())
        next_loader.load_state_dict(states)
        assert next_loader.state_dict() == states
        assert read + train(again, next_loader) == whole
        assert torch.equal(again.result().gate_logits, pruner.result().gate_logits)


def test_an_unreadable_image_is_not_replaced_by_the_next(root: Path) -> None:
    (root / "train" / "cat" / "train9.png").write_bytes(b"no image")
    dataset = dataset_of(root)
    assert dataset[9][1] == dataset[10][1]  # timm gives the next one
    dataset.transform = lambda x: torch.from_numpy(np.asarray(x).copy())
    pruner = Pruner(24, 0.5, 12)
    read = [index for _, _, ids in pruner.loader(dataset, 6) for index in ids.tolist()]
    assert sorted(read) == [i for i in range(24) if i != 9]
    assert [index for index, _ in pruner.unreadable] == [9]
    for form in (pruned_timm_loader, pruned_loader):
        with pytest.raises(OSError, match=r"train9\.png"):
            list(form(loader_of(dataset, use_prefetcher=False), pruner))


@pytest.mark.parametrize("way", ["collate", "batch"])
def test_mixup_trains_and_prunes_with_soft_targets(root: Path, way: str) -> None:
    options = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 3}
    dataset = dataset_of(root)
    mix = None if way == "collate" else Mixup(**options)
    collate = FastCollateMixup(**options) if way == "collate" else None
    ordinary = loader_of(dataset, use_prefetcher=mix is None, collate_fn=collate)
    model = timm.create_model("test_resnet", num_classes=3).to(memory_format=torch.channels_last)
    average = timm.utils.ModelEmaV3(model, decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(24, 0.5, 12)
    loader = pruned_timm_loader(ordinary, pruner)
    while not pruner.finished:
        for inputs, targets, ids in loader:
            if mix is not None:
                inputs, targets = mix(inputs, targets)
            assert targets.shape == (len(ids), 3)
            loss = pruner.weigh(soft_target_losses(model(inputs), targets), ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model)
        pruner.step()
    result = pruner.result()
    assert len(result.indices) == 12
    assert result.sample_losses.isfinite().all()
    assert result.targets.tolist() == [i // 8 for i in range(24)]


def test_mixup_can_be_turned_off(root: Path) -> None:
    collate = FastCollateMixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=3)
    loader = pruned_timm_loader(
        loader_of(dataset_of(root), collate_fn=collate), Pruner(24, 1.0, 12)
    )
    assert loader.mixup_enabled
    loader.mixup_enabled = False  # as in timm's training script
    for inputs, targets, ids in loader:
        assert torch.equal(targets, nn.functional.one_hot(ids // 8, 3).to(targets.dtype))
        red = (inputs[:, 0] * 255).round().long().flatten(1)
        assert torch.equal(red, (3 * ids)[:, None].expand_as(red))
    plain = pruned_timm_loader(loader_of(dataset_of(root)), Pruner(24, 1.0, 12))
    assert not plain.mixup_enabled


def test_losses_are_those_of_timm() -> None:
    logits = torch.randn(7, 5, requires_grad=True)
    targets = torch.rand(7, 5).softmax(1)
    losses = soft_target_losses(logits, targets)
    torch.testing.assert_close(losses.mean(), SoftTargetCrossEntropy()(logits, targets))
    hard = torch.arange(7) % 5
    found = soft_target_losses(logits, nn.functional.one_hot(hard, 5).float())
    wanted = nn.functional.cross_entropy(logits, hard, reduction="none")
    torch.testing.assert_close(found, wanted)
    pruner = Pruner(7, 0.5, 12)
    smooth: Tensor = pruner.loss(logits, hard, torch.arange(7), label_smoothing=0.1)
    torch.testing.assert_close(smooth, LabelSmoothingCrossEntropy(0.1)(logits, hard))
    with pytest.raises(ValueError, match=r"found \[7, 5\] and \[7\]"):
        soft_target_losses(logits, hard)


def test_a_dataset_with_items_of_its_own_is_read_by_itself(root: Path) -> None:
    class Relabelled(ImageDataset):
        def __getitem__(self, index: int) -> Any:
            picture, _ = super().__getitem__(index)
            return picture, 7

    for dataset in (
        Relabelled(str(root / "train"), transform=red),
        ImageDataset(str(root / "train"), load_bytes=True, transform=len),
    ):
        pruner = Pruner(24, 0.5, 12)
        with pytest.warns(PruningWarning, match="gives the next image in place of one that cannot"):
            loader = pruned_loader(DataLoader(dataset, 24), pruner)
        inputs, targets, ids = next(iter(loader))
        expected = [dataset[index] for index in ids.tolist()]
        assert [tuple(item) for item in zip(inputs.tolist(), targets.tolist(), strict=True)] == [
            tuple(item) for item in expected
        ]


def red(picture: Any) -> int:
    return int(picture.getpixel((0, 0))[0])


def test_a_batch_that_is_larger_than_an_epoch_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="drop_last would leave out every sample of an epoch: it"):
        pruned_timm_loader(loader_of(dataset_of(root), batch_size=20), Pruner(24, 0.5, 12))


def test_what_does_not_fit_is_refused(root: Path) -> None:
    pruner = Pruner(24, 0.5, 12)
    with pytest.raises(TypeError, match="must be a torch DataLoader; found list"):
        pruned_timm_loader([1], pruner)
    endless = loader_of(dataset_of(root), num_workers=1, use_multi_epochs_loader=True)
    with pytest.raises(ValueError, match="Create the loader without use_multi_epochs_loader"):
        pruned_timm_loader(endless, pruner)
    repeated = loader_of(dataset_of(root))
    repeated.loader = DataLoader(
        repeated.dataset, 6, sampler=RepeatAugSampler(repeated.dataset, num_replicas=2, rank=0)
    )
    with pytest.warns(UserWarning, match="whose RepeatAugSampler does so too"):
        pruned_timm_loader(repeated, pruner)
    with pytest.raises(TypeError, match="ids must be"):
        pruner.loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), None)
