"""The DALI loader reads arrays of pixels like the torch loader, straight from memory maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import picture
from support.training_data import Followed
from torch import Tensor
from torch.utils.data import Subset

from adapruner import as_source
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.data.sources.base import Source
from adapruner.pruning.distributed import Ranks
from adapruner.vision import MEAN, STD, evaluation_transform, training_transform
from adapruner.vision.decoding import to_picture

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
image_module = pytest.importorskip("PIL.Image")

from adapruner.data.dali.loader import DaliEvaluation, DaliLoader, why_not_dali  # noqa: E402

COUNT = 41
FORMS = (
    *("mapped", "mapped grey", "mapped CHW", "fortran", "array", "tensor", "subset"),
    *("reversed", "mapped reversed", "read-only CHW reversed"),
)


def pixels(height: int, width: int) -> np.ndarray:
    """Smooth colours, uint8 ``[41, height, width, 3]``."""
    small = [image_module.fromarray(picture(n, 6, 6, n % 3)) for n in range(COUNT)]
    return np.stack([np.asarray(s.resize((width, height), image_module.BICUBIC)) for s in small])


def source_of(form: str, folder: Path, transform: Any, size: tuple[int, int] = (32, 32)) -> Source:
    x, y = pixels(*size), np.arange(COUNT) % 3
    np.save(folder / "y.npy", y)
    if form == "array":
        return as_source((x, y), transform=transform)
    if form == "tensor":
        chw = torch.from_numpy(x).permute(0, 3, 1, 2)  # not contiguous
        return as_source((chw, torch.from_numpy(y)), transform=transform)
    if "reversed" in form:
        np.save(folder / "x.npy", x)
        rows = np.load(folder / "x.npy", mmap_mode="r") if form == "mapped reversed" else x
        rows = rows[:, ::-1, :, ::-1]
        if form == "read-only CHW reversed":
            rows = rows.transpose(0, 3, 1, 2)
            rows.flags.writeable = False
        return as_source((rows, y.astype(">u2")[:, None]), transform=transform)
    stored = {
        "mapped grey": x[..., 1],
        "mapped CHW": np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
        "fortran": np.asfortranarray(x),
    }.get(form, x)
    np.save(folder / "x.npy", stored)
    files = folder / "x.npy", folder / "y.npy"
    if form == "subset":
        subset = Subset(as_source(files), list(range(COUNT - 1, -1, -1)))
        return as_source(subset, transform=transform)
    return as_source(files, transform=transform)


def epochs(loader: Any, followed: Followed) -> list[list[tuple[Tensor, ...]]]:
    """The batches of some epochs. Each epoch reads other samples."""
    seen = []
    for epoch in range(3):
        followed.epoch = epoch
        followed.mask = np.random.default_rng(epoch).random(COUNT) < (1, 0.6, 0.3)[epoch]
        seen.append(list(loader))
    return seen


@pytest.mark.parametrize("form", FORMS)
def test_the_batches_of_the_torch_loader(form: str, tmp_path: Path) -> None:
    source = source_of(form, tmp_path, evaluation_transform(32))
    followed = Followed(COUNT, seed=5)
    for settings in ({}, {"drop_last": True}, {"block_size": 5}):
        ours = epochs(DaliLoader(source, followed, 8, **settings), followed)
        theirs = epochs(PrunedLoader(source, followed, 8, **settings), followed)
        for mine, other in zip(ours, theirs, strict=True):
            assert len(mine) == len(other) > 0
            for (inputs, targets, ids), (inputs_, targets_, ids_) in zip(mine, other, strict=True):
                assert torch.equal(ids, ids_)
                assert torch.equal(targets, targets_)
                assert torch.allclose(
                    inputs, inputs_, atol=1e-5
                )  # there is no decoding or resizing
    assert followed.unreadable == []


@pytest.mark.parametrize("form", ["mapped", "mapped grey", "mapped CHW"])
def test_resized_as_pillow_does_it(form: str, tmp_path: Path) -> None:
    source = source_of(form, tmp_path, evaluation_transform(96), (70, 131))
    [(batch, ids, _)] = list(DaliEvaluation(source, np.arange(COUNT), 64, ranks=Ranks(), seed=0))
    expected = torch.stack([source[index][0] for index in ids.tolist()])
    difference = (batch[0] - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    assert difference.mean() < 0.6
    assert difference.max() < 4


@pytest.mark.parametrize("form", ["mapped", "mapped grey", "mapped CHW"])
@pytest.mark.parametrize("size", [32, 96])
def test_augmented_as_the_same_images_in_files(size: int, form: str, tmp_path: Path) -> None:
    """Windows and flips are functions of (seed, epoch, index) for every kind of source."""
    arrays = source_of(form, tmp_path, training_transform(size), (64, 80))
    for index in range(COUNT):
        path = tmp_path / "images" / "abc"[index % 3] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_picture(arrays.image(index)).save(path)
    folder = as_source(tmp_path / "images")
    assert folder.paths is not None
    number = [int(Path(path).stem) for path in folder.paths]
    files = as_source(
        Subset(folder, np.argsort(number).tolist()), transform=training_transform(size)
    )
    followed = Followed(COUNT, seed=3)
    ours = epochs(DaliLoader(arrays, followed, 8), followed)
    theirs = epochs(DaliLoader(files, followed, 8), followed)
    for mine, other in zip(ours, theirs, strict=True):
        for (inputs, targets, ids), (inputs_, targets_, ids_) in zip(mine, other, strict=True):
            assert torch.equal(ids, ids_)
            assert torch.equal(targets, targets_)
            assert torch.allclose(inputs, inputs_, atol=1e-5)


def test_small_images_are_cropped_from_a_margin_and_flipped(tmp_path: Path) -> None:
    source = source_of("mapped", tmp_path, training_transform(32))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    places = set()
    for images, _, ids in DaliLoader(source, Followed(COUNT, seed=1), 8):
        for image, index in zip((images * std + mean) * 255, ids.tolist(), strict=True):
            padded = np.pad(source.image(index), ((4, 4), (4, 4), (0, 0))).astype(np.float32)
            windows = {
                (y, x, step): padded[y : y + 32, x : x + 32][:, ::step].transpose(2, 0, 1)
                for y in range(9)
                for x in range(9)
                for step in (1, -1)
            }
            found = [key for key, w in windows.items() if np.abs(w - image.numpy()).max() < 0.01]
            assert len(found) == 1
            places.add(found[0])
    assert len(places) > 25
    assert {step for _, _, step in places} == {1, -1}


def test_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    source = source_of("mapped", tmp_path, training_transform(32))
    followed = Followed(COUNT, seed=4)
    followed.epoch = 3
    whole = list(DaliLoader(source, followed, 8))
    for position in range(len(whole) + 1):
        stopped = DaliLoader(source, followed, 8)
        for _, _ in zip(range(position), stopped, strict=False):
            pass
        resumed = DaliLoader(source, followed, 8)
        resumed.load_state_dict(stopped.state_dict() | {"position": position})
        left = list(resumed)
        for mine, other in zip(left, whole[position:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_a_graph_of_ones_own_gets_the_arrays(tmp_path: Path) -> None:
    from nvidia.dali import fn

    source, x = source_of("mapped", tmp_path, None, (20, 24)), pixels(20, 24)
    followed = Followed(COUNT)
    for images, _, ids in DaliLoader(source, followed, 8, graph=lambda stored, random: stored):
        assert np.array_equal(images.numpy(), x[ids.numpy()])
    for images, _, ids in DaliLoader(
        source, followed, 8, graph=lambda stored, random: fn.flip(stored, horizontal=1)
    ):
        assert np.array_equal(images.numpy(), x[ids.numpy()][:, :, ::-1])


def test_batches_are_not_the_arrays(tmp_path: Path) -> None:
    """Changes to a batch do not reach the data."""
    x, y = pixels(16, 16), np.zeros(COUNT, np.int64)
    before = x.copy()
    for transform, graph in ((evaluation_transform(16), None), (None, lambda stored, _: stored)):
        loader = DaliLoader((x, y), Followed(COUNT), 8, transform=transform, graph=graph)
        for images, _, _ in loader:
            images.zero_()
        assert np.array_equal(x, before)


def test_what_dali_leaves_to_torch(tmp_path: Path) -> None:
    good = source_of("mapped", tmp_path, evaluation_transform(32))
    assert why_not_dali(good) is None
    x, y = pixels(8, 8), np.arange(COUNT)
    assert "leave DALI nothing to do" in str(why_not_dali(as_source((x, y))))
    transform = evaluation_transform(8)
    for inputs, targets in (
        (x.astype(np.float32), y),
        (x[..., :2], y),
        (x[:, 0, 0], y),
        (x[None].repeat(COUNT, 0), y),
        (x, y + 0.5),
    ):
        reason = why_not_dali(as_source((inputs, targets), transform=transform))
        assert "neither image files nor uint8 images" in str(reason)
        with pytest.raises(TypeError, match="neither image files"):
            DaliLoader((inputs, targets), Followed(COUNT), 8, transform=transform)
