"""Which files are shards: endings, folders, images beside them."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.sample_data import PATHS, make_image_folder
from support.shard_files import decoded_image, make_shards, sample, write_tar

from adapruner.data import as_source
from adapruner.data.sources.shard_paths import find_shards

COMPRESSED = ["1.tar.gz", "2.tgz", "3.TAR.XZ", "4.tar.bz2", "5.tar.zst", "6.Tgz"]


def test_ending_of_a_shard_may_have_any_case(tmp_path: Path) -> None:
    for number, name in enumerate(("0.tar", "1.TAR", "2.Tar")):
        write_tar(tmp_path / name, sample(number))
    for data in (tmp_path, [tmp_path / "0.tar", tmp_path / "1.TAR", tmp_path / "2.Tar"]):
        source = as_source(data)
        assert source.targets.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert len(as_source(f"{tmp_path}/[12].TAR")) == 1
    assert len(as_source(tmp_path / "2.Tar")) == 1


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_shards_are_refused_by_name(tmp_path: Path, name: str) -> None:
    plain = make_shards(tmp_path / "shards", (2, 3))
    found = tmp_path / "shards" / name
    found.write_bytes(b"compressed")
    forms = (
        found.parent,
        [found.parent],
        found,
        [plain[0], found],
        f"{found.parent}/{{train-000.tar,{name}}}",
        f"{found.parent}/*{name[1:]}",
    )
    for data in forms:
        with pytest.raises(ValueError, match=f"plain .tar files; found 1 compressed .*{name}"):
            as_source(data)
    for shard in plain:
        shard.unlink()
    with pytest.raises(ValueError, match=f"found 1 compressed among 1 shards: .*{name}"):
        as_source(found.parent)


def test_all_compressed_shards_are_counted(tmp_path: Path) -> None:
    make_shards(tmp_path, (3,))
    for name in COMPRESSED:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="found 6 compressed among 7 shards") as caught:
        as_source(tmp_path)
    assert all(name in str(caught.value) for name in COMPRESSED)


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_shard_with_the_name_of_a_plain_one(
    tmp_path: Path, mode: str, kind: str
) -> None:
    make_shards(tmp_path, (2,))
    with tarfile.open(tmp_path / "z.tar", mode) as tar:  # type: ignore[call-overload]
        tar.add(tmp_path / "train-000.tar", "a.png")
    source = as_source(tmp_path)
    assert len(source) == 3
    with pytest.raises(OSError, match=rf"z\.tar: it is compressed at byte 0 \({kind}"):
        source[2]


def images_and(tmp_path: Path, name: str) -> Path:
    """A folder of images with a file or folder ``name`` beside the classes."""
    folder = make_image_folder(tmp_path / "images")
    if name.endswith("/"):
        shutil.copytree(folder / "dog", folder / name)
    else:
        write_tar(folder / name, sample(0))
    return folder


@pytest.mark.parametrize("name", ["._x.tar", ".hidden.TAR", "x.tar.gz", "all.tgz"])
def test_images_beside_hidden_and_compressed_tars(tmp_path: Path, name: str) -> None:
    source = as_source(images_and(tmp_path, name))
    assert (source.kind, source.paths) == ("image folder", PATHS)


def test_class_folder_with_the_name_of_a_tar(tmp_path: Path) -> None:
    source = as_source(images_and(tmp_path, "c.tar/"))
    assert (source.kind, source.class_names) == ("image folder", ["c.tar", "cat", "dog"])
    assert as_source(tmp_path / "images" / "c.tar" / "..").class_names == source.class_names


@pytest.mark.parametrize("name", ["x.tar", "x.TAR"])
def test_images_beside_a_tar_are_ambiguous(tmp_path: Path, name: str) -> None:
    folder = images_and(tmp_path, name)
    for data in (folder, str(folder), [folder]):
        with pytest.raises(ValueError, match=f"found the tar {name} and the image (cat|dog)/") as e:
            as_source(data)
    pattern = f"{folder}/*{name[1:]}"
    assert f"such as {pattern}; for the images, move the tar files" in str(e.value)
    # Both ways out work.
    for shards in (pattern, [folder / name]):
        source = as_source(shards)
        assert (source.kind, len(source)) == ("shards", 1)
        assert np.array_equal(np.array(source[0][0]), decoded_image(0))
    (folder / name).unlink()
    assert as_source(folder).paths == PATHS


def test_message_names_tars_of_both_endings(tmp_path: Path) -> None:
    folder = images_and(tmp_path, "x.tar")
    write_tar(folder / "y.TAR", sample(1))
    patterns = [f"{folder}/*.TAR", f"{folder}/*.tar"]
    with pytest.raises(ValueError, match=re.escape(f"such as {', '.join(patterns)}; for the ima")):
        as_source(folder)
    assert as_source(patterns).targets.tolist() == [1, 0]  # type: ignore[union-attr]


def test_folders_beside_shards(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, (2, 1))
    (tmp_path / "indexes").mkdir()
    (tmp_path / "indexes" / "notes.txt").write_text("no image")
    (tmp_path / "old.tar").mkdir()
    make_image_folder(tmp_path / ".cache")  # hidden
    write_tar(tmp_path / "._train-000.tar", sample(9))
    for data in (tmp_path, f"{tmp_path}/*.tar"):
        assert find_shards(data) == [str(shard) for shard in shards]
        assert len(as_source(data)) == 3


def test_images_without_a_class_folder_do_not_hide_shards(tmp_path: Path) -> None:
    make_shards(tmp_path, (2,))
    (tmp_path / "preview.png").write_bytes(b"")
    assert len(as_source(tmp_path)) == 2


@pytest.mark.parametrize(
    "pattern", ["{0..9999999}*.tar", "{a,b}" * 20 + "*.tar", "{a,b}" * 2000 + ".tar"]
)
def test_a_pattern_of_endless_paths_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adapruner.data.sources.shard_paths._MOST", 500)
    with pytest.raises(ValueError, match=r"at most (500 paths|20 braces)"):
        find_shards(pattern)
