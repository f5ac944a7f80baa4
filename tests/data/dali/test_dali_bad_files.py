"""The DALI loader with files that it cannot read or decode."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import make_pictures, picture
from support.training_data import Followed

from adapruner import as_source
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.errors import UnreadableSampleError
from adapruner.pruning.distributed import Ranks
from adapruner.vision import evaluation_transform, training_transform

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
image_module = pytest.importorskip("PIL.Image")

from adapruner.data.dali.loader import DaliEvaluation, DaliLoader  # noqa: E402


def encoded(file_format: str, mode: str = "RGB", size: int = 40, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = image_module.fromarray(picture(1, 5, 5)).resize((size, size), 3).convert(mode)
    image.save(stream, file_format, **options)
    return stream.getvalue()


def sixteen_bits() -> bytes:
    stream = io.BytesIO()
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    image_module.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def bad_files() -> dict[str, bytes | None]:
    """Write the files. A content of None makes a broken link."""
    jpeg, png = encoded("JPEG", quality=95), encoded("PNG")
    scan = jpeg.index(b"\xff\xda") + 14
    return {
        # DALI takes the rows before a second scan for the whole image.
        "second_scan.jpg": jpeg[: scan + 60] + jpeg[scan - 14 : scan] + jpeg[scan + 60 :],
        "cut_off.jpg": jpeg[: len(jpeg) // 2],
        "cut_off_at_the_end.jpg": jpeg[:-2],
        "cut_off_in_the_header.jpg": jpeg[:60],
        "cut_off.png": png[: len(png) // 2],
        "corrupt.png": png[:100] + bytes(60) + png[160:],
        "text.jpg": b"This is no image.\n" * 20,
        "one_byte.jpg": b"\xff",
        "empty.png": b"",
        "missing.jpg": None,
    }


def odd_files() -> dict[str, bytes]:
    """The unusual files that can be read."""
    return {
        "cmyk.jpg": encoded("JPEG", "CMYK"),
        "grey.jpg": encoded("JPEG", "L"),
        "progressive.jpg": encoded("JPEG", progressive=True),
        "trailing.jpg": encoded("JPEG") + bytes(100),
        "palette.png": encoded("PNG", "P"),
        "alpha.png": encoded("PNG", "RGBA"),
        "sixteen_bits.png": sixteen_bits(),
        "a_png.jpg": encoded("PNG"),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good pictures, unusual pictures and bad pictures."""
    make_pictures(tmp_path, (20, 20), (40, 40))
    for name, content in {**bad_files(), **odd_files()}.items():
        path = tmp_path / "cat" / name
        if content is None:
            path.symlink_to(tmp_path / "nowhere.jpg")
        else:
            path.write_bytes(content)
    return tmp_path


def go_through(loader: Any, epochs: int = 2) -> list[list[int]]:
    return [torch.cat([ids for _, _, ids in loader]).tolist() for _ in range(epochs)]


@pytest.mark.parametrize("size", [40, 96])
@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
def test_the_same_samples_are_left_out_as_by_the_torch_loader(
    make: Any, size: int, folder: Path
) -> None:
    source = as_source(folder, transform=make(size))
    ours, theirs = Followed(len(source)), Followed(len(source))
    assert go_through(DaliLoader(source, ours, 8)) == go_through(PrunedLoader(source, theirs, 8))
    assert sorted(set(ours.unreadable)) == sorted(set(theirs.unreadable))
    named = {os.path.basename(source.paths[index]) for index, _ in ours.unreadable}
    assert named == set(bad_files())


def test_odd_files_are_read_as_pillow_reads_them(folder: Path) -> None:
    source = as_source(folder, transform=evaluation_transform(40))
    indices = [i for i, p in enumerate(source.paths) if os.path.basename(p) in odd_files()]
    batch, ids, unreadable = next(
        iter(DaliEvaluation(source, np.array(indices), 16, ranks=Ranks(), seed=0))
    )
    assert unreadable == []
    assert ids.tolist() == indices
    expected = torch.stack([source[index][0] for index in indices])
    assert (batch[0] - expected).abs().max() < 0.02  # a level of 255 after normalising


def test_raise_stops_with_path_and_reason(folder: Path) -> None:
    source = as_source(folder, transform=training_transform(32))
    loader = DaliLoader(source, Followed(len(source)), 8, on_error="raise")
    with pytest.raises(UnreadableSampleError, match=r"sample \d+ cannot be read: .*/cat/\w+\."):
        go_through(loader)


