"""The other subcommands, common parts of all subcommands, and the command as a process."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.command_line import TINY, Run, runner
from support.pictures import make_pictures

import adapruner
from adapruner import PruneResult, as_source
from adapruner.cli import commands
from adapruner.cli.main import main
from adapruner.cli.parser import EXPORT_FORMATS, REASONS
from adapruner.info import describe, extras
from adapruner.results import reasons
from adapruner.results.export import _FORMATS
from adapruner.results.reasons import reason_counts, samples_of

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("PIL")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "images")


class Pruned(NamedTuple):
    images: Path
    file: Path
    result: PruneResult


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """A result that tests read and do not change."""
    folder = tmp_path_factory.mktemp("pruned")
    images, file = make_pictures(folder / "images"), folder / "kept.safetensors"
    options = ("--keep-ratio", "0.5", "--quiet")
    assert main(["prune", str(images), "--out", str(file), *TINY, *options]) == 0
    return Pruned(images, file, PruneResult.load(file))


@pytest.mark.parametrize("command", [("report",), ("export", "--to", "npy")])
def test_a_result_is_not_written_over(run: Run, pruned: Pruned, command: tuple[str, ...]) -> None:
    before = pruned.file.read_bytes()
    name, *options = command
    code, _, err = run(name, pruned.file, *options, "--out", pruned.file)
    assert code == 1
    assert f"cannot write {pruned.file}: the command reads it, and it would be lost" in err
    assert pruned.file.read_bytes() == before


class TestExport:
    def test_formats_are_those_of_the_library(self) -> None:
        assert set(EXPORT_FORMATS) == set(_FORMATS)

    def test_paths(self, run: Run, pruned: Pruned, tmp_path: Path) -> None:
        file = tmp_path / "kept.txt"
        code, out, _ = run("export", pruned.file, "--to", "paths", "--out", file)
        assert (code, out) == (0, f"wrote 25 paths to {file}, relative to the image folder\n")
        lines = file.read_text().splitlines()
        paths = as_source(pruned.images).paths
        assert paths is not None
        assert lines == [paths[index] for index in pruned.result.indices.tolist()]
        assert all((pruned.images / line).is_file() for line in lines)

    def test_npy(self, run: Run, pruned: Pruned, tmp_path: Path) -> None:
        file = tmp_path / "kept.npy"
        assert run("export", pruned.file, "--to", "npy", "--out", file).code == 0
        assert np.load(file).tolist() == pruned.result.indices.tolist()

    def test_parquet(self, run: Run, pruned: Pruned, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        file = tmp_path / "kept.parquet"
        code, out, _ = run("export", pruned.file, "--to", "parquet", "--out", file)
        assert (code, out) == (0, f"wrote 50 rows to {file}\n")
        table = parquet.read_table(file)
        assert table["kept"].to_pylist() == pruned.result.kept.tolist()
        assert all((pruned.images / path).is_file() for path in table["path"].to_pylist())

    def test_csv(self, run: Run, pruned: Pruned, tmp_path: Path) -> None:
        file = tmp_path / "all.csv"
        code, out, _ = run("export", pruned.file, "--to", "csv", "--out", file)
        assert (code, out) == (0, f"wrote 50 rows to {file}\n")
        with open(file, newline="") as rows:
            table = list(csv.DictReader(rows))
        assert [row["kept"] == "True" for row in table] == pruned.result.kept.tolist()
        assert all((pruned.images / row["path"]).is_file() for row in table)
        assert {row["reason"] for row in table} == set(reason_counts(pruned.result))

    def test_links(self, run: Run, pruned: Pruned, tmp_path: Path) -> None:
        folder = tmp_path / "kept"
        assert run("export", pruned.file, "--to", "links", "--out", folder).code == 0
        assert len(as_source(folder)) == 25
        code, _, err = run("export", pruned.file, "--to", "links", "--out", folder)
        assert code == 1
        assert "is not empty" in err

    def test_folder_that_moved(self, run: Run, images: Path, tmp_path: Path) -> None:
        file, moved = tmp_path / "kept.safetensors", tmp_path / "moved"
        assert run("prune", images, "--out", file, *TINY).code == 0
        images.rename(moved)
        arguments = ("export", file, "--to", "links", "--out", tmp_path / "kept")
        code, _, err = run(*arguments)
        assert code == 1
        assert f"{images} does not exist; give its place with --data" in err
        assert run(*arguments, "--data", moved).code == 0
        assert len(as_source(tmp_path / "kept")) == 35
        # The result has the paths, so these need no folder.
        assert run("export", file, "--to", "paths", "--out", tmp_path / "kept.txt").code == 0
        assert len((tmp_path / "kept.txt").read_text().splitlines()) == 35


def test_report(run: Run, pruned: Pruned, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    file = tmp_path / "report.html"
    code, out, _ = run("report", pruned.file, "--out", file, "--data", pruned.images)
    assert (code, out) == (0, f"wrote {file}\n")
    # 24 kept samples, and the pruned ones of both galleries.
    counts = reason_counts(pruned.result)
    pictures = 24 + min(24, counts.get("easy", 0)) + min(24, counts.get("does not fit", 0))
    assert file.read_text().count("data:image/") >= pictures


@pytest.mark.parametrize("to", ["paths", "links", "wds-index", "shards"])
def test_what_arrays_cannot_be_exported_to(run: Run, tmp_path: Path, to: str) -> None:
    arrays = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
    names = tmp_path / "images.npy", tmp_path / "classes.npy"
    for name, array in zip(names, arrays, strict=True):
        np.save(name, array)
    assert run("prune", *names, "--out", tmp_path / "kept", *TINY, "--quiet").code == 0
    code, _, err = run("export", tmp_path / "kept", "--to", to, "--out", tmp_path / "out")
    assert code == 1
    assert 'found a dataset of kind "arrays". "npy", "csv" and "parquet" work for every' in err
    assert "--data" not in err
    code, _, err = run("prune", *reversed(names), "--out", tmp_path / "kept", *TINY)
    assert code == 1
    assert "the images come first, then the classes" in err


class TestShow:
    def test_reasons_are_counted(self, run: Run, pruned: Pruned) -> None:
        code, out, _ = run("show", pruned.file)
        assert code == 0
        counts = reason_counts(pruned.result)
        for name, count in counts.items():
            assert f"  {name:<15}{count:>12,}  {2 * count:5.1f} %" in out.splitlines()
        assert all(len(line) <= 80 for line in out.splitlines())

    @pytest.mark.parametrize("reason", REASONS)
    def test_samples_of_a_reason(self, run: Run, pruned: Pruned, reason: str) -> None:
        code, out, _ = run("show", pruned.file, "--reason", reason, "--top", 3)
        assert code == 0
        expected = samples_of(pruned.result, reason.replace("-", " ")).tolist()
        if not expected:
            assert out == "no samples\n"
            return
        header, *rows = out.splitlines()
        assert header.split()[:3] == ["index", "class", "predicted"]
        if len(expected) > 3:
            assert rows.pop() == f"{len(expected) - 3:,} more; --top N shows N"
        assert [int(row.split()[0]) for row in rows] == expected[:3]
        paths = as_source(pruned.images).paths
        assert paths is not None
        assert [row.split()[-1] for row in rows] == [paths[index] for index in expected[:3]]

    def test_suspects(self, run: Run, pruned: Pruned) -> None:
        code, out, _ = run("show", pruned.file, "--suspects", "--top", 50)
        assert code == 0
        expected = pruned.result.suspects().indices.tolist()
        rows = out.splitlines()[1:]
        assert [int(row.split()[0]) for row in rows] == expected

    def test_a_result_without_predictions(self, run: Run, pruned: Pruned, tmp_path: Path) -> None:
        bare = replace(pruned.result, predicted=None)
        bare.save(tmp_path / "bare")
        code, _, err = run("show", tmp_path / "bare", "--suspects")
        assert code == 1
        assert "suspects need the classes that the model predicted" in err
        code, out, _ = run("show", tmp_path / "bare")
        assert code == 0
        assert "no suspects" in out

    def test_a_result_without_classes(self, run: Run, pruned: Pruned, tmp_path: Path) -> None:
        replace(pruned.result, targets=None).save(tmp_path / "bare")
        text = "suspects need the classes of the samples; the result has none"
        assert run("show", tmp_path / "bare", "--suspects").err == f"adapruner: error: {text}\n"
        assert f"  no suspects: {text}\n" in run("show", tmp_path / "bare").out

    def test_unreadable_samples_have_their_problems(
        self, run: Run, pruned: Pruned, tmp_path: Path
    ) -> None:
        gone = [i for i in range(50) if not pruned.result.kept[i]][:3]
        problems = [(index, f"torn at {index} bytes") for index in gone]
        replace(pruned.result, unreadable=problems).save(tmp_path / "torn")
        header, *rows = run("show", tmp_path / "torn", "--reason", "unreadable").out.splitlines()
        assert header.endswith("  problem")
        shown = [(int(row.split()[0]), row[row.index("torn") :]) for row in rows]
        assert sorted(shown) == problems
        assert "problem" not in run("show", tmp_path / "torn", "--reason", "kept").out

    def test_a_number_of_samples_needs_a_list(self, run: Run, pruned: Pruned) -> None:
        code, _, err = run("show", pruned.file, "--top", 3)
        assert (code, "give --reason or --suspects too" in err) == (1, True)

    def test_reasons_are_those_of_the_library(self) -> None:
        assert [reason.replace("-", " ") for reason in REASONS] == list(reasons.REASONS)


def test_info_of_a_result(run: Run, pruned: Pruned, tmp_path: Path) -> None:
    code, out, _ = run("info", pruned.file)
    assert code == 0
    text, counts = out.split("reasons\n")
    lines = {line[:17].strip(): line[17:] for line in text.splitlines()}
    assert len(counts.splitlines()) == len(reason_counts(pruned.result))
    assert lines["kept"] == "25 of 50 samples"
    assert lines["dataset"] == "image folder"
    assert lines["fingerprint"] == pruned.result.fingerprint
    assert lines["epochs"] == "2"
    pruned.result.at(0.3).save(tmp_path / "other")
    assert "0.3, taken from a run at 0.5" in run("info", tmp_path / "other").out


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("--keep_ratio", "--keep-ratio"), ("--epoch", "--epochs"), ("--batchsize", "--batch-size")],
)
def test_an_unknown_option_is_answered_with_the_known(run: Run, wrong: str, right: str) -> None:
    code, _, err = run("prune", "images", "--out", "kept", wrong, 5)
    assert code == 2
    assert f"unrecognized arguments: {wrong} 5; did you mean {right}?" in err
    assert "did you mean" not in run("prune", "images", "--out", "kept", "--xyzzy", 5).err


class TestBadResults:
    @pytest.mark.parametrize("command", ["report", "export"])
    def test_results_that_are_none(self, run: Run, tmp_path: Path, command: str) -> None:
        out = ("--out", tmp_path / "out", *(("--to", "npy") if command == "export" else ()))
        code, _, err = run(command, tmp_path / "nothing", *out)
        assert (code, err) == (1, f"adapruner: error: no such file: {tmp_path / 'nothing'}\n")
        torch.save({"indices": torch.arange(3)}, tmp_path / "pickle.pt")
        code, _, err = run(command, tmp_path / "pickle.pt", *out)
        assert code == 1
        assert "is not a whole safetensors file" in err
        assert "pickles for example" in err
        assert err.count("\n") == 1
        save_file({"indices": torch.arange(3)}, tmp_path / "weights")
        code, _, err = run(command, tmp_path / "weights", *out)
        assert code == 1
        assert "found data of another program" in err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("command", ["report", "export"])
    def test_another_dataset(
        self, run: Run, pruned: Pruned, images: Path, tmp_path: Path, command: str
    ) -> None:
        (images / "cat" / "000.png").unlink()
        options = ("--to", "paths") if command == "export" else ()
        code, _, err = run(
            command, pruned.file, "--data", images, "--out", tmp_path / "out", *options
        )
        assert code == 1
        assert pruned.result.fingerprint in err
        assert as_source(images).fingerprint() in err
        assert not (tmp_path / "out").exists()


class TestErrors:
    def test_traceback_on_demand(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ADAPRUNER_TRACEBACK", "1")
        with pytest.raises(FileNotFoundError):
            run("report", tmp_path / "nothing", "--out", tmp_path / "report.html")

    def test_a_mistake_of_ours_keeps_its_traceback(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(arguments: object) -> None:
            raise AttributeError("a mistake")

        monkeypatch.setattr(commands, "report", broken)
        with pytest.raises(AttributeError, match="a mistake"):
            run("report", "result", "--out", "report.html")

    def test_interrupted(
        self, run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(commands, "prune", interrupt)
        command = ("prune", images, "--out", tmp_path / "kept")
        assert run(*command) == (
            130,
            "",
            "adapruner: interrupted; with --checkpoint DIR, the same command can resume a run\n",
        )
        code, _, err = run(*command, "--checkpoint", tmp_path / "c")
        assert code == 130
        assert f"interrupted before the first checkpoint in {tmp_path / 'c'}" in err

    def test_output_that_lacks_characters(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open(tmp_path / "log", "w", encoding="ascii") as log:
            monkeypatch.setattr(sys, "stderr", log)
            assert run("report", tmp_path / "häßlich", "--out", tmp_path / "r").code == 1
        assert r"h\xe4\xdflich" in (tmp_path / "log").read_text("ascii")


class TestInfo:
    def test_what_it_tells(self, run: Run) -> None:
        code, out, _ = run("info")
        assert code == 0
        assert f"adapruner        {adapruner.__version__}\n" in out
        assert f"torch            {torch.__version__.split('+')[0]}" in out
        for text in ("compiler", "in use", "OpenMP", "CUDA", "torchvision"):
            assert text in out

    def test_extras_are_those_declared(self) -> None:
        assert {"vision", "report", "parquet", "huggingface"} <= set(extras())
        assert {"torchvision", "timm", "pillow"} <= set(extras()["vision"])
        assert not {"all", "dev"} & set(extras())

    def test_library_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "adapruner._C", None)
        assert "broken         the library cannot be loaded" in describe()

    def test_missing_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            importlib.metadata, "requires", lambda _: ["no-such.thing>=1; extra == 'odd'"]
        )
        assert 'no-such.thing not installed: pip install "adapruner[odd]"' in describe()


def test_public_names() -> None:
    for name in adapruner.__all__:
        assert name in dir(adapruner)
        assert name == "__version__" or getattr(adapruner, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'fast_prun'"):
        adapruner.fast_prun  # noqa: B018


class TestProcess:
    """The command in a new process."""

    @staticmethod
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT
        )

    def test_version_and_help_without_torch(self) -> None:
        done = self.call("-X", "importtime", "-m", "adapruner", "--version")
        assert (done.returncode, done.stdout) == (0, f"adapruner {adapruner.__version__}\n")
        assert "adapruner.cli" in done.stderr
        assert "torch" not in done.stderr
        assert "numpy" not in done.stderr
        done = self.call("-X", "importtime", "-m", "adapruner", "prune", "--help")
        assert done.returncode == 0
        assert "--keep-ratio" in done.stdout
        assert "torch" not in done.stderr

    def test_missing_folder_without_torch(self, tmp_path: Path) -> None:
        command = ("prune", tmp_path / "nothing", "--out", tmp_path / "kept")
        done = self.call("-X", "importtime", "-m", "adapruner", *command)
        assert (done.returncode, done.stdout) == (1, "")
        message = f"adapruner: error: no such folder: {tmp_path / 'nothing'}"
        assert done.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in done.stderr
        assert " torch" not in done.stderr

    def test_info_module(self) -> None:
        done = self.call("-m", "adapruner.info")
        assert (done.returncode, done.stderr) == (0, "")
        assert "native library" in done.stdout

    @pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
    def test_goes_on_after_an_interrupt(self, run: Run, images: Path, tmp_path: Path) -> None:
        file, checkpoints = tmp_path / "kept", tmp_path / "checkpoints"
        command = ["prune", images, "--out", file, "--model", "test_resnet", "--epochs", 25]
        command += ["--checkpoint", checkpoints]
        # A process in the background may ignore interrupts.
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from adapruner.cli.main import main; sys.exit(main())"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, *map(str, command)],
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as process:
            while not (checkpoints / "checkpoint.safetensors").exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert process.returncode == 130
        message = f"interrupted; the same command resumes from the checkpoint in {checkpoints}"
        assert err.splitlines()[-1] == f"adapruner: {message}"
        assert "Traceback" not in err
        assert not file.exists()
        outcome = run(*command)
        assert outcome.code == 0
        assert f"resuming from the checkpoint in {checkpoints}" in outcome.err
        assert "epoch   1/25" not in outcome.err
        result = PruneResult.load(file)
        assert [entry["epoch"] for entry in result.history] == list(range(25))
        assert result.indices.numel() == 35
