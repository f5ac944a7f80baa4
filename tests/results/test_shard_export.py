"""Exports of shards, as other loaders read them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.report_page import Page
from support.shard_files import decoded_image, encoded_image, make_shards, sample, write_tar
from support.small_disk import small_disk

from adapruner.data import as_source
from adapruner.data.sources.shards import ShardSource
from adapruner.results.export import export
from adapruner.results.result import PruneResult

COUNTS = (5, 1, 4, 7)
KEPT = [0, 3, 4, 10, 13, 16]  # no sample of the second shard, which has 5, nor of the third


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", COUNTS)
    return tmp_path / "shards"


def make_result(data: Any, kept: list[int] = KEPT) -> PruneResult:
    source = as_source(data)
    return PruneResult(
        indices=torch.tensor(kept, dtype=torch.int64),
        gate_logits=torch.zeros(len(source)),
        keep_ratio=0.4,
        fingerprint=source.fingerprint(),
        dataset=source.about(),
    )


def read_by_dali(shards: list[Path], indexes: list[Path], epoch_size: int) -> list[Any]:
    """(image, class) of every sample, in the order of DALI's own reader."""
    dali = pytest.importorskip("nvidia.dali")

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> Any:
        image, label = dali.fn.readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(path) for path in indexes],
            ext=["png", "cls"],
        )
        return dali.fn.decoders.image(image, device="cpu"), label

    pipe = pipeline()
    pipe.build()
    assert pipe.reader_meta().popitem()[1]["epoch_size"] == epoch_size
    samples = []
    for _ in range(epoch_size):
        image, label = pipe.run()
        samples.append((image.at(0), int(bytes(label.at(0)))))
    return samples


def check(samples: list[Any], numbers: list[int]) -> None:
    assert [target for _, target in samples] == [number % 3 for number in numbers]
    for (image, _), number in zip(samples, numbers, strict=True):
        assert np.array_equal(np.array(image), decoded_image(number))


def test_filtered_indexes_are_read_by_dali(shards: Path, tmp_path: Path) -> None:
    export(make_result(shards), tmp_path / "kept", to="wds-index")
    indexes = sorted((tmp_path / "kept").iterdir())
    assert [path.name for path in indexes] == [f"train-{j:03d}.idx" for j in (0, 3)]
    tars = [shards / f"{path.stem}.tar" for path in indexes]
    check(read_by_dali(tars, indexes, len(KEPT)), KEPT)
    # adapruner reads the kept samples with these indexes too.
    source = as_source(tars, index_folder=tmp_path / "kept")
    check([source[index] for index in range(len(source))], KEPT)


def test_whole_indexes_are_read_by_dali(shards: Path, tmp_path: Path) -> None:
    """DALI ignores the lines that adapruner adds."""
    export(make_result(shards, list(range(17))), tmp_path / "all", to="wds-index")
    indexes = sorted((tmp_path / "all").iterdir())
    assert b"# adapruner" in indexes[0].read_bytes()
    check(read_by_dali(sorted(shards.iterdir()), indexes, 17), list(range(17)))


