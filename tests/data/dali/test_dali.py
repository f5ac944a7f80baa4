"""The DALI loader on the CPU: order, pixels, augmentation, resuming."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import picture
from support.processes import run_python
from support.training_data import Followed
from torch import Tensor
from torch.utils.data import Subset

from adapruner import as_source
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.data.sources.base import Source
from adapruner.pruning.distributed import Ranks
from adapruner.vision import MEAN, STD, evaluation_transform, to_tensor, training_transform
from adapruner.vision.augmentation import uniforms

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
image_module = pytest.importorskip("PIL.Image")

from adapruner.data.dali.loader import DaliEvaluation, DaliLoader, why_not_dali  # noqa: E402

COUNT = 41


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs and PNGs of 32 × 32 pixels with smooth colours, in three classes."""
    return make_folder(tmp_path_factory.mktemp("small"), lambda number: (32, 32))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs and PNGs of many sizes, in three classes."""
    return make_folder(
        tmp_path_factory.mktemp("large"), lambda number: (80 + 7 * number, 70 + 11 * (number % 5))
    )


def make_folder(root: Path, size: Any) -> Path:
    for number in range(COUNT):
        folder = root / "abc"[number % 3]
        folder.mkdir(exist_ok=True)
        small = image_module.fromarray(picture(number, 6, 6, number % 3))
        image = small.resize(size(number), image_module.BICUBIC)
        image.save(folder / f"{number:03d}.{'png' if number % 4 == 0 else 'jpg'}")
    return root


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of ``folder`` as two shards, in the same order."""
    import tarfile

    root, source = tmp_path_factory.mktemp("shards"), as_source(folder)
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for index in range(shard * 20, (20, COUNT)[shard]):
                path = Path(source.location(index).path)
                tar.add(path, f"{index:03d}{path.suffix}")
                label = root / "label"
                label.write_text(str(source.targets[index]))
                tar.add(label, f"{index:03d}.cls")
    return root


def source_of(name: str, folder: Path, shards: Path, transform: Any) -> Source:
    if name == "subset":
        subset = Subset(as_source(folder), list(range(COUNT - 1, -1, -1)))
        return as_source(subset, transform=transform)
    return as_source({"folder": folder, "shards": shards}[name], transform=transform)


def epochs(loader: Any, followed: Followed, count: int = 3) -> list[list[tuple[Tensor, ...]]]:
    """The batches of some epochs. Each epoch reads other samples."""
    seen = []
    for epoch in range(count):
        followed.epoch = epoch
        followed.mask = np.random.default_rng(epoch).random(COUNT) < (1, 0.6, 0.3)[epoch % 3]
        seen.append(list(loader))
    return seen


