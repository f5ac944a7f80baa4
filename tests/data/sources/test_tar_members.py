"""Tars that were joined, cut between members, or have other bytes after their end."""

from __future__ import annotations

import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from support.shard_files import decoded_image, encoded_image, sample, write_tar

from adapruner.data import as_source
from adapruner.data.sources.shard_index import scan


def tar_bytes(folder: Path, numbers: range, **options: int) -> bytes:
    members = [member for number in numbers for member in sample(number)]
    return write_tar(folder / "part", members, **options).read_bytes()


def check(shard: Path, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = as_source(shard)
    assert len(source) == count
    for number in range(count):
        image, target = source[number]
        assert np.array_equal(np.array(image), decoded_image(number))
        assert target == number % 3


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("zeros", [0, 512, 10240, 3 << 20])
def test_joined_tars_are_read_to_their_end(tmp_path: Path, format: int, zeros: int) -> None:
    parts = [
        tar_bytes(tmp_path, numbers, format=format)
        for numbers in (range(4), range(0), range(4, 5), range(5, 11))
    ]
    shard = tmp_path / "a.tar"
    shard.write_bytes(bytes(zeros).join(parts))
    check(shard, 11)
    # GNU tar, Python's tarfile and this package agree where blocks of zeros are ignored.
    with tarfile.open(shard, ignore_zeros=True) as tar:
        theirs = [(member.name, member.offset_data, member.size) for member in tar]
    ours = [part for n in range(11) for part in scan(shard).components(n)]
    assert [(part.name.decode(), part.offset, part.size) for part in ours] == theirs


def test_global_headers_end_with_their_archive(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with tarfile.open(path, "w", pax_headers={"path": "all/0.png"}) as tar:
        tar.addfile(tarfile.TarInfo("0.png"))
    (tmp_path / "a.tar").write_bytes(path.read_bytes() + tar_bytes(tmp_path, range(1)))
    names = [part.name for n in range(2) for part in scan(tmp_path / "a.tar").components(n)]
    assert names == [b"all/0.png", b"0000.png", b"0000.cls"]


def test_bytes_after_the_end_that_are_not_a_tar_are_damage(tmp_path: Path) -> None:
    whole, shard = tar_bytes(tmp_path, range(3)), tmp_path / "a.tar"
    second = bytearray(whole)
    second[148:156] = b"0000000\0"  # the checksum of its first header
    for tail in (b"x", b"x" * 512, bytes(second), np.random.default_rng(0).bytes(5000)):
        shard.write_bytes(whole + tail)
        index = scan(shard)
        assert len(index.lines) == 3
        assert f"at byte {len(whole)}" in str(index.damage)
        source = as_source(shard)
        assert len(source) == 4
        with pytest.raises(OSError, match=f"at byte {len(whole)}"):
            source[3]


@pytest.mark.parametrize("numbers", [range(1), range(3)])
def test_missing_end_mark_is_told_and_adds_no_sample(tmp_path: Path, numbers: range) -> None:
    whole, shard = tar_bytes(tmp_path, numbers), tmp_path / "a.tar"
    shard.write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    with pytest.warns(UserWarning, match=r"a\.tar has no end-of-archive mark") as caught:
        source = as_source(shard)
    assert len(caught) == 1
    assert source.targets.tolist() == list(numbers)  # type: ignore[union-attr]
    assert source.encoded(len(numbers) - 1) == encoded_image(len(numbers) - 1)
    with pytest.warns(UserWarning, match="end-of-archive"):
        assert scan(shard).damage is None
    # One block of zeros is enough of a mark.
    shard.write_bytes(shard.read_bytes() + bytes(512))
    check(shard, len(numbers))
