"""`adapruner prune`: its files, its output and its errors."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import TINY, Run, runner
from support.pictures import make_pictures

from adapruner import PruneResult, as_source
from adapruner.vision import create_model

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("PIL")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def prune(run: Run) -> Run:
    return lambda folder, out, *options: run("prune", folder, "--out", out, *TINY, *options)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "images")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestPrune:
    def test_result_and_summary(self, prune: Run, images: Path, tmp_path: Path) -> None:
        file = tmp_path / "kept.safetensors"
        code, out, err = prune(images, file, "--keep-ratio", 0.7)
        assert code == 0
        result = PruneResult.load(file)
        assert result.indices.numel() == 35
        assert result.fingerprint == as_source(images).fingerprint()
        assert [entry["epoch"] for entry in result.history] == [0, 1]
        assert result.config["batch_size"] == 16
        assert result.config["model"] == "test_resnet"
        assert result.config["image_size"] == 16
        assert f"kept 35 of 50 images, written to {file}\n" in out
        assert "of the 100 that an ordinary run reads" in out
        assert "50 images of 2 classes, at 16 x 16 pixels; test_resnet" in err
        assert "epoch   2/2" in err
        assert listing(tmp_path) == sorted(["kept.safetensors", "images", *(
            f"images/{name}" for name in listing(images)
        )])  # fmt: skip

    def test_next_commands_work(
        self, prune: Run, run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("matplotlib")
        pytest.importorskip("jinja2")
        monkeypatch.chdir(tmp_path)
        out = prune(images, "a result.safetensors").out
        suggested = [line.split(maxsplit=1)[1] for line in out.splitlines() if line[0] == " "]
        names = [line.split()[0] for line in suggested]
        assert names == ["show", "report", "export", "export", "export"]
        for line in suggested:
            assert run(*shlex.split(line)).code == 0
        assert len((tmp_path / "a result-paths.txt").read_text().splitlines()) == 35
        assert len(as_source(tmp_path / "a result-images")) == 35
        assert "<html" in (tmp_path / "a result.html").read_text()
        assert len((tmp_path / "a result-samples.csv").read_text().splitlines()) == 51

    def test_quiet(self, prune: Run, images: Path, tmp_path: Path) -> None:
        assert prune(images, tmp_path / "kept", "--quiet") == (0, "", "")
        assert PruneResult.load(tmp_path / "kept").indices.numel() == 35

    def test_same_seed_same_result(self, prune: Run, images: Path, tmp_path: Path) -> None:
        state = torch.get_rng_state()
        for name, seed in (("a", 3), ("b", 3), ("c", 4)):
            assert prune(images, tmp_path / name, "--seed", seed, "--quiet").code == 0
        a, b, c = (PruneResult.load(tmp_path / name) for name in "abc")
        assert torch.equal(a.gate_logits, b.gate_logits)
        assert not torch.equal(a.gate_logits, c.gate_logits)
        assert torch.equal(torch.get_rng_state(), state)

    def test_groups_and_floors(self, prune: Run, images: Path, tmp_path: Path) -> None:
        groups = np.arange(50, dtype=np.uint16) % 5
        np.save(tmp_path / "groups.npy", groups)
        options = ("--image-size", "24", "--small-images", "--keep-ratio", "0.4", "--device", "cpu")
        code, _, err = prune(
            images, tmp_path / "kept", *options, "--balance", tmp_path / "groups.npy"
        )
        assert code == 0, err
        kept = PruneResult.load(tmp_path / "kept").indices.numpy()
        assert np.bincount(groups[kept]).tolist() == [4] * 5
        code, _, err = prune(images, tmp_path / "floors", *options)
        assert code == 0, err
        result = PruneResult.load(tmp_path / "floors")
        assert result.config["balance"] == "floor"
        code, _, err = prune(images, tmp_path / "no", *options, "--balance", tmp_path / "no.npy")
        assert code == 1
        assert "no such file" in err

    def test_every_option(self, prune: Run, images: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        pytest.importorskip("jinja2")
        validation = make_pictures(tmp_path / "validation", (5, 5))
        weights = tmp_path / "weights.safetensors"
        save_file(dict(create_model("test_resnet", 3, image_size=24).state_dict()), weights)
        threads = torch.get_num_threads()
        code, out, err = prune(
            images, tmp_path / "kept", "--keep-ratio", "0.5", "--validation", validation,
            "--weights", weights, "--image-size", "24", "--small-images", "--balance", "class",
            "--method", "published", "--warmup-epochs", "0", "--lr", "0.01", "--seed", "7",
            "--workers", "1", "--on-error", "raise", "--checkpoint", tmp_path / "a" / "b",
            "--report", tmp_path / "report.html", "--threads", threads, "--device", "cpu",
            "--precision", "bf16",
        )  # fmt: skip
        assert code == 0
        result = PruneResult.load(tmp_path / "kept")
        assert (result.config["precision"], result.config["compile"]) == ("bf16", False)
        assert result.targets is not None
        assert np.bincount(result.targets[result.indices].numpy()).tolist() == [15, 10]
        assert all(entry["validation_loss"] is not None for entry in result.history)
        assert {entry["phase"] for entry in result.history} == {"prune"}
        config = result.config
        assert (config["method"], config["seed"], config["lr"]) == ("published", 7, 0.01)
        assert (config["image_size"], config["weights"]) == (24, str(weights))
        assert (tmp_path / "a" / "b" / "checkpoint.safetensors").is_file()
        assert "<html" in (tmp_path / "report.html").read_text()
        assert "warning: " in err
        assert "the head keeps its initial weights" in err
        assert "adapruner report" not in out

    def test_large_images_of_any_size(self, prune: Run, tmp_path: Path) -> None:
        images = make_pictures(tmp_path / "images", (3,), (70, 40), ("wide",))
        make_pictures(images, (3,), (30, 90), ("tall",))
        code, _, err = prune(images, tmp_path / "kept")
        assert code == 0
        assert "at 224 x 224 pixels" in err

    def test_saved_model_is_one_to_start_from(
        self, prune: Run, images: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "model.safetensors"
        assert prune(images, tmp_path / "kept", "--save-model", file)[0] == 0
        saved = load_file(file)
        fresh = create_model("test_resnet", 2, image_size=16)
        assert saved.keys() == fresh.state_dict().keys()
        assert all(tensor.isfinite().all() for tensor in saved.values())
        again = tmp_path / "again"
        code, _, err = prune(images, again, "--weights", file, "--warmup-epochs", "0")
        assert code == 0
        assert "warning" not in err


class TestUnreadable:
    def test_is_skipped_and_listed(self, prune: Run, images: Path, tmp_path: Path) -> None:
        truncated = images / "cat" / "003.png"
        truncated.write_bytes(truncated.read_bytes()[:100])
        for number in range(6):
            (images / "dog" / f"bad{number}.jpg").write_bytes(b"no JPEG")
        code, out, _ = prune(images, tmp_path / "kept", "--keep-ratio", "0.5")
        assert code == 0
        result = PruneResult.load(tmp_path / "kept")
        paths = as_source(images).paths
        assert paths is not None
        unreadable = [paths[index] for index, _ in result.unreadable]
        assert unreadable == ["cat/003.png", *(f"dog/bad{number}.jpg" for number in range(6))]
        assert result.indices.numel() == 28
        assert not set(result.indices.tolist()) & {index for index, _ in result.unreadable}
        assert "7 unreadable images are not kept:\n" in out
        assert str(truncated) in out
        assert "dog/bad3.jpg" in out
        assert "dog/bad4.jpg" not in out
        assert "and 2 more" in out

    def test_can_end_the_run(self, prune: Run, images: Path, tmp_path: Path) -> None:
        (images / "cat" / "003.png").write_bytes(b"no PNG")
        code, out, err = prune(images, tmp_path / "kept", "--on-error", "raise")
        assert (code, out) == (1, "")
        assert "error: sample 3 cannot be read" in err
        assert not (tmp_path / "kept").exists()

    def test_all(self, prune: Run, images: Path, tmp_path: Path) -> None:
        for path in images.rglob("*.png"):
            path.write_bytes(b"no PNG")
        code, _, err = prune(images, tmp_path / "kept")
        assert code == 1
        assert "samples can be read" in err

    def test_fewer_than_are_to_be_kept(self, prune: Run, images: Path, tmp_path: Path) -> None:
        for path in (images / "cat").iterdir():
            path.write_bytes(b"no PNG")
        code, _, err = prune(images, tmp_path / "kept", "--keep-ratio", "0.9")
        assert code == 1
        assert re.search(r"needs 45 readable samples; found 20", err)

    @pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are not UTF-8")
    def test_with_a_name_that_is_not_utf8(self, prune: Run, images: Path, tmp_path: Path) -> None:
        (images / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"no PNG")
        code, out, _ = prune(images, tmp_path / "kept")
        assert code == 0
        assert "1 unreadable image is not kept" in out
        assert PruneResult.load(tmp_path / "kept").indices.numel() == 36


class TestBadInput:
    """One line on standard error, exit code 1, and nothing is left behind."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("{tmp}/nothing",), "no such folder: {tmp}/nothing; expected an image folder"),
            (("{tmp}/file",), "{tmp}/file is not a folder"),
            (("{tmp}/empty",), "; found 0 files, 0 of them images"),
            (("{tmp}/images/cat",), "; found 30 files, 30 of them images"),
            (("{tmp}/one",), "must have at least two classes of images; found one, cat"),
            (("{tmp}/imageless",), "; found 2 class folders"),
            (("--out", "{tmp}/nowhere/kept"), "the folder {tmp}/nowhere does not exist"),
            (("--out", "{tmp}/empty"), "cannot write {tmp}/empty: it is a folder"),
            (("--out", "{tmp}/file/kept"), "{tmp}/file is not a folder"),
            (("--out", "/dev/null"), "cannot write /dev/null: it is not a regular file"),
            (("--report", "{tmp}/nowhere/r.html"), "{tmp}/nowhere does not exist"),
            (("--checkpoint", "{tmp}/file"), "cannot write {tmp}/file"),
            (("--checkpoint", "{tmp}/file/deep/er"), "{tmp}/file is not a folder"),
            (("--validation", "{tmp}/nothing"), "no such folder: {tmp}/nothing"),
            (("--validation", "{tmp}/three"), "must have the same classes .* one of them: owl"),
            (("--weights", "{tmp}/nothing"), "no such file of weights"),
            (("--weights", "{tmp}/file"), "is not a safetensors file .* pickles"),
            (("--model", "resnet81"), "timm has no model 'resnet81'; did you mean"),
            (("--model", "test_vit", "--small-images"), "patches of 16x16; use .*--image-size"),
            (("--keep-ratio", "1e-9"), "must keep at least one sample"),
            (("--warmup-epochs", "2"), "warmup_epochs must be less than epochs"),
            (("--device", "gpu"), "device must be 'cpu' or 'cuda'; found 'gpu'"),
            (("--lr", "1e30"), "no batch of epoch 1 had a finite loss"),
            (("--report", "{tmp}/kept"), "cannot write {tmp}/kept: the command also writes"),
            (("--save-model", "{tmp}/./kept"), "the command also writes another file there"),
            (("{tmp}/x.npy", "{tmp}/y.npy", "--out", "{tmp}/x.npy"), "x.npy: the command reads it"),
            (
                ("--weights", "{tmp}/file", "--out", "{tmp}/file"),
                "file: the command reads it, and it w",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_prune(
        self, run: Run, images: Path, tmp_path: Path, options: tuple[str, ...], message: str
    ) -> None:
        (tmp_path / "file").write_text("text")
        (tmp_path / "empty").mkdir()
        make_pictures(tmp_path / "one", (2,))
        make_pictures(tmp_path / "three", (2, 2, 2))
        for name in ("cat", "dog"):
            (tmp_path / "imageless" / name).mkdir(parents=True)
        given = [option.format(tmp=tmp_path) for option in options]
        folder = [images] if given[0].startswith("--") else []
        before = listing(tmp_path)
        arguments = ["prune", *folder, *TINY, "--quiet", "--out", tmp_path / "kept", *given]
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("adapruner: error: ")
        assert err.count("\n") == 1
        assert re.search(message.format(tmp=tmp_path), err)
        assert listing(tmp_path) == before

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that even root cannot use")
    def test_folder_that_cannot_be_written(self, run: Run, images: Path) -> None:
        code, _, err = run("prune", images, "--out", "/proc/kept", *TINY)
        assert code == 1
        assert "cannot write /proc/kept: no file can be made in /proc (" in err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--keep-ratio", "0"), "must be in (0, 1], the share of images to keep; found 0"),
            (("--keep-ratio", "-1"), "must be in (0, 1], the share of images to keep; found -1"),
            (("--keep-ratio", "1.5"), "must be in (0, 1], the share of images to keep; found 1.5"),
            (("--keep-ratio", "nan"), "must be in (0, 1], the share of images to keep; found nan"),
            (("--keep-ratio", "70%"), "must be a number; found '70%'"),
            (("--epochs", "0"), "must be at least 1; found 0"),
            (("--epochs", "2.5"), "must be a whole number; found '2.5'"),
            (("--batch-size", "0"), "must be at least 1"),
            (("--seed", "-1"), "must be at least 0"),
            (("--lr", "inf"), "must be more than 0"),
            (("--method", "best"), "must be one of sampled, published; found 'best'"),
            (
                ("--balance", "size"),
                "must be class or a .npy file with the group of each image",
            ),
            (("--keep", "0.5"), "unrecognized arguments"),
        ],
    )
    def test_usage(
        self, run: Run, images: Path, tmp_path: Path, options: tuple[str, ...], message: str
    ) -> None:
        code, out, err = run("prune", images, "--out", tmp_path / "kept", *options)
        assert (code, out) == (2, "")
        assert message in err

    def test_no_command(self, run: Run) -> None:
        assert run().code == 2

    def test_missing_extra(
        self, prune: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module, extra, options in (
            ("timm", "vision", ()),
            ("matplotlib", "report", ("--report", tmp_path / "report.html")),
        ):
            with monkeypatch.context() as patched:
                patched.setitem(sys.modules, module, None)
                code, _, err = prune(images, tmp_path / "kept", *options)
            assert code == 1
            assert f"{module} is needed and is not installed" in err
            assert f"adapruner[{extra}]" in err
