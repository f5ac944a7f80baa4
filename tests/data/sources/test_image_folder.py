"""Image folders: the list of files, the fingerprint, and the decoding of images."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import PATHS, Pairs, double, make_image_folder, sha256, to_tensor

from adapruner.data import as_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


def folder_fingerprint(root: Path, paths: list[str]) -> str:
    lines = (f"{path}\0{(root / path).stat().st_size}\n".encode() for path in paths)
    return sha256(b"adapruner image folder 1\n", *lines)


def test_folder_is_listed_class_by_class(folder: Path) -> None:
    source = as_source(folder)
    assert source.kind == "image folder"
    assert source.root == str(folder)
    assert source.class_names == ["cat", "dog"]
    assert source.paths == PATHS
    assert source.targets is not None
    assert source.targets.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert source.targets.dtype == np.int64
    assert source.sizes is not None
    assert source.sizes.tolist() == [os.path.getsize(folder / path) for path in PATHS]
    assert source.fingerprint() == folder_fingerprint(folder, PATHS)
    assert source.deterministic
    image, target = source[7]
    assert (image.mode, image.size, target) == ("RGB", (10, 2), 1)
    assert source.image(7).size == (10, 2)  # type: ignore[union-attr]


def test_folder_is_the_same_as_torchvision_reads(folder: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    dataset = torchvision.datasets.ImageFolder(str(folder), transform=to_tensor)
    ours, theirs = as_source(str(folder), transform=to_tensor), as_source(dataset)
    listed = [os.path.relpath(path, folder) for path, _ in dataset.samples]
    assert ours.paths == theirs.paths == listed
    assert ours.targets is not None
    assert theirs.targets is not None
    assert ours.targets.tolist() == theirs.targets.tolist() == dataset.targets
    assert ours.class_names == theirs.class_names == dataset.classes
    assert ours.root == theirs.root == str(folder)
    assert ours.fingerprint() == theirs.fingerprint()
    assert np.array_equal(ours.sizes, theirs.sizes)  # type: ignore[arg-type]
    assert theirs.kind == "image folder"
    assert not theirs.deterministic
    for index in range(len(ours)):
        assert torch.equal(ours[index][0], theirs[index][0])
        assert ours[index][1] == theirs[index][1]
    # The method image leaves out the dataset's own transform.
    assert theirs.image(0).size == ours.image(0).size  # type: ignore[union-attr]
    assert dataset.transform is to_tensor


@pytest.mark.parametrize("relabel", ["merged", "swapped", "one sample"])
def test_classes_of_an_image_folder_are_those_of_its_samples(folder: Path, relabel: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    dataset = torchvision.datasets.ImageFolder(str(folder))
    target_of = {
        "merged": lambda index, target: 0,
        "swapped": lambda index, target: 1 - target,
        "one sample": lambda index, target: 1 if index == 2 else target,
    }[relabel]
    # torchvision makes its items from `samples`, and leaves `targets` as it was.
    dataset.samples = [(p, target_of(i, t)) for i, (p, t) in enumerate(dataset.samples)]
    source = as_source(dataset)
    assert source.targets is not None
    assert source.targets.tolist() == [source[i][1] for i in range(len(source))] != dataset.targets
    assert source.fingerprint() != as_source(folder).fingerprint()


def test_image_net_of_torchvision_is_the_folder_of_its_split(tmp_path: Path, folder: Path) -> None:
    torchvision = pytest.importorskip("torchvision")

    class ImageNet(torchvision.datasets.ImageFolder):  # type: ignore[misc, name-defined]
        def __init__(self, root: str) -> None:
            super().__init__(os.path.join(root, "images"))
            self.root, self.split_folder = root, os.path.join(root, "images")
            self.classes = [("cat", "kitty"), ("dog",)]

    source = as_source(ImageNet(str(tmp_path)))
    assert source.fingerprint() == as_source(folder).fingerprint()
    assert source.class_names == ["cat, kitty", "dog"]


def test_file_that_torchvision_lists_and_is_gone_has_size_0(folder: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    dataset = torchvision.datasets.ImageFolder(str(folder))
    (folder / "dog/b.png").unlink()
    source = as_source(dataset)
    assert source.sizes is not None
    assert source.sizes[-1] == 0
    with pytest.raises(FileNotFoundError, match=r"dog/b\.png"):
        source[7]


def test_paths_outside_their_root_are_no_image_folder(folder: Path) -> None:
    listed = [(str(folder / path), 0) for path in PATHS]
    dataset = Pairs(listed, samples=listed, root="/elsewhere")
    assert as_source(dataset).kind == "dataset"


def test_folder_fingerprint_follows_files_only(folder: Path, tmp_path: Path) -> None:
    first = as_source(folder).fingerprint()
    os.utime(folder / "dog/b.png", (0, 0))
    (folder / "dog/more.txt").touch()
    assert as_source(folder, transform=double, mode="L").fingerprint() == first
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert as_source(f"{moved}/").fingerprint() == first
    (moved / "dog/b.png").rename(moved / "dog/c.png")
    renamed = as_source(moved).fingerprint()
    with open(moved / "dog/c.png", "ab") as handle:
        handle.write(b"x")
    grown = as_source(moved).fingerprint()
    assert len({first, renamed, grown}) == 3


def test_what_is_hidden_is_ignored(folder: Path) -> None:
    first = as_source(folder)
    for name in (".cache/a.png", "dog/.thumbs/a.png", "dog/._b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "dog/b.png").read_bytes())
    assert as_source(folder).paths == first.paths
    assert as_source(folder).class_names == ["cat", "dog"]


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    (root / "cat").mkdir(parents=True)
    (root / "dog").symlink_to(folder / "dog")
    (root / "cat/z.png").symlink_to(folder / "cat/z.png")
    (root / "cat/sub").symlink_to(folder / "cat/a")
    (root / "cat/loop").symlink_to(root / "cat")
    (root / "cat/self.png").symlink_to(root / "cat/self.png")
    (root / "cat/broken.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "cat/pipe.png")  # opening it would block for ever
    source = as_source(root)
    assert source.paths == [
        "cat/broken.png",
        "cat/self.png",
        "cat/z.png",
        "cat/sub/10.bmp",
        "cat/sub/9.ppm",
        "cat/sub/x/2.webp",
        "dog/a.JPG",
        "dog/b.png",
    ]
    assert source.sizes is not None
    assert source.sizes[:2].tolist() == [0, 0]
    assert source.sizes[2] == (folder / "cat/z.png").stat().st_size
    assert source[3][0].size == (4, 2)
    with pytest.raises(OSError, match=r"broken\.png"):
        source[0]


def test_classes_without_images_are_named_once(folder: Path) -> None:
    for name in ("ant", "zebra"):
        (folder / name).mkdir()
    with pytest.warns(
        UserWarning, match="2 of 4 class folders have no image: ant, zebra"
    ) as caught:
        source = as_source(folder)
    assert [Path(warning.filename).name for warning in caught] == ["test_image_folder.py"]
    assert source.class_names == ["ant", "cat", "dog", "zebra"]
    assert source.targets is not None
    assert source.targets.tolist() == [1] * 6 + [2] * 2


def test_folders_that_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*missing; .*ROOT/CLASS/IMAGE"):
        as_source(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        as_source(tmp_path / "file")
    (tmp_path / "flat").mkdir()
    with pytest.raises(ValueError, match=r"no class folder: .*; found 0 files, 0 of them images"):
        as_source(tmp_path / "flat")
    for name in ("a.png", "b.JPEG", "c.txt"):
        (tmp_path / "flat" / name).touch()
    with pytest.raises(ValueError, match=r"no class folder: .*; found 3 files, 2 of them images"):
        as_source(tmp_path / "flat")
    (tmp_path / "none/cat").mkdir(parents=True)
    (tmp_path / "none/cat/notes.txt").touch()
    with pytest.raises(
        ValueError, match=r"no image: .*; found 1 class folders \(cat\) .*such as cat/notes\.txt"
    ):
        as_source(tmp_path / "none")
    with pytest.raises(ValueError, match=r"mode must be a mode of Pillow .*found 'BGR'"):
        as_source(tmp_path / "none", mode="BGR")


def test_names_that_are_not_utf8(folder: Path) -> None:
    name = os.fsencode(folder) + b"/dog/caf\xe9.png"
    try:
        with open(name, "wb") as handle:
            handle.write((folder / "dog/b.png").read_bytes())
    except OSError:
        return  # this file system has only Unicode names, so the test does not apply
    source = as_source(folder)
    assert source[8][0].size == (10, 2)
    assert len(source.fingerprint()) == 64


def save_image(path: Path, **save: Any) -> np.ndarray[Any, Any]:
    """Write the kind of image that the name of ``path`` says. Return its pixels as 8-bit RGB."""
    from PIL import Image

    grey = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    if path.stem == "grey":
        image, expected = Image.fromarray(grey), as_rgb
    elif path.stem == "grey16":
        image = Image.fromarray(grey.astype(np.uint16) * 256 + 77)
        expected = as_rgb
    elif path.stem == "cmyk":  # the channels are C, M, Y, K, and R = 255 − C if K is 0
        inverse = np.concatenate([255 - colours, np.zeros((4, 4, 1), np.uint8)], axis=2)
        image, expected = Image.fromarray(inverse, mode="CMYK"), colours
    elif path.stem in ("palette", "transparent"):
        image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), mode="P")
        image.putpalette(colours.tobytes())
        expected = colours
    else:
        alpha = np.full((4, 4, 1), 128, np.uint8)
        image = Image.fromarray(np.concatenate([colours, alpha], axis=2))
        expected = colours
    image.save(path, **save)
    return expected


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grey.png", {}),
        ("grey16.png", {}),
        ("grey16.tif", {}),
        ("cmyk.tif", {}),
        ("palette.png", {}),
        ("transparent.png", {"transparency": bytes(range(0, 160, 10))}),
        ("alpha.png", {}),
    ],
)
def test_every_kind_of_image_comes_out_as_rgb(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "c").mkdir()
    expected = save_image(tmp_path / "c" / name, **options)
    source = as_source(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = source[0]
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), expected)


def test_other_modes(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "c").mkdir()
    save_image(tmp_path / "c" / "grey16.png")
    wide = np.asarray(as_source(tmp_path, mode=None)[0][0])
    assert wide.max() == 240 * 256 + 77
    assert np.array_equal(np.asarray(as_source(tmp_path, mode="L")[0][0]), wide >> 8)
    assert as_source(tmp_path, mode="F")[0][0].getextrema() == (77.0, 240 * 256 + 77.0)


def broken_images() -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    for name, kind in (("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.bmp", "BMP")):
        stream = io.BytesIO()
        picture.save(stream, kind)
        content = stream.getvalue()
        yield name, content[: len(content) // 2]
        yield name, content[:12]
    png = io.BytesIO()
    picture.save(png, "PNG")
    flipped = bytearray(png.getvalue())
    flipped[len(flipped) // 2] ^= 0xFF
    yield "flipped.png", bytes(flipped)
    yield "empty.jpg", b""
    yield "text.jpg", b"This is no JPEG.\n" * 10
    yield "page.png", b"<html>404 Not Found</html>"


def test_broken_images_are_os_errors_with_their_path(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "c").mkdir()
    for name, content in broken_images():
        path = tmp_path / "c" / name
        path.write_bytes(content)
        source = as_source(tmp_path)
        with pytest.raises(OSError, match="cannot decode") as caught:
            source[0]
        assert str(path) in str(caught.value)
        path.unlink()


def test_decompression_bomb_is_an_error_with_its_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    source = as_source(folder)
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(OSError, match=r"dog/b\.png: DecompressionBombError"):
        source[7]


def test_image_removed_after_it_was_listed(folder: Path) -> None:
    source = as_source(folder)
    (folder / "dog/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"dog/b\.png"):
        source[7]
