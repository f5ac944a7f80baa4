"""Unreadable images are skipped, listed with the reason and never kept, or they end the run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bad_images import bad_images, encoded, good_images, write_folder
from support.shard_files import write_tar

from adapruner import Pruner, UnreadableSampleError, as_source
from adapruner.vision import evaluation_transform

pytest.importorskip("PIL")
pytest.importorskip("torchvision")

Make = Callable[[dict[str, bytes]], Any]


@pytest.fixture(params=["image folder", "shards", "indexed shards"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A source of images in two classes. For the form "images", each class has every image."""

    def call(images: dict[str, bytes]) -> Any:
        if request.param == "image folder":
            return as_source(write_folder(tmp_path / "images", images))
        members = []
        for number, name in enumerate(("cat", "dog")):
            for file, content in images.items():
                stem, _, extension = file.partition(".")
                members.append((f"{name}-{stem}.{extension}", content))
                members.append((f"{name}-{stem}.cls", b"%d" % number))
        shard = write_tar(tmp_path / "shards" / "a.tar", members)
        if request.param == "indexed shards":
            from adapruner.cli.main import main

            assert main(["index", str(shard)]) == 0
        return as_source(shard)

    return call


def test_unusual_images_are_read(make: Make, loader_for: Callable[..., Any]) -> None:
    source = make(good_images())
    pruner = Pruner(len(source), epochs=1)
    batches = list(loader_for(source, pruner))
    assert sorted(torch.cat([ids for _, _, ids in batches]).tolist()) == list(range(len(source)))
    for images, _, _ in batches:
        assert images.shape[1:] == (3, 16, 16)
        assert images.isfinite().all()
        assert (images.flatten(1).std(1) > 0.1).all()  # noise, not white or black
    for index in range(len(source)):
        assert source.image(index).mode == "RGB"


def test_bad_images_are_skipped_listed_and_never_kept(
    make: Make, loader_for: Callable[..., Any]
) -> None:
    bad = bad_images()
    images = {f"good{n}.jpg": encoded("RGB", "JPEG") for n in range(12)}
    source = make(images | {name: content for name, (content, _) in bad.items()})
    pruner = Pruner(len(source), 0.5, epochs=2, warmup_epochs=1)
    loader = loader_for(source, pruner)
    while not pruner.finished:
        for inputs, _, ids in loader:
            pruner.weigh(inputs.mean((1, 2, 3)).abs() + 0.1, ids)
        pruner.step()
    result = pruner.result()
    reasons = dict(result.unreadable)
    assert len(reasons) == 2 * len(bad)
    assert len(result.indices) == round(0.5 * len(source))
    assert not set(reasons) & set(result.indices.tolist())
    texts = sorted(reasons.values())
    for name, (_, said) in bad.items():
        told = [reason for reason in texts if source.kind == "shards" or name in reason]
        assert len([reason for reason in told if re.search(said, reason)]) >= 2, (name, texts)
    where = str(source.shards[0]) if source.kind == "shards" else source.root
    assert all(where in reason for reason in texts)
    assert not any(" at 0x" in reason or "_io." in reason for reason in texts)


def test_bad_image_can_stop_the_run(make: Make, loader_for: Callable[..., Any]) -> None:
    content, said = bad_images()["cut.jpg"]
    images = {f"good{n}.jpg": encoded("RGB", "JPEG") for n in range(6)}
    source = make(images | {"cut.jpg": content})
    loader = loader_for(source, Pruner(len(source), epochs=1), on_error="raise")
    with pytest.raises(
        UnreadableSampleError, match=rf"sample \d+ cannot be read: .*{said}"
    ) as raised:
        list(loader)
    where = str(source.shards[0]) if source.kind == "shards" else "cut.jpg"
    assert where in str(raised.value)


