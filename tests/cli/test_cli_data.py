"""The command on shards and arrays: index, prune, report, export."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from support.command_line import TINY, Run, runner
from support.pictures import make_pictures, picture
from support.shard_files import write_tar

from adapruner import PruneResult, as_source
from adapruner.data.sources.shard_index import read_index, scan
from adapruner.errors import MissingEndMarkWarning

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("PIL")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """50 images of two classes in three shards."""
    folder = make_pictures(tmp_path / "images")
    files = sorted(folder.glob("*/*.png"), key=lambda path: (path.name, path.parent.name))
    for j, part in enumerate((files[:20], files[20:40], files[40:])):
        members = []
        for path in part:
            key = f"{path.parent.name}-{path.stem}"
            members.append((f"{key}.png", path.read_bytes()))
            members.append((f"{key}.cls", b"1" if path.parent.name == "dog" else b"0"))
        write_tar(tmp_path / f"shards/train-{j}.tar", members)
    return tmp_path / "shards"


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, Path]:
    images = np.stack([picture(n, 16, 16, n % 3) for n in range(60)])
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "classes.npy", np.arange(60) % 3)
    return tmp_path / "images.npy", tmp_path / "classes.npy"


class TestIndex:
    def test_beside_the_shards(self, run: Run, shards: Path) -> None:
        code, out, err = run("index", shards)
        assert (code, err) == (0, "")
        assert out == "wrote the indexes of 3 shards, with 50 samples\n"
        for shard in shards.glob("*.tar"):
            index = read_index(shard.with_suffix(".idx"), shard)
            assert index.lines == scan(shard).lines
            assert index.classes is not None

    def test_in_a_folder_from_patterns(self, run: Run, shards: Path, tmp_path: Path) -> None:
        folder = tmp_path / "a new" / "folder"
        patterns = (shards / "train-{0..1}.tar", shards / "train-[2].tar")
        for _ in range(2):
            assert run("index", *patterns, "--out", folder).code == 0
        assert sorted(os.listdir(folder)) == [f"train-{j}.idx" for j in range(3)]
        assert len(list(shards.iterdir())) == 3

    def test_any_case_of_the_ending(self, run: Run, shards: Path) -> None:
        (shards / "train-1.tar").rename(shards / "train-1.TAR")
        assert run("index", shards).out == "wrote the indexes of 3 shards, with 50 samples\n"
        (shards / "train-1.idx").unlink()
        (shards / "train-1.tar").write_bytes((shards / "train-1.TAR").read_bytes())
        code, _, err = run("index", shards)
        assert code == 1
        assert f"different names; found two with the index {shards}/train-1.idx" in err
        assert not (shards / "train-1.idx").exists()

    def test_compressed_shards_are_refused(self, run: Run, shards: Path, tmp_path: Path) -> None:
        (shards / "train-3.tar.gz").write_bytes(b"")
        out = tmp_path / "kept.safetensors"
        for paths in ([shards], [shards / "train-3.tar.gz"], sorted(shards.iterdir())):
            for command in (["index", *paths], ["prune", *paths, "--out", out, *TINY]):
                code, _, err = run(*command)
                assert code == 1
                assert "found 1 compressed among" in err
                assert "train-3.tar.gz" in err
        assert not list(shards.glob("*.idx"))

    def test_missing_end_mark_is_told(self, run: Run, shards: Path) -> None:
        content = (shards / "train-0.tar").read_bytes().rstrip(b"\0")
        (shards / "train-0.tar").write_bytes(content + bytes(-len(content) % 512))
        code, out, err = run("index", shards)
        assert (code, out) == (1, "wrote the indexes of 2 shards, with 30 samples\n")
        line = err.splitlines()[0]
        assert line.startswith(f"adapruner: no index of {shards}/train-0.tar: ")
        assert "has no end-of-archive mark" in line
        assert not (shards / "train-0.idx").exists()
        with pytest.warns(MissingEndMarkWarning):
            assert len(as_source(shards)) == 50

    def test_broken_shards_are_told(self, run: Run, shards: Path) -> None:
        whole = (shards / "train-1.tar").read_bytes()
        (shards / "train-1.tar").write_bytes(whole[: len(whole) // 2])
        (shards / "train-2.tar").write_bytes(b"")
        code, out, err = run("index", shards)
        assert code == 1
        assert out == "wrote the indexes of 1 shards, with 20 samples\n"
        lines = err.splitlines()
        assert lines[0].startswith(f"adapruner: no index of {shards}/train-1.tar: ")
        assert "cut off" in lines[0]
        assert lines[1].startswith(f"adapruner: no index of {shards}/train-2.tar: ")
        assert lines[2:] == ["adapruner: error: 2 of 3 shards have no index"]
        assert not (shards / "train-1.idx").exists()

    def test_nothing_there(self, run: Run, tmp_path: Path) -> None:
        code, out, err = run("index", tmp_path / "train-{0..3}.tar")
        assert (code, out) == (1, "")
        assert err == f"adapruner: error: no such shard: {tmp_path}/train-0.tar\n"


class TestShards:
    @pytest.mark.parametrize("indexed", [False, True])
    def test_prune_and_export(self, run: Run, shards: Path, tmp_path: Path, indexed: bool) -> None:
        if indexed:
            assert run("index", shards).code == 0
        file = tmp_path / "kept.safetensors"
        code, out, err = run("prune", shards, "--out", file, *TINY)
        assert code == 0
        assert "50 images of 2 classes, at 16 x 16 pixels" in err
        assert "kept 35 of 50 images" in out
        result = PruneResult.load(file)
        assert result.fingerprint == as_source(shards).fingerprint()
        assert result.dataset["kind"] == "shards"
        assert result.targets is not None
        assert int(result.targets.sum()) == 20
        assert 0 < result.saved["bytes"] == 15 * 2560  # two headers, two blocks and one
        commands = [line.split() for line in out.splitlines() if line.startswith("  adapruner")]
        names = [words[1] for words in commands]
        assert names == ["show", "report", "export", "export", "export"]
        printed = []
        for words in commands:
            code, out, err = run(*words[1:])
            assert (code, err) == (0, "")
            printed.append(out)
        assert printed[-2] == f"wrote 35 samples to shards in {tmp_path}/kept-shards\n"
        assert printed[-1] == f"wrote 50 rows to {tmp_path}/kept-samples.csv\n"
        first = next(iter(csv.DictReader((tmp_path / "kept-samples.csv").read_text().splitlines())))
        assert first["path"].split("/")[0].endswith(".tar")
        kept = as_source(tmp_path / "kept-shards")
        whole = as_source(shards)
        assert [kept.encoded(j) for j in range(35)] == [
            whole.encoded(index) for index in result.indices.tolist()
        ]
        assert "data:image" in (tmp_path / "kept.html").read_text()
        shards.rename(tmp_path / "moved")
        command = ("export", file, "--to", "shards", "--out", tmp_path / "again")
        code, _, err = run(*command)
        assert code == 1
        assert f"needs the shards, and {shards} does not exist" in err
        assert run(*command, "--data", tmp_path / "moved").code == 0

    def test_many_paths_and_a_folder_of_indexes(
        self, run: Run, shards: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "indexes").mkdir()
        assert run("index", shards, "--out", tmp_path / "indexes").code == 0
        file, tars = tmp_path / "kept", sorted(shards.iterdir())
        options = ("--index", tmp_path / "indexes", "--columns", "png", "cls", "--quiet")
        assert run("prune", *tars, "--out", file, *TINY, *options) == (0, "", "")
        result = PruneResult.load(file)
        assert result.fingerprint == as_source(shards).fingerprint()
        assert result.dataset["index_folder"] == str(tmp_path / "indexes")
        code, _, err = run("export", file, "--to", "wds-index", "--out", tmp_path / "out")
        assert code == 1
        assert "the result does not name its place; give its place with --data" in err
        data = [option for tar in tars for option in ("--data", tar)]
        command = ("export", file, "--to", "wds-index", "--out", tmp_path / "out")
        assert run(*command, *data).code == 0
        assert 1 <= len(os.listdir(tmp_path / "out")) <= 3

    def test_bad_samples_are_listed(self, run: Run, shards: Path, tmp_path: Path) -> None:
        whole = (shards / "train-2.tar").read_bytes()
        (shards / "train-2.tar").write_bytes(whole[:8000])  # of ten samples
        command = ("prune", shards, "--out", tmp_path / "kept", *TINY)
        code, out, _ = run(*command)
        assert code == 0
        assert "cut off" in out
        result = PruneResult.load(tmp_path / "kept")
        [*_, (index, reason)] = result.unreadable
        assert index == result.num_samples - 1
        assert str(shards / "train-2.tar") in reason
        assert not set(result.indices.tolist()) & {index for index, _ in result.unreadable}
        code, _, err = run(*command, "--on-error", "raise")
        assert code == 1
        assert str(shards / "train-2.tar") in err

    def test_index_of_another_shard(self, run: Run, shards: Path, tmp_path: Path) -> None:
        assert run("index", shards).code == 0
        os.replace(shards / "train-0.idx", shards / "train-1.idx")
        code, out, err = run("prune", shards, "--out", tmp_path / "kept", *TINY)
        assert (code, out) == (1, "")
        assert f"{shards}/train-1.idx does not belong to {shards}/train-1.tar" in err

    def test_max_pixels(self, run: Run, shards: Path, tmp_path: Path) -> None:
        options = ("--max-pixels", "255", *TINY)
        code, _, err = run("prune", shards, "--out", tmp_path / "kept", *options)
        assert code == 1
        assert "expected at most 255 pixels (max_pixels); found 16 x 16" in err

    def test_one_class(self, run: Run, shards: Path, tmp_path: Path) -> None:
        members = [("0.png", (tmp_path / "images/cat/000.png").read_bytes()), ("0.cls", b"0")]
        one = write_tar(tmp_path / "one.tar", members)
        code, _, err = run("prune", one, "--out", tmp_path / "kept", *TINY)
        assert code == 1
        assert "must have at least two classes of images; found one, 0" in err
        members[1] = ("0.cls", b"123456789")
        code, _, err = run("prune", write_tar(one, members), "--out", tmp_path / "kept", *TINY)
        assert code == 1
        assert "found class 123456789 among 1 images" in err


class TestArrays:
    def test_prune_and_export(self, run: Run, arrays: tuple[Path, Path], tmp_path: Path) -> None:
        file = tmp_path / "kept.safetensors"
        code, out, err = run("prune", *arrays, "--out", file, *TINY, "--workers", "1")
        assert code == 0
        assert "60 images of 3 classes, at 16 x 16 pixels" in err
        result = PruneResult.load(file)
        assert result.fingerprint == as_source(arrays).fingerprint()
        assert result.indices.numel() == 42
        assert f"export {file} --to npy --out {tmp_path}/kept-indices.npy" in out
        assert run("export", file, "--to", "npy", "--out", tmp_path / "kept-indices.npy").code == 0
        assert np.load(tmp_path / "kept-indices.npy").tolist() == result.indices.tolist()
        data = ("--data", arrays[0], "--data", arrays[1])
        assert run("report", file, "--out", tmp_path / "r.html", *data).code == 0
        assert "data:image" in (tmp_path / "r.html").read_text()

    @pytest.mark.parametrize("dtype", ["u1", ">u2", "<u4", ">u8"])
    def test_classes_of_any_integer_type(
        self, run: Run, arrays: tuple[Path, Path], tmp_path: Path, dtype: str
    ) -> None:
        np.save(arrays[1], (np.arange(60) % 3).astype(dtype)[:, None])
        code, _, err = run("prune", *arrays, "--out", tmp_path / "kept", *TINY)
        assert code == 0, err
        targets = PruneResult.load(tmp_path / "kept").targets
        assert targets is not None
        assert targets.tolist() == [number % 3 for number in range(60)]

    def test_validation(self, run: Run, arrays: tuple[Path, Path], tmp_path: Path) -> None:
        options = ("--validation", arrays[0], "--validation", arrays[1])
        code, _, _ = run("prune", *arrays, "--out", tmp_path / "kept", *TINY, *options)
        assert code == 0
        np.save(tmp_path / "more.npy", np.arange(60) % 4)
        options = ("--validation", arrays[0], "--validation", tmp_path / "more.npy")
        code, _, err = run("prune", *arrays, "--out", tmp_path / "kept", *TINY, *options)
        assert code == 1
        assert "expected classes up to 2, found class 3" in err

    @pytest.mark.parametrize(
        ("images", "classes", "said"),
        [
            (np.zeros((4, 8, 8, 3)), [0, 1, 0, 1], r"uint8 .* found float64 \[8, 8, 3\]"),
            (np.zeros((4, 8, 8, 4), np.uint8), [0, 1, 0, 1], r"found uint8 \[8, 8, 4\]"),
            (np.zeros((4, 8, 8), np.uint8), [0, 1, 0], "equal numbers of rows"),
            (np.zeros((4, 8, 8), np.uint8), [0, -1, 0, 1], "at least 0; found -1"),
            (np.zeros((4, 8, 8), np.uint8), [0.5, 1, 0, 1], "must be whole numbers"),
        ],
    )
    def test_what_is_no_images(
        self, run: Run, tmp_path: Path, images: np.ndarray, classes: list[float], said: str
    ) -> None:
        np.save(tmp_path / "x.npy", images)
        np.save(tmp_path / "y.npy", classes)
        paths = (tmp_path / "x.npy", tmp_path / "y.npy")
        code, out, err = run("prune", *paths, "--out", tmp_path / "kept", *TINY)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1

        assert re.search(said, err)

    def test_one_array_or_a_mixture(self, run: Run, arrays: tuple[Path, Path]) -> None:
        for paths, said in (
            (arrays[:1], "expected two arrays, of images and of classes; found 1"),
            ((*arrays, "x.tar"), "images.npy cannot be combined with other data"),
            (("a", "b"), "a cannot be combined with other data; expected one image folder"),
            (("x.tar", "b"), "b cannot be combined with other data"),
        ):
            code, _, err = run("prune", *paths, "--out", "kept")
            assert code == 1
            assert said in err
