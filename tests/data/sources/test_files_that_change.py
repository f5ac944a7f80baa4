"""Files that vanish, lose permission or change during a run, with every loader."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bad_images import encoded, write_folder
from support.forbidden import permissions_count, public_folder
from support.shard_files import write_tar

from adapruner import Pruner, UnreadableSampleError, as_source
from adapruner.data.sources.shard_index import scan, write_index
from adapruner.vision import training_transform

pytest.importorskip("PIL")
pytest.importorskip("torchvision")

MakeLoader = Callable[..., Any]


def images() -> dict[str, bytes]:
    return {f"{n}.png": encoded("RGB", "PNG") for n in range(10)}


def make_shard(path: Path, count: int = 10, side: int = 40) -> Path:
    members = []
    for n in range(count):
        members += [
            (f"{n}.png", encoded("RGB", "PNG", (side, side))),
            (f"{n}.cls", b"%d" % (n % 2)),
        ]
    return write_tar(path, members)


def train(loader: Any, pruner: Pruner, before: Callable[[int], None] = lambda epoch: None) -> None:
    """Train to the end, and call ``before`` before each epoch."""
    while not pruner.finished:
        before(pruner.epoch)
        for inputs, _, ids in loader:
            assert inputs.shape[1:] == (3, 16, 16)
            pruner.weigh(inputs.mean((1, 2, 3)).abs() + 0.1, ids)
        pruner.step()


def check_left_out(pruner: Pruner, expected: set[int], *said: str) -> None:
    result = pruner.result()
    reasons = dict(result.unreadable)
    assert set(reasons) == expected
    for reason in reasons.values():
        assert all(text in reason for text in said), reason
    assert not expected & set(result.indices.tolist())
    assert len(result.indices) == int(result.keep_ratio * result.num_samples + 0.5)


def test_files_that_go_between_epochs(tmp_path: Path, loader_for: MakeLoader) -> None:
    folder = write_folder(tmp_path / "images", images())
    pruner = Pruner(20, 0.5, epochs=4, warmup_epochs=2)
    loader = loader_for(folder, pruner)

    def before(epoch: int) -> None:
        if epoch == 1:
            (folder / "dog/0-3.png").unlink()
            (folder / "dog/0-3.png").mkdir()  # a folder takes its place
            (folder / "cat/0-7.png").unlink()

    train(loader, pruner, before)
    check_left_out(pruner, {7, 13})
    assert "FileNotFoundError" in dict(pruner.result().unreadable)[7]
    assert "dog/0-3.png" in dict(pruner.result().unreadable)[13]


def test_a_whole_folder_that_goes(tmp_path: Path, loader_for: MakeLoader) -> None:
    """If too few samples are left to keep, the run raises and does not hang."""
    folder = write_folder(tmp_path / "images", images())
    pruner = Pruner(20, 0.7, epochs=3, warmup_epochs=1)
    loader = loader_for(folder, pruner)

    def before(epoch: int) -> None:
        if epoch == 1:
            shutil.rmtree(folder)

    with pytest.raises(ValueError, match="readable samples; found 0"):
        train(loader, pruner, before)


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_file_without_permission(on_error: str, loader_for: MakeLoader) -> None:
    with public_folder() as public:
        folder = write_folder(public / "images", images())
        (folder / "dog/0-3.png").chmod(0)
        pruner = Pruner(20, 0.5, epochs=2, warmup_epochs=1)
        with permissions_count():
            loader = loader_for(folder, pruner, on_error)
            if on_error == "skip":
                train(loader, pruner)
                check_left_out(pruner, {13}, "PermissionError", "dog/0-3.png")
                return
            with pytest.raises(
                UnreadableSampleError,
                match=r"sample 13 cannot be read: PermissionError: .*dog/0-3\.png",
            ):
                train(loader, pruner)
            del loader  # its workers run as this user too


def test_shard_without_permission(loader_for: MakeLoader) -> None:
    """A closed shard is one unreadable sample. If it was open before, all its samples fail."""
    with public_folder() as public:
        good, closed = make_shard(public / "a.tar"), make_shard(public / "b.tar", 3)
        source = as_source([good, closed])
        closed.chmod(0)
        with permissions_count():
            pruner = Pruner(13, 0.5, epochs=2, warmup_epochs=1)
            train(loader_for(source, pruner), pruner)
            check_left_out(pruner, {10, 11, 12}, "PermissionError", str(closed))
            pruner = Pruner(11, 0.5, epochs=2, warmup_epochs=1)
            train(loader_for([good, closed], pruner), pruner)
            check_left_out(pruner, {10}, "Permission denied", str(closed))


def test_shard_that_is_cut_off_between_epochs(tmp_path: Path, loader_for: MakeLoader) -> None:
    shard = make_shard(tmp_path / "a.tar")
    source = as_source(shard)
    pruner = Pruner(10, 0.5, epochs=3, warmup_epochs=1)
    loader = loader_for(source, pruner)

    def before(epoch: int) -> None:
        if epoch == 1:  # in place, so an open file changes too
            os.truncate(shard, source.location(7).offset + 100)

    train(loader, pruner, before)
    check_left_out(pruner, {7, 8, 9} & set(dict(pruner.result().unreadable)), str(shard), "ends")
    assert 7 in dict(pruner.result().unreadable)


@pytest.mark.parametrize("indexed", [False, True])
def test_sizes_that_lie(indexed: bool, tmp_path: Path, loader_for: MakeLoader) -> None:
    """A header has too large a size. The index, if there is one, has the right size."""
    shard = make_shard(tmp_path / "a.tar")
    if indexed:
        write_index(tmp_path / "a.idx", scan(shard), shard.stat().st_size)
    fifth = as_source(shard).location(5).offset - 512
    content = bytearray(shard.read_bytes())
    content[fifth + 124 : fifth + 136] = b"00000777777\0"
    content[fifth + 148 : fifth + 156] = b" " * 8
    content[fifth + 148 : fifth + 156] = b"%06o\0 " % sum(content[fifth : fifth + 512])
    shard.write_bytes(content)
    if indexed:
        os.utime(tmp_path / "a.idx", (2**31, 2**31))  # newer than the shard
    source = as_source(shard)
    assert len(source) == (10 if indexed else 6)
    pruner = Pruner(len(source), 0.5, epochs=2, warmup_epochs=1)
    train(loader_for(source, pruner), pruner)
    check_left_out(pruner, {5}, str(shard), "not a member" if indexed else "cut off")


def test_file_that_becomes_another_image(tmp_path: Path, loader_for: MakeLoader) -> None:
    """A file of another size or format is read as it is now."""
    folder = write_folder(tmp_path / "images", images())
    pruner = Pruner(20, 0.5, epochs=2, warmup_epochs=1)
    loader = loader_for(as_source(folder), pruner)
    assert sum(len(ids) for _, _, ids in loader) == 20
    (folder / "cat/0-1.png").write_bytes(encoded("RGB", "JPEG", (90, 50)))
    (folder / "cat/0-2.png").write_bytes(encoded("L", "PNG", (17, 300)))
    assert sum(len(ids) for _, _, ids in loader) == 20
    train(loader, pruner)
    assert pruner.result().unreadable == []


def test_augmented_run_goes_on_with_files_gone(tmp_path: Path) -> None:
    """Samples vanish in the middle of an epoch. A resumed epoch has the same batches."""
    pytest.importorskip("nvidia.dali")
    from adapruner.data.dali.loader import DaliLoader

    folder = write_folder(tmp_path / "images", images())
    source = as_source(folder, transform=training_transform(16))
    for make in (DaliLoader, lambda s, p, b: p.loader(s, b)):
        pruner = Pruner(20, epochs=1)
        (folder / "cat/0-7.png").unlink(missing_ok=True)
        whole = list(make(source, pruner, 4))
        stopped = make(source, pruner, 4)
        batches = iter(stopped)
        next(batches), next(batches)
        state = stopped.state_dict()
        resumed = make(source, pruner, 4)
        resumed.load_state_dict(state)
        left = list(resumed)
        assert len(left) == len(whole) - 2
        for mine, other in zip(left, whole[2:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