def test_max_pixels_is_a_setting(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", {"a.png": encoded("RGB", "PNG", (30, 20))})
    assert as_source(folder, max_pixels=600)[0][0].size == (30, 20)
    with pytest.raises(OSError, match=r"a\.png: .*at most 599 pixels .*; found 30 x 20"):
        as_source(folder, max_pixels=599)[0]
    for wrong, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_pixels must be"):
            as_source(folder, max_pixels=wrong)  # type: ignore[arg-type]


def test_shard_that_shrinks_or_changes_between_epochs(tmp_path: Path) -> None:
    members = [
        member
        for n in range(10)
        for member in ((f"{n}.png", encoded("RGB", "PNG", (40, 40))), (f"{n}.cls", b"0"))
    ]
    shard = write_tar(tmp_path / "a.tar", members)
    source = as_source(shard)
    source.encoded(0)
    whole = shard.read_bytes()
    with open(shard, "r+b") as handle:  # in place, so the open file changes too
        handle.truncate(source.location(7).offset + 100)
    assert source.encoded(6) == members[12][1]
    with pytest.raises(OSError, match=rf"{shard} at byte \d+: the file ends within the sample"):
        source.encoded(7)
    with pytest.raises(OSError, match=rf"{shard} at byte \d+: the shard ends before"):
        source.encoded(8)
    with open(shard, "r+b") as handle:
        handle.write(b"\xff" * 10_000 + whole[10_000:])
    with pytest.raises(OSError, match="not a member of the shard"):
        source.encoded(0)
    assert source.encoded(9) == members[18][1]


def test_pipes_and_folders_are_not_shards(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "a.tar", [("0.png", encoded("RGB", "PNG")), ("0.cls", b"1")])
    os.mkfifo(tmp_path / "b.tar")  # opening it would block for ever
    source = as_source([good, tmp_path / "b.tar"])
    with pytest.raises(OSError, match=r"b\.tar is not a regular file"):
        source[1]


def sample(key: str, number: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", encoded("RGB", "PNG")), (f"{key}.cls", b"%d" % number)]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (sample("../../etc/1"), "has a path that climbs out of its folder"),
        (sample("/etc/1"), "has a path that climbs out of its folder"),
        (sample("a/../../1"), "has a path that climbs out of its folder"),
        (sample("1") + sample("1"), "has a component twice, or two samples share a key"),
        (sample("1")[:1], "1.png has no class; expected a component cls that holds a whole"),
        (sample("1")[1:], "found 0 images among the components cls"),
        ([*sample("1")[:1], ("1.cls", b"cat")], "has no class; expected a component cls"),
        (
            [*sample("1"), ("1.seg.png", b"")],
            "must have one image, or columns must name it; found 2 images",
        ),
    ],
)
def test_broken_samples_of_a_shard(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    outside = set(tmp_path.parent.rglob("*"))
    shard = write_tar(tmp_path / "a.tar", [*sample("0", 1), *members, *sample("2", 2)])
    source = as_source(shard)
    assert len(source) == 3
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0, 2]
    assert [source[0][1], source[2][1]] == [1, 2]
    for read in (source.encoded, source.location, source.__getitem__, source.image):
        with pytest.raises(OSError, match=reason) as raised:
            read(1)
        assert str(shard) in str(raised.value)
    assert set(tmp_path.parent.rglob("*")) - outside == {shard}  # nothing was unpacked


def test_equal_keys_apart_are_different_samples(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", sample("0", 1) + sample("1", 2) + sample("0", 3))
    source = as_source(shard)
    assert [target for _, target in (source[n] for n in range(3))] == [1, 2, 3]


def test_cut_off_shard_through_a_run(tmp_path: Path) -> None:
    members = [member for n in range(12) for member in sample(str(n), n % 2)]
    shard = write_tar(tmp_path / "a.tar", members)
    shard.write_bytes(shard.read_bytes()[: as_source(shard).location(9).offset + 50])
    source = as_source(shard, transform=evaluation_transform(16))
    assert len(source) == 10
    pruner = Pruner(10, 0.5, epochs=2, warmup_epochs=1)
    loader = pruner.loader(source, 4)
    while not pruner.finished:
        for inputs, _, ids in loader:
            pruner.weigh(inputs.mean((1, 2, 3)).abs() + 0.1, ids)
        pruner.step()
    [(index, reason)] = pruner.result().unreadable
    assert index == 9
    assert "cut off" in reason
    assert str(shard) in reason
    assert len(pruner.result().indices) == 5
    assert np.isneginf(pruner.result().gate_logits[9].item())
    with pytest.raises(UnreadableSampleError, match=f"sample 9 cannot be read: .*{shard}.*cut off"):
        list(Pruner(10, epochs=1).loader(source, 4, on_error="raise"))