def test_new_shards_are_read_by_webdataset_and_dali(shards: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    export(make_result(shards), tmp_path / "kept", to="shards")
    tars = sorted((tmp_path / "kept").glob("*.tar"))
    assert [path.name for path in tars] == ["kept-000000.tar"]
    dataset = webdataset.WebDataset([str(path) for path in tars], shardshuffle=False)
    read = list(dataset.decode("pil").to_tuple("png", "cls"))
    check(read, KEPT)
    check(read_by_dali(tars, sorted((tmp_path / "kept").glob("*.idx")), len(KEPT)), KEPT)
    source = as_source(tmp_path / "kept")
    check([source[index] for index in range(len(source))], KEPT)


def test_new_shards_are_as_long_as_the_longest_of_the_old(shards: Path, tmp_path: Path) -> None:
    kept = [*range(9), *range(10, 17)]
    export(make_result(shards, kept), tmp_path / "kept", to="shards")
    source = as_source(tmp_path / "kept")
    assert isinstance(source, ShardSource)
    assert source.samples_in_shard == [7, 7, 2]
    assert [source.encoded(j) for j in range(len(kept))] == [encoded_image(n) for n in kept]


def test_new_shards_hold_all_components_under_their_names(tmp_path: Path) -> None:
    long = "folder/" * 30 + "my dog%20ü"
    members = [*sample(0), ("0000.json", b"{}"), *sample(1), *sample(2, key=long), (".x.cls", b"")]
    shard = write_tar(tmp_path / "a.tar", members)
    export(make_result(shard, [0, 2]), tmp_path / "kept", to="shards")
    with tarfile.open(tmp_path / "kept/kept-000000.tar") as tar:
        found = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    assert found == [*members[:3], *members[5:7]]


def test_nothing_kept_makes_empty_folders(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for to in ("wds-index", "shards"):
        export(make_result(shards, []), tmp_path / "kept" / to, to=to)
        assert list((tmp_path / "kept" / to).iterdir()) == []


def test_parquet_names_shard_and_member(shards: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(make_result(shards), tmp_path / "kept.parquet", to="parquet")
    table = parquet.read_table(tmp_path / "kept.parquet")
    count = len(as_source(shards))
    assert table["label"].to_pylist() == [number % 3 for number in range(count)]
    assert [table["path"][number].as_py() for number in KEPT] == [
        "train-000.tar/0000.png",
        "train-000.tar/0003.png",
        "train-000.tar/0004.png",
        "train-003.tar/0010.png",
        "train-003.tar/0013.png",
        "train-003.tar/0016.png",
    ]


def test_a_report_names_the_member_of_each_sample(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    result = dataclasses.replace(make_result(shards), unreadable=[(14, "torn"), (1, "torn")])
    result.report(tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    of_sample = [
        f"train-{shard:03d}.tar/{number:04d}.png"
        for number, shard in enumerate(np.repeat(np.arange(4), COUNTS).tolist())
    ]
    cards = page.gallery("kept")
    # A shard that goes away later ends no report of the result in memory.
    gone = dataclasses.replace(result, source=as_source(shards))
    for shard in shards.iterdir():
        shard.unlink()
    gone.report(tmp_path / "gone.html")
    assert "train-" not in Page(tmp_path / "gone.html").section("unreadable").text()
    assert [card.attributes["title"] for card in cards] == [of_sample[index] for index in KEPT]
    rows = [["14", of_sample[14], "torn"], ["1", of_sample[1], "torn"]]
    assert page.rows("unreadable") == rows


@pytest.mark.parametrize("change", ["gone", "empty", "fewer", "cut", "file"])
def test_a_table_of_shards_that_have_changed_has_no_paths(
    shards: Path, tmp_path: Path, change: str
) -> None:
    result = make_result(shards)
    assert (result.to_dataframe()["path"] != "").all()
    first, *others = sorted(shards.glob("*.tar"))
    if change == "fewer":
        first.unlink()
    elif change == "cut":
        first.write_bytes(first.read_bytes()[:700])
    else:
        for shard in (first, *others, *shards.glob("*.idx")):
            shard.unlink(missing_ok=True)
    if change in ("gone", "file"):
        shards.rmdir()
    if change == "file":
        shards.write_text("no folder")
    told = contextlib.nullcontext()
    if change != "gone":
        told = pytest.warns(UserWarning, match=r"the table has no paths: the shards .* (read|has)")
    with told:
        table = result.to_dataframe()
    assert "path" not in table
    assert table["kept"].sum() == len(KEPT)
    with told:
        result.export(tmp_path / "all.csv", to="csv")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + sum(COUNTS)


@pytest.mark.parametrize("to", ["wds-index", "shards"])
def test_what_shards_cannot_be_exported(shards: Path, tmp_path: Path, to: str) -> None:
    arrays = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match='needs WebDataset shards; found a dataset of kind "arr'):
        export(make_result(arrays, [1]), tmp_path / "kept", to=to, source=arrays)
    result = make_result(shards)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="it is a file"):
        export(result, tmp_path / "file", to=to)
    with pytest.raises(FileExistsError, match="not empty"):
        export(result, shards, to=to)
    with pytest.raises(FileNotFoundError, match=r"folder .*gone does not exist"):
        export(result, tmp_path / "gone" / "kept", to=to)
    shards.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"needs the shards, .*shards does not exist; .* source="):
        export(result, tmp_path / "kept", to=to)
    export(result, tmp_path / "kept", to=to, source=tmp_path / "moved")
    assert len(list((tmp_path / "kept").iterdir())) in (2, 3)


def test_two_shards_of_one_name_have_no_two_indexes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "x.tar", sample(0) + sample(1))
    source = as_source([tmp_path / "a/x.tar", tmp_path / "b/x.tar"])
    with pytest.raises(ValueError, match=r"must have different names; found two indexes x\.idx"):
        export(make_result(source, [0, 3]), tmp_path / "kept", to="wds-index", source=source)


@pytest.mark.parametrize("to", ["wds-index", "shards"])
def test_shard_that_changed_is_not_exported(shards: Path, tmp_path: Path, to: str) -> None:
    source = as_source(shards)
    result = make_result(source)
    make_shards(shards, (5, 1, 4, 6))
    with pytest.raises(OSError, match=r"train-003\.tar has changed since"):
        export(result, tmp_path / "kept", to=to, source=source)
    assert sorted(os.listdir(tmp_path)) == ["shards"]


@pytest.mark.parametrize("to", ["wds-index", "shards"])
def test_full_disk_leaves_nothing(shards: Path, tmp_path: Path, to: str) -> None:
    source = as_source(shards)
    result = make_result(source, list(range(17)))
    with small_disk(tmp_path / "disk") as disk:
        if not os.path.ismount(disk):
            pytest.skip("no disk of its own can be mounted")
        (disk / "other").write_bytes(b"x" * (126 << 10))
        with pytest.raises(OSError, match=r"No space left.*disk/kept") as raised:
            export(result, disk / "kept", to=to, source=source)
        assert raised.value.errno == errno.ENOSPC
        assert os.listdir(disk) == ["other"]
