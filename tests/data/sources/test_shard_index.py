"""Indexes of shards, compared with DALI's own tool, and indexes that are refused."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from support.shard_files import encoded_image, make_shards, sample, write_tar

from adapruner import as_source
from adapruner.data.sources.shard_index import (
    IndexMismatchError,
    parse_line,
    read_index,
    scan,
    write_index,
)

LONG = "folder/" * 30 + "0007"  # needs an extra block before the header
ODD_MEMBERS = [
    ("a/0001.png", b"x" * 512),
    ("a/0001.cls", b"7\n"),
    ("a/0001.seg.png", b""),
    ("b/0001.PNG", b"y" * 513),
    ("b/0001.CLS", b" 12 "),
    ("b/.hidden", b"not a sample"),
    (f"{LONG}.cls", b"0"),
    (f"{LONG}.jpg", b"z"),
    ("Grüße.jpg", b"z"),
    ("0008.cls", b"many"),
    ("0008.jpg", b""),
    ("0009.cls", b"1" * 100),
]
CLASSES = [7, 12, 0, -1, -1, -1]


def wds2idx_lines(shard: Path) -> list[bytes]:
    wds2idx = pytest.importorskip("wds2idx")
    path = shard.with_suffix(".theirs")
    creator = wds2idx.IndexCreator(str(shard), str(path), verbose=False)
    creator.create_index()
    creator.close()
    return path.read_bytes().splitlines()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index_is_that_of_wds2idx(tmp_path: Path, format: int) -> None:
    members = [m for m in ODD_MEMBERS if format != tarfile.USTAR_FORMAT or LONG not in m[0]]
    shard = write_tar(tmp_path / "odd.tar", members, format)
    index = scan(shard)
    assert index.damage is None
    # For other letters, wds2idx depends on the locale. For long names in GNU's format, it has the
    # offset of the header instead of the data. The contents below show which offset is right.
    strange = ["Gr", *(["folder"] if format == tarfile.GNU_FORMAT else [])]
    assert [line for line in index.lines if not any(s.encode() in line for s in strange)] == [
        line for line in wds2idx_lines(shard)[1:] if not any(s.encode() in line for s in strange)
    ]
    content = shard.read_bytes()
    found = [
        (os.fsdecode(name), content[offset : offset + size])
        for line in index.lines
        for _, offset, size, name in parse_line(line)
    ]
    assert found == [member for member in members if ".hidden" not in member[0]]
    assert index.classes is not None
    assert index.classes.tolist() == [CLASSES[0], CLASSES[1], *CLASSES[-len(index.lines) + 2 :]]


@pytest.mark.parametrize("type", [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE])
def test_every_type_of_a_file_can_be_read(tmp_path: Path, type: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in sample(3):
            info = tarfile.TarInfo(name)
            info.type, info.size = type, len(content)
            tar.addfile(info, io.BytesIO(content))
    source = as_source(tmp_path / "a.tar")
    assert source.encoded(0) == encoded_image(3)


def test_shards_of_one_name_cannot_share_a_folder_of_indexes(tmp_path: Path) -> None:
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        members = [(n, b"%d" % number if n.endswith("cls") else c) for n, c in sample(0)]
        write_tar(tmp_path / folder / "0.tar", members)
    shards = [str(tmp_path / folder / "0.tar") for folder in "ab"]
    assert as_source(shards).targets.tolist() == [0, 1]
    (tmp_path / "indexes").mkdir()
    write_index(tmp_path / "indexes" / "0.idx", scan(shards[1]))
    with pytest.raises(ValueError, match=r"different names .*found .*b/0\.tar and .*a/0\.tar"):
        as_source(shards, index_folder=tmp_path / "indexes")
    twice = as_source([shards[1]] * 2, index_folder=tmp_path / "indexes")  # one shard, twice
    assert twice.targets.tolist() == [1, 1]


def test_members_that_are_no_files_are_no_components(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, type in (("0.d", tarfile.DIRTYPE), ("0.l", tarfile.SYMTYPE), ("0.f", b"6")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("0.cls"))
        tar.addfile(tarfile.TarInfo("noextension"))
        tar.addfile(tarfile.TarInfo("nothing."))
    with pytest.warns(UserWarning, match=r"left out of .*a\.tar, .*; found 1, the first is 0\.l\."):
        [line] = scan(tmp_path / "a.tar").lines
    assert line == b"cls 2048 0 0.cls"


def test_hard_links_of_tar_are_warned_of(tmp_path: Path) -> None:
    """tar stores the second name of a file as a link, which has no bytes."""
    for number in range(4):
        (tmp_path / f"{number}.cls").write_text(str(number))
    os.link(tmp_path / "1.cls", tmp_path / "4.cls")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(5):
            tar.add(tmp_path / f"{number}.cls", f"{number}.cls")
    with pytest.warns(UserWarning, match=r"found 1, the first is 4\.cls\. .*--hard-dereference"):
        assert len(scan(tmp_path / "a.tar").lines) == 4
    with tarfile.open(tmp_path / "a.tar", "w", dereference=True) as tar:
        for number in range(5):
            tar.add(tmp_path / f"{number}.cls", f"{number}.cls")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(scan(tmp_path / "a.tar").lines) == 5


def test_white_space_in_names_is_escaped(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("my dog\n1.pn g", b"x"), ("my dog\n1.cls", b"1")])
    index = scan(shard)
    assert index.lines == [b"pn%20g 512 1 my%20dog%0A1.pn%20g cls 1536 1 my%20dog%0A1.cls"]
    write_index(tmp_path / "a.idx", index, shard.stat().st_size)
    assert read_index(tmp_path / "a.idx", shard).lines == index.lines


def test_file_holds_the_index_and_the_classes(tmp_path: Path) -> None:
    for shard in make_shards(tmp_path):
        index = scan(shard)
        write_index(shard.with_suffix(".idx"), index, shard.stat().st_size)
        written = shard.with_suffix(".idx").read_bytes().splitlines()
        theirs = wds2idx_lines(shard)
        assert written[: len(theirs)] == theirs
        read = read_index(shard.with_suffix(".idx"), shard)
        assert read.lines == index.lines
        assert read.classes is not None
        assert index.classes is not None
        assert read.classes.tolist() == index.classes.tolist()
        # An index of DALI has no classes.
        theirs = read_index(shard.with_suffix(".theirs"), shard)
        assert theirs.lines == index.lines
        assert theirs.classes is None


def test_index_of_another_shard_is_refused(tmp_path: Path) -> None:
    first, second, third = make_shards(tmp_path, (4, 4, 5))
    for shard in (first, second, third):
        write_index(shard.with_suffix(".idx"), scan(shard), shard.stat().st_size)
    for index, shard in ((first, second), (second, first), (third, first), (first, third)):
        with pytest.raises(IndexMismatchError, match=r"does not belong to .*adapruner index"):
            read_index(index.with_suffix(".idx"), shard)
    # An index without the size of the shard is refused too.
    wds2idx_lines(first)
    with pytest.raises(IndexMismatchError, match=r"0000\.png"):
        read_index(first.with_suffix(".theirs"), second)


def test_index_of_a_shard_that_was_changed_is_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", sample(0) + sample(1) + sample(2))
    path = tmp_path / "a.idx"
    write_index(path, scan(shard), shard.stat().st_size)
    os.utime(shard, ns=(0, path.stat().st_mtime_ns + 1))
    assert len(read_index(path, shard).lines) == 3  # the shard is newer, but unchanged
    # A class of equal length changes no byte range.
    write_tar(shard, [*sample(0), sample(1)[0], ("0001.cls", b"9"), *sample(2)])
    os.utime(shard, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(IndexMismatchError, match="has changed since the index was made"):
        read_index(path, shard)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must start with 'v1.2'"),
        (b"\x89PNG\r\n\x1a\n" * 100, "must start with 'v1.2'"),
        (b"v1.1 1\npng 512 3\n", "must start with 'v1.2'"),
        (b"v1.2 -1\n", "must start with 'v1.2'"),
        (b"v1.2 0\n", "cut off"),
        (b"v1.2 99999999999999\npng 512 3 a.png\n", "cut off"),
        (b"v1.2 1\npng 512 3\n", "expected EXTENSION OFFSET SIZE NAME"),
        (b"v1.2 1\n\n", "expected EXTENSION OFFSET SIZE NAME"),
        (b"v1.2 1\npng x 3 a.png\n", "invalid literal"),
        (b"v1.2 1\npng 511 3 a.png\n", "multiples of 512"),
        (b"v1.2 1\npng 0 3 a.png\n", "multiples of 512"),
        (b"v1.2 1\npng 512 -3 a.png\n", "sizes at least 0"),
        (b"v1.2 1\npng 512 3 a.png\n", "not a member"),
        (b"v1.2 1\npng 5120000000 3 a.png\n", "ends before a range"),
    ],
)
def test_file_that_is_not_an_index_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    [shard] = make_shards(tmp_path, (2,))
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(IndexMismatchError, match=said):
        read_index(tmp_path / "a.idx", shard)


def test_index_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    [shard] = make_shards(tmp_path, (3,))
    write_index(tmp_path / "a.idx", scan(shard), shard.stat().st_size)
    whole = (tmp_path / "a.idx").read_bytes()
    for length in range(len(whole) - 1):
        (tmp_path / "a.idx").write_bytes(whole[:length])
        try:
            lines = read_index(tmp_path / "a.idx", shard).lines
        except IndexMismatchError:
            continue
        assert lines == scan(shard).lines  # only the classes are missing


def test_empty_shard_has_no_index(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [])
    assert scan(shard).lines == []
    with pytest.raises(ValueError, match="expected at least one sample; found none"):
        write_index(tmp_path / "a.idx", scan(shard))
    assert os.listdir(tmp_path) == ["a.tar"]


def test_tar_cut_off_anywhere_gives_what_is_before(tmp_path: Path) -> None:
    [shard] = make_shards(tmp_path, (3,))
    whole, lines = shard.read_bytes(), scan(shard).lines
    ends = [offset + size for line in lines for offset, size in _ranges(line)]
    end_of_members = max(-(-end // 512) * 512 for end in ends)
    boundaries = {offset - 512 for line in lines for offset, _ in _ranges(line)}
    for length in sorted({*range(0, end_of_members, 100), *ends} - boundaries | {0}):
        shard.write_bytes(whole[:length])
        index = scan(shard)
        assert index.damage is not None
        assert str(shard) in index.damage
        members = [part for line in index.lines for part in line.split()]
        # The index has the lines of the whole shard, for all samples that are whole.
        assert members == [part for line in lines for part in line.split()][: len(members)]
        assert len(members) // 4 == sum(end <= length for end in ends)


def _ranges(line: bytes) -> list[tuple[int, int]]:
    return [(component.offset, component.size) for component in parse_line(line)]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (b"00000000000\0", "at byte"),  # the next header is in the middle of an image
        (b"00000000001\0", "at byte"),
        (b"77777777777\0", "cut off"),
        (b"\xff" * 12, "at byte"),  # a negative size, which would lead backwards
        (b"\x80" + b"\x7f" * 11, "cut off"),
        (b"not a size\0\0", "at byte"),
    ],
)
def test_sizes_that_lie_break_a_shard_off(tmp_path: Path, size: bytes, said: str) -> None:
    images = [encoded_image(number, width=32, height=32) for number in range(3)]
    shard = write_tar(tmp_path / "a.tar", [(f"{j}.png", image) for j, image in enumerate(images)])
    whole = scan(shard).lines
    content = bytearray(shard.read_bytes())
    second = _ranges(whole[1])[0][0] - 512
    content[second + 124 : second + 136] = size
    content[second + 148 : second + 156] = b" " * 8
    content[second + 148 : second + 156] = b"%06o\0 " % sum(content[second : second + 512])
    shard.write_bytes(content)
    index = scan(shard)
    assert index.damage is not None
    assert said in index.damage
    assert index.lines[0] == whole[0]
    assert len(index.lines) <= 2


def test_what_is_no_tar_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for content in (b"", b"no tar", b"\x1f\x8b" + b"z" * 2000, bytes(range(256)) * 40):
        path.write_bytes(content)
        index = scan(path)
        assert index.lines == []
        assert index.damage is not None
        assert str(path) in index.damage
    shutil.rmtree(tmp_path)
    assert str(path) in str(scan(path).damage)


@pytest.mark.filterwarnings("ignore::adapruner.errors.MissingEndMarkWarning")
def test_no_broken_tar_or_index_hangs_or_crashes(tmp_path: Path) -> None:
    members = [*sample(0), (f"{LONG}.cls", b"1"), (f"{LONG}.png", b"x" * 700), *sample(1)]
    shard, path = write_tar(tmp_path / "a.tar", members), tmp_path / "a.idx"
    write_index(path, scan(shard), shard.stat().st_size)
    random = np.random.default_rng(0)
    tar, whole = shard.read_bytes(), path.read_bytes()
    used = len(tar) // 512 * 512
    for _ in range(400):
        broken = bytearray(tar)
        for place in random.integers(0, used, random.integers(1, 6)):
            # Most changes are within a header, with a corrected checksum, so that they take effect.
            place = place // 512 * 512 + random.integers(100, 160)
            broken[place] = random.choice([0, 48, 53, 55, 120, 128, 255, random.integers(256)])
            block = slice(place // 512 * 512, place // 512 * 512 + 512)
            total = sum(broken[block]) - sum(broken[block][148:156]) + 8 * 32
            broken[block.start + 148 : block.start + 156] = b"%06o\0 " % total
        shard.write_bytes(broken)
        found = scan(shard)
        for line in found.lines:
            assert all(part.offset + part.size <= len(broken) for part in parse_line(line))
        with contextlib.suppress(IndexMismatchError):
            read_index(path, shard)
    shard.write_bytes(tar)
    for _ in range(400):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            broken[place] = random.choice([10, 32, 45, 48, 57, 255, random.integers(256)])
        path.write_bytes(broken)
        os.utime(path, (time.time() + 9,) * 2)
        with contextlib.suppress(IndexMismatchError):
            source = as_source(shard)
            for index in range(len(source)):
                with contextlib.suppress(OSError):
                    source.encoded(index)


@pytest.mark.parametrize("place", ["1" + "0" * 30, str(2**63), str(2**63 // 512 * 512), str(2**40)])
def test_offsets_beyond_every_file_are_refused(tmp_path: Path, place: str) -> None:
    [shard] = make_shards(tmp_path, (3,))
    write_index(shard.with_suffix(".idx"), scan(shard))
    head, first, *rest = shard.with_suffix(".idx").read_bytes().split(b"\n")
    fields = first.split(b" ")
    fields[1] = str(int(place) // 512 * 512).encode()
    changed = b"\n".join([head, b" ".join(fields), *rest])
    shard.with_suffix(".idx").write_bytes(changed)
    with pytest.raises(IndexMismatchError, match="does not belong"):
        read_index(shard.with_suffix(".idx"), shard)


def test_a_number_of_samples_that_no_index_has_is_refused_at_once(tmp_path: Path) -> None:
    [shard] = make_shards(tmp_path, (3,))
    shard.with_suffix(".idx").write_bytes(b"v1.2 1000000000\npng 512 3 a.png\n")
    with pytest.raises(IndexMismatchError, match=r"cut off: expected 1000000000 lines; found 1"):
        read_index(shard.with_suffix(".idx"), shard)