@pytest.mark.parametrize("name", ["folder", "shards", "subset"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_batches_of_the_torch_loader(
    name: str, drop_last: bool, folder: Path, shards: Path
) -> None:
    """Both loaders have the same ids in each epoch, and the same pixels without randomness."""
    source = source_of(name, folder, shards, evaluation_transform(32))
    followed = Followed(COUNT, seed=5)
    ours = epochs(DaliLoader(source, followed, 8, drop_last=drop_last), followed)
    theirs = epochs(PrunedLoader(source, followed, 8, drop_last=drop_last), followed)
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) == len(other) > 0
        for (inputs, targets, ids), (inputs_, targets_, ids_) in zip(mine, other, strict=True):
            assert torch.equal(ids, ids_)
            assert torch.equal(targets, targets_)
            assert ids.dtype == targets.dtype == torch.int64
            # One level of 255 is 0.017 to 0.018 after normalising.
            assert (inputs - inputs_).abs().max() < 0.02


def test_length(folder: Path) -> None:
    followed = Followed(COUNT)
    loader = DaliLoader(folder, followed, 8, transform=training_transform(32))
    for count in (41, 40, 33, 8, 1):
        followed.mask = np.arange(COUNT) < count
        sizes = [len(ids) for _, _, ids in loader]
        assert len(sizes) == len(loader) == -(-count // 8)
        assert sum(sizes) == count
        assert 1 not in sizes or count == 1
    followed.mask[:] = False
    assert list(loader) == []


def test_images_are_those_of_pillow(large: Path) -> None:
    """The windows of torchvision, within the usual difference of two resizers."""
    source = as_source(large, transform=evaluation_transform(96))
    batches = list(DaliEvaluation(source, np.arange(COUNT), 16, ranks=Ranks(), seed=0))
    assert [ids.tolist() for _, ids, _ in batches] == [
        list(range(16)),
        list(range(16, 32)),
        list(range(32, COUNT)),
    ]
    images = torch.cat([batch[0] for batch, _, _ in batches])
    expected = torch.stack([source[index][0] for index in range(COUNT)])
    difference = (images - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    assert difference.mean() < 0.6
    assert difference.max() < 4


def test_zoomed_windows_are_those_of_pillow(large: Path) -> None:
    """Pillow cuts, resizes and mirrors windows that are larger and smaller than the result."""
    source, size, followed = as_source(large), 96, Followed(COUNT, seed=3)
    zoom = training_transform(size).augmentation
    loader = DaliLoader(source, followed, 16, transform=training_transform(size))
    mirrored = []
    for images, _, ids in loader:
        pictures = [source.image(index) for index in ids.tolist()]
        shapes = np.array([picture.size[::-1] for picture in pictures])
        drawn = uniforms(3, 0, ids.numpy(), zoom.draws)
        windows = zoom.inputs(shapes, drawn)
        for at, image in enumerate(images):
            top, left = windows["start"][at].tolist()
            height, width = windows["extent"][at].tolist()
            box = (left, top, left + width, top + height)
            expected = pictures[at].crop(box).resize((size, size), image_module.BILINEAR)
            if windows["mirror"][at]:
                expected = expected.transpose(image_module.FLIP_LEFT_RIGHT)
            mirrored.append(int(windows["mirror"][at]))
            pixels = (image * torch.tensor(STD)[:, None, None]) + torch.tensor(MEAN)[:, None, None]
            difference = pixels.permute(1, 2, 0).numpy() * 255 - np.asarray(expected)
            # At the edge of a window of a JPEG, the colours lack their neighbours.
            assert np.abs(difference).mean() < 0.6
            assert np.abs(difference).max() < 8
    assert 0 < sum(mirrored) < len(mirrored) == COUNT


def test_whole_images(folder: Path) -> None:
    """Without a transform, images are scaled to [0, 1]."""
    source = as_source(folder)
    images = torch.cat([x for x, _, _ in DaliLoader(source, Followed(COUNT), 8)])
    ids = torch.cat([ids for _, _, ids in DaliLoader(source, Followed(COUNT), 8)])
    expected = torch.stack([to_tensor(source[index][0]) for index in ids.tolist()])
    assert (images - expected).abs().max() < 1.01 / 255


def test_whole_images_of_a_batch_must_have_one_size(large: Path) -> None:
    with pytest.raises(ValueError, match=r"must have one size; found .*transform"):
        list(DaliLoader(large, Followed(COUNT), 8))


def test_small_images_are_cropped_from_a_margin_and_flipped(folder: Path) -> None:
    """Each result is a window of the image with a black border."""
    source = as_source(folder, transform=training_transform(32))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    whole = [np.asarray(source.image(index)) for index in range(COUNT)]
    places = set()
    for images, _, ids in DaliLoader(source, Followed(COUNT, seed=1), 8):
        for image, index in zip((images * std + mean) * 255, ids.tolist(), strict=True):
            padded = np.pad(whole[index], ((4, 4), (4, 4), (0, 0))).astype(np.float32)
            windows = {
                (y, x, step): padded[y : y + 32, x : x + 32][:, ::step].transpose(2, 0, 1)
                for y in range(9)
                for x in range(9)
                for step in (1, -1)
            }
            found = [key for key, w in windows.items() if np.abs(w - image.numpy()).max() < 1.5]
            assert len(found) == 1
            places.add(found[0])
    assert len(places) > 25
    assert {step for _, _, step in places} == {1, -1}


@pytest.mark.parametrize("size", [32, 96])
def test_augmentation_belongs_to_the_sample(size: int, large: Path) -> None:
    """Other batch sizes and fewer samples leave the image of a sample unchanged."""
    source = as_source(large, transform=training_transform(size))
    followed = Followed(COUNT, seed=2)

    def images(batch_size: int) -> dict[int, Tensor]:
        loader = DaliLoader(source, followed, batch_size)
        return {i: x for batch in loader for x, i in zip(batch[0], batch[2].tolist(), strict=True)}

    first = images(8)
    followed.mask = np.random.default_rng(0).random(COUNT) < 0.5
    for index, image in images(5).items():
        assert torch.equal(image, first[index])
    followed.epoch = 1
    again = images(5)
    assert sum(torch.equal(again[index], first[index]) for index in again) <= 1
    assert torch.stack(list(again.values())).shape[1:] == (3, size, size)


def test_a_graph_of_ones_own(large: Path) -> None:
    from nvidia.dali import fn

    def graph(encoded: Any, random: Any) -> Any:
        image = fn.resize(fn.decoders.image(encoded, device="cpu"), size=(20, 24))
        return fn.cast_like(image, random) * random[0]

    followed = Followed(COUNT)
    batches = list(DaliLoader(large, followed, 8, graph=graph))
    assert torch.cat([ids for _, _, ids in batches]).unique().numel() == COUNT
    assert all(x.shape == (len(ids), 20, 24, 3) for x, _, ids in batches)
    again = list(DaliLoader(large, followed, 8, graph=graph))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("name", ["folder", "shards"])
def test_goes_on_in_the_middle_of_an_epoch(name: str, folder: Path, shards: Path) -> None:
    source = source_of(name, folder, shards, training_transform(32))
    followed = Followed(COUNT, seed=4)
    followed.epoch = 3
    whole = list(DaliLoader(source, followed, 8))
    for position in range(len(whole) + 1):
        stopped = DaliLoader(source, followed, 8)
        batches = iter(stopped)
        for _ in range(position):
            next(batches)
        state = stopped.state_dict()
        assert state["position"] == position
        resumed = DaliLoader(source, followed, 8)
        resumed.load_state_dict(state)
        left = list(resumed)
        assert len(left) == len(whole) - position
        for mine, other in zip(left, whole[position:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
        assert len(list(resumed)) == len(whole)  # the next iteration is a whole epoch


def test_state_of_another_run_is_refused(folder: Path) -> None:
    followed = Followed(COUNT)
    loader = DaliLoader(folder, followed, 8)
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(ValueError, match="expected batch_size 4, found 8"):
        DaliLoader(folder, followed, 4).load_state_dict(state)
    loader.load_state_dict(state)
    followed.epoch = 1
    with pytest.raises(ValueError, match="expected 1, found 0"):
        next(iter(loader))


def test_broken_off_iteration_starts_anew(folder: Path) -> None:
    loader = DaliLoader(folder, Followed(COUNT), 8)
    whole = [ids.tolist() for _, _, ids in loader]
    stopped = iter(loader)
    assert next(stopped)[2].tolist() == whole[0]
    assert [ids.tolist() for _, _, ids in loader] == whole
    assert next(stopped)[2].tolist() == whole[1]  # the interrupted iteration can still go on


def test_a_batch_outlives_the_ones_after_it(folder: Path) -> None:
    batches = iter(DaliLoader(folder, Followed(COUNT), 4, transform=training_transform(32)))
    first = next(batches)[0]
    copy = first.clone()
    assert sum(len(ids) for _, _, ids in batches) == COUNT - 4
    assert torch.equal(first, copy)


FORKS = """
import gc, os, signal, sys, time
from pathlib import Path
os.register_at_fork(after_in_child=gc.collect)  # as a package that was imported before adapruner
from test_dali import COUNT, DaliLoader, Followed, training_transform

gc.disable()
folder = Path(os.environ["FOLDER"])
loader = DaliLoader(folder, Followed(COUNT), 8, transform=training_transform(32))
batches = iter(loader)
next(batches)
garbage = [loader, batches]
garbage.append(garbage)
del loader, batches, garbage
child = os.fork()
if child == 0:
    gc.collect()
    os._exit(17)
for _ in range(600):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    time.sleep(0.1)
else:
    os.kill(child, signal.SIGKILL)
    sys.exit("the forked process waits for ever")
assert os.waitstatus_to_exitcode(status) == 17
assert any(isinstance(found, DaliLoader) for found in gc.get_objects())
gc.collect()
assert not any(isinstance(found, DaliLoader) for found in gc.get_objects())
"""


def test_forked_process_leaves_pipelines_alone(folder: Path) -> None:
    """Collecting a pipeline in a fork would wait for threads that the fork does not have."""
    done = run_python(FORKS, __file__, FOLDER=str(folder))
    assert done.returncode == 0, done.stderr


def test_memory_does_not_grow_over_epochs(folder: Path) -> None:
    loader = DaliLoader(folder, Followed(COUNT), 8, transform=training_transform(32))

    def epochs(count: int) -> int:
        for _ in range(count):
            for _ in loader:
                pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = epochs(20)
    images = COUNT * 3 * 32 * 32 * 4 / 1024
    assert epochs(60) - before < 20 * images  # kilobytes; a leak is 60 times the images


def test_why_not(folder: Path, large: Path) -> None:
    assert why_not_dali(as_source(folder)) is None
    assert why_not_dali(as_source(folder, transform=training_transform(32))) is None
    assert "only transforms of adapruner" in str(
        why_not_dali(as_source(folder, transform=lambda x: x))
    )
    assert "mode is 'L'" in str(why_not_dali(as_source(folder, mode="L")))
    arrays = as_source((torch.zeros(4, 2), torch.zeros(4)))
    assert "neither image files" in str(why_not_dali(arrays))
    with pytest.raises(TypeError, match="neither image files"):
        DaliLoader(arrays, Followed(4), 2)
    with pytest.raises(ValueError, match="expected a graph or a transform; found both"):
        DaliLoader(
            folder, Followed(COUNT), 2, transform=training_transform(8), graph=lambda e, r: e
        )
