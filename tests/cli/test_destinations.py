"""Where the command writes: names as long as the disk allows, and a disk that fills up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.command_line import Run, runner
from support.pictures import make_pictures
from support.small_disk import small_disk

from adapruner import Pruner, PruneResult
from adapruner.cli.commands import _save

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("PIL")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.mark.parametrize("length", [241, 255])
def test_a_long_name_loses_no_run(run: Run, tmp_path: Path, length: int) -> None:
    images, out = make_pictures(tmp_path / "images"), tmp_path / ("k" * length)
    options = ("--model", "test_resnet", "--epochs", 2, "--keep-ratio", 0.5, "--quiet")
    assert run("prune", images, "--out", out, *options).code == 0
    assert PruneResult.load(out).indices.numel() == 25


def test_a_name_that_is_too_long_is_told_before_the_run(run: Run, tmp_path: Path) -> None:
    images, out = make_pictures(tmp_path / "images"), tmp_path / ("k" * 256)
    code, said, err = run("prune", images, "--out", out, "--model", "no_such_model")
    assert (code, said) == (1, "")
    assert err == f"adapruner: error: cannot write {out}: File name too long\n"


def test_a_result_that_cannot_be_written_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    pruner = Pruner(100_000, 0.5, epochs=2)
    while not pruner.finished:
        pruner.weigh(torch.ones(100_000), torch.arange(100_000))
        pruner.step()
    result = pruner.result()
    with small_disk(tmp_path / "disk") as disk:
        (disk / "kept").write_text("old")
        with pytest.raises(OSError, match=r"No space left|File too large") as caught:
            _save(result, disk / "kept")
        assert (disk / "kept").read_text() == "old"
    other = Path(str(caught.value).rsplit(" ", 1)[-1])
    assert str(caught.value).endswith(f"; the result is in {other}")
    assert other.is_relative_to(tmp_path / "elsewhere")
    assert torch.equal(PruneResult.load(other).indices, result.indices)
