"""Shards as a source: reading, fingerprints, and patterns that find shards."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from support.sample_data import to_tensor
from support.shard_files import decoded_image, encoded_image, make_shards, sample, write_tar
from torch.utils.data import Subset

from adapruner.data import as_source
from adapruner.data.sources.shard_index import IndexMismatchError, scan, write_index
from adapruner.data.sources.shard_paths import find_shards
from adapruner.data.sources.shards import ShardSource


def index_all(folder: Path, to: Path | None = None) -> None:
    for shard in folder.glob("*.tar"):
        path = (to or folder) / f"{shard.stem}.idx"
        write_index(path, scan(shard), shard.stat().st_size)


def check_samples(source: ShardSource, count: int = 13, classes: int = 3) -> None:
    assert len(source) == count
    assert source.targets.tolist() == [number % classes for number in range(count)]
    assert source.targets.dtype == np.int64
    for number in range(count):
        image, target = source[number]
        assert np.array_equal(np.array(image), decoded_image(number))
        assert target == number % classes
        assert source.encoded(number) == encoded_image(number)
        path, offset, size = source.location(number)
        assert size is not None
        assert Path(path).read_bytes()[offset : offset + size] == encoded_image(number)


@pytest.mark.parametrize("indexed", [False, True])
def test_samples_of_shards(tmp_path: Path, indexed: bool) -> None:
    shards = make_shards(tmp_path)
    if indexed:
        index_all(tmp_path)
    source = as_source(tmp_path)
    assert isinstance(source, ShardSource)
    assert (source.kind, source.root, source.deterministic) == ("shards", str(tmp_path), True)
    assert source.has_encoded
    assert source.samples_in_shard == [5, 1, 7]
    check_samples(source)
    # The sizes add up to the shard without its end, which is two blocks and padding.
    used = [path.stat().st_size // 10240 * 10240 for path in shards]
    assert sum(used) - 10240 * len(used) < source.sizes.sum() <= sum(used)
    assert source.sizes[0] == 512 + 512 + 512 + 512  # two headers and two blocks of contents
    assert source[-1][1] == source[12][1]
    with pytest.raises(IndexError, match="13 is out of range"):
        source.encoded(13)


def test_index_of_wds2idx_lacks_the_classes_and_they_are_read(tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    for shard in make_shards(tmp_path):
        creator = wds2idx.IndexCreator(str(shard), str(shard.with_suffix(".idx")), verbose=False)
        creator.create_index()
        creator.close()
    check_samples(ShardSource(find_shards(tmp_path)))


def test_fingerprint_is_that_of_names_indexes_and_classes(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    make_shards(folder)
    first = as_source(folder).fingerprint()
    assert as_source(folder, transform=to_tensor, mode="L").fingerprint() == first
    index_all(folder)
    assert as_source(folder).fingerprint() == first
    os.utime(folder / "train-000.tar", (0, 0))
    folder.rename(tmp_path / "two")
    assert as_source(tmp_path / "two").fingerprint() == first
    others = {first}
    make_shards(tmp_path / "classes", classes=4)
    others.add(as_source(tmp_path / "classes").fingerprint())
    make_shards(tmp_path / "cut", (5, 8))
    others.add(as_source(tmp_path / "cut").fingerprint())
    make_shards(tmp_path / "named")
    (tmp_path / "named/train-000.tar").rename(tmp_path / "named/a.tar")
    others.add(as_source(tmp_path / "named").fingerprint())
    assert len(others) == 4


def test_indexes_in_a_folder_of_their_own(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards")
    (tmp_path / "indexes").mkdir()
    index_all(tmp_path / "shards", to=tmp_path / "indexes")
    plain = as_source(tmp_path / "shards")
    source = as_source(tmp_path / "shards", index_folder=tmp_path / "indexes")
    assert source.fingerprint() == plain.fingerprint()
    # The index file is used, because an index of another shard is refused.
    os.replace(tmp_path / "indexes/train-000.idx", tmp_path / "indexes/train-002.idx")
    with pytest.raises(IndexMismatchError, match=r"train-002\.idx does not belong"):
        as_source(tmp_path / "shards", index_folder=tmp_path / "indexes")


def test_ways_to_name_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in make_shards(tmp_path)]
    assert find_shards(tmp_path) == paths
    assert find_shards(f"{tmp_path}/train-*.tar") == paths
    assert find_shards(f"{tmp_path}/train-{{000..002}}.tar") == paths
    assert find_shards(f"{tmp_path}/{{train,./train}}-{{002,000}}.tar")[:2] == [paths[2], paths[0]]
    assert find_shards(f"{tmp_path}/t{{rain,}}-00[01].tar") == paths[:2]
    counted = [str(write_tar(tmp_path / f"x/{n}.tar", [])) for n in (8, 9, 10, 11)]
    assert find_shards(f"{tmp_path}/x/{{8..11}}.tar") == counted
    brace = write_tar(tmp_path / "a{0,1}.tar", sample(0))
    assert find_shards(brace) == [str(brace)]  # the name of an existing file is not a pattern
    brace.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    fingerprint = as_source(tmp_path).fingerprint()
    for data in (
        "train-{000..002}.tar",
        "~/train-*.tar",
        ["train-000.tar", Path("train-001.tar"), "train-002.tar"],
        ("train-{000..001}.tar", "train-002.tar"),
    ):
        source = as_source(data)
        assert source.fingerprint() == fingerprint
    assert as_source("train-{000..002}.tar").root == f"{tmp_path}/train-{{000..002}}.tar"
    assert as_source("train-002.tar").root == paths[2]
    assert as_source(paths).root is None
    assert len(as_source("train-002.tar")) == 7


def test_shards_that_are_missing(tmp_path: Path) -> None:
    make_shards(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such shard: .*train-003\.tar"):
        as_source(f"{tmp_path}/train-{{000..999999999}}.tar")
    with pytest.raises(FileNotFoundError, match=r"no shard fits .*val-\*\.tar"):
        as_source(f"{tmp_path}/val-*.tar")


def test_columns_choose_the_components(tmp_path: Path) -> None:
    members = [
        ("0.left.png", encoded_image(0)),
        ("0.right.PNG", encoded_image(1)),
        ("0.coarse", b"1"),
        ("0.fine", b"17"),
    ]
    write_tar(tmp_path / "a.tar", members)
    index_all(tmp_path)
    with pytest.raises(ValueError, match="columns must name it; found 2 images"):
        as_source(tmp_path)
    source = as_source(tmp_path, columns=("right.png", "fine"))
    assert source.encoded(0) == encoded_image(1)
    assert source[0][1] == 17
    assert as_source(tmp_path, columns=("left.png", "coarse"))[0][1] == 1
    with pytest.raises(ValueError, match="found none among the 1 samples"):
        as_source(tmp_path, columns=("middle.png", "fine"))
    with pytest.raises(ValueError, match="expected a component medium that holds a whole number"):
        as_source(tmp_path, columns=("left.png", "medium"))


def test_no_sample_at_all_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("readme", b"x"), (".hidden.png", b"x")])
    with pytest.raises(ValueError, match="at least one sample; found none in 1 shards"):
        as_source(tmp_path)


def test_source_goes_to_other_processes(tmp_path: Path) -> None:
    make_shards(tmp_path)
    source = as_source(tmp_path)
    assert source.encoded(0) == encoded_image(0)  # so a file is open
    sent = pickle.dumps(source)
    assert len(sent) < 5000
    check_samples(pickle.loads(sent))
    loader = torch.utils.data.DataLoader(
        as_source(source, transform=to_tensor), batch_size=13, num_workers=2
    )
    [(images, targets)] = list(loader)
    assert torch.equal(images, torch.stack([torch.tensor(decoded_image(n)) for n in range(13)]))
    assert targets.tolist() == source.targets.tolist()


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    make_shards(tmp_path, (1,) * 150)
    source = as_source(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(150):
            assert source.encoded(number) == encoded_image(number)
    assert len(os.listdir("/proc/self/fd")) <= before + 64
    del source
    assert len(os.listdir("/proc/self/fd")) == before


def test_subset_of_shards(tmp_path: Path) -> None:
    make_shards(tmp_path)
    whole = as_source(tmp_path)
    source = as_source(Subset(whole, [12, 3]))
    assert source.has_encoded
    assert source.encoded(0) == encoded_image(12)
    assert source.location(1) == whole.location(3)
    changed = as_source(Subset(as_source(tmp_path, transform=to_tensor), [3]))
    assert not changed.has_encoded  # a transform has changed its images


def test_shards_are_not_read_again_after_a_change(tmp_path: Path) -> None:
    make_shards(tmp_path)
    source = as_source(tmp_path)
    assert isinstance(source, ShardSource)
    assert source.shard_index(2).lines == scan(tmp_path / "train-002.tar").lines
    make_shards(tmp_path, (5, 1, 6))
    with pytest.raises(OSError, match=r"train-002\.tar has changed since"):
        source.shard_index(2)


def test_other_sources_have_no_encoded_images() -> None:
    source = as_source((torch.zeros(3, 2), torch.zeros(3)))
    assert not source.has_encoded
    with pytest.raises(TypeError, match="expected encoded images; found samples of kind 'arrays'"):
        source.encoded(0)