def test_too_many_pixels_are_not_decoded(tmp_path: Path) -> None:
    """20,000 × 20,000 pixels would take 1.2 GB, so the header must be enough."""
    make_pictures(tmp_path, (10, 10))
    for name in ("huge.png", "huge.jpg"):
        image_module.new("1" if name.endswith("png") else "L", (20_000, 20_000)).save(
            tmp_path / "dog" / name
        )
    source = as_source(tmp_path, transform=training_transform(16))
    followed = Followed(22)
    assert [len(ids) for ids in go_through(DaliLoader(source, followed, 8))] == [20, 20]
    assert {index for index, _ in followed.unreadable} == {20, 21}
    assert all("400,000,000" in why or "exceeds limit" in why for _, why in followed.unreadable)


def test_max_pixels_is_the_sources(tmp_path: Path) -> None:
    make_pictures(tmp_path, (6, 6), (16, 16))
    image_module.new("RGB", (17, 16)).save(tmp_path / "dog" / "wide.png")
    source = as_source(tmp_path, max_pixels=16 * 16)
    followed = Followed(13)
    assert len(go_through(DaliLoader(source, followed, 4))[0]) == 12
    assert followed.unreadable[0][0] == 12
    assert "expected at most 256 pixels (max_pixels); found 17 x 16" in followed.unreadable[0][1]


def test_file_that_disappears_between_epochs(tmp_path: Path) -> None:
    make_pictures(tmp_path, (20, 12))
    source = as_source(tmp_path, transform=training_transform(16))
    followed = Followed(32)
    loader = DaliLoader(source, followed, 8)
    assert len(go_through(loader, 1)[0]) == 32
    (tmp_path / "cat" / "007.png").unlink()
    (tmp_path / "dog" / "003.png").write_bytes(b"")
    assert len(go_through(loader, 1)[0]) == 30
    assert sorted(index for index, _ in followed.unreadable) == [7, 23]
    assert "FileNotFoundError" in dict(followed.unreadable)[7]


def test_many_bad_files_in_every_batch(tmp_path: Path) -> None:
    make_pictures(tmp_path, (40, 40))
    bad = list(range(1, 80, 3))
    source = as_source(tmp_path, transform=training_transform(16))
    for index in bad:
        Path(source.location(index).path).write_bytes(
            (b"", b"text", encoded("PNG")[:200])[index % 3]
        )
    followed = Followed(80)
    for ids in go_through(DaliLoader(source, followed, 8)):
        assert sorted(ids) == sorted(set(range(80)) - set(bad))
    assert sorted(set(index for index, _ in followed.unreadable)) == bad


def test_nothing_can_be_read(tmp_path: Path) -> None:
    make_pictures(tmp_path, (20, 20))
    for path in tmp_path.glob("*/*.png"):
        path.write_text("nothing")
    with pytest.raises(UnreadableSampleError, match=r"none of the first \d+ samples"):
        go_through(DaliLoader(tmp_path, Followed(40), 8))


def test_graph_that_fails(tmp_path: Path) -> None:
    """An error in the user's graph is an error of all samples."""
    from nvidia.dali import fn

    make_pictures(tmp_path, (20, 20))
    loader = DaliLoader(
        tmp_path,
        Followed(40),
        8,
        graph=lambda encoded, random: fn.slice(
            fn.decoders.image(encoded, device="cpu"), 100, 200, axes=[0]
        ),
    )
    with pytest.raises(UnreadableSampleError, match="DALI cannot decode"):
        go_through(loader)


def test_bad_images_in_shards(tmp_path: Path) -> None:
    """Both loaders leave bad samples out, and name their shard and byte."""
    import tarfile

    contents = [encoded("JPEG")] * 20
    contents[3], contents[11] = b"text", encoded("JPEG")[:300]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, content in enumerate(contents):
            for extension, data in (("jpg", content), ("cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:15_000])  # cut off
    source = as_source(tmp_path, transform=training_transform(96))
    ours, theirs = Followed(len(source)), Followed(len(source))
    assert go_through(DaliLoader(source, ours, 6)) == go_through(PrunedLoader(source, theirs, 6))
    assert {index for index, _ in ours.unreadable} == {index for index, _ in theirs.unreadable}
    assert {3, 11} < {index for index, _ in ours.unreadable}
    assert all(".tar" in why for _, why in ours.unreadable)
