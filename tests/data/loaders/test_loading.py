"""Which loader fast_prune takes, and what it says about it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import make_pictures, picture
from torch import nn
from torch.utils.data import default_collate

from adapruner import PruneResult, as_source, fast_prune
from adapruner.cli.main import main
from adapruner.data.loaders.choice import choose_loader
from adapruner.vision import evaluation_transform, training_transform

pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "pictures", (230, 230))


def own_collate(samples: list[Any]) -> Any:
    return default_collate(samples)


def prune(data: Any, **arguments: Any) -> PruneResult:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    arguments = {
        "transform": training_transform(16),
        "evaluation_transform": evaluation_transform(16),
        "progress": False,
        **arguments,
    }
    return fast_prune(model, data, 0.6, 4, batch_size=32, **arguments)


def test_unknown_loader(folder: Path) -> None:
    with pytest.raises(ValueError, match=r'"auto", "torch", "dali"; found "?\'?fast'):
        prune(folder, loader="fast")


def test_torch_where_it_is_asked_for(folder: Path) -> None:
    config = prune(folder, loader="torch").config
    assert config["loader"] == config["evaluation_loader"] == "torch"
    assert config["loader_reason"] == "asked for"


def test_torch_where_dali_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    source = as_source(folder, transform=training_transform(16))
    choice = choose_loader("auto", source, default_collate)
    assert choice.name == "torch"
    assert "adapruner[dali]" in choice.why
    with pytest.raises(ImportError, match=r"adapruner\[dali\]"):
        choose_loader("dali", source, default_collate)


class TestWithDali:
    @pytest.fixture(autouse=True)
    def dali(self) -> None:
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")

    def test_dali_where_it_can(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = prune(folder, progress=True)
        assert result.config["loader"] == result.config["evaluation_loader"] == "dali"
        said = capsys.readouterr().err
        assert "loader: dali (DALI is installed and can read these samples)" in said
        assert result.indices.numel() == 276
        assert result.unreadable == []
        again = prune(folder, loader="dali")
        assert torch.equal(again.gate_logits, result.gate_logits)

    def test_the_loaders_learn_the_same_where_nothing_is_random(self, folder: Path) -> None:
        """PNGs that are not augmented: the pixels are equal but for rounding."""
        ours = prune(folder, loader="dali", transform=evaluation_transform(16))
        theirs = prune(folder, loader="torch", transform=evaluation_transform(16))
        assert torch.allclose(ours.gate_logits, theirs.gate_logits, atol=1e-3)
        assert len(set(ours.indices.tolist()) & set(theirs.indices.tolist())) > 0.98 * 276

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"transform": lambda image: torch.zeros(3, 16, 16)}, "function of its own"),
            ({"collate_fn": own_collate}, "makes the batches itself"),
        ],
        ids=["transform", "collate_fn"],
    )
    def test_torch_where_dali_cannot(
        self, arguments: dict[str, Any], reason: str, folder: Path
    ) -> None:
        config = prune(folder, **arguments).config
        assert config["loader"] == "torch"
        assert reason in config["loader_reason"]
        with pytest.raises(TypeError, match=reason):
            prune(folder, loader="dali", **arguments)

    def test_evaluation_by_torch_where_only_that_cannot(self, folder: Path) -> None:
        config = prune(folder, evaluation_transform=lambda image: torch.zeros(3, 16, 16)).config
        assert (config["loader"], config["evaluation_loader"]) == ("dali", "torch")

    def test_arrays(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """In memory and on disk, where they are images and something is to be done to them."""
        x = np.stack([picture(n, 16, 16, n % 2) for n in range(460)])
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", np.arange(460) % 2)
        files = tmp_path / "x.npy", tmp_path / "y.npy"
        result = prune(files, progress=True)
        assert result.config["loader"] == result.config["evaluation_loader"] == "dali"
        assert "loader: dali (DALI is installed and can read these" in capsys.readouterr().err
        again = prune((x, np.arange(460) % 2))
        assert torch.equal(again.gate_logits, result.gate_logits)
        ours, theirs = (
            prune(files, loader=loader, transform=evaluation_transform(16))
            for loader in ("dali", "torch")
        )
        assert torch.allclose(ours.gate_logits, theirs.gate_logits, atol=1e-3)
        floats = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
        config = prune(
            (floats, torch.arange(460) % 2), transform=None, evaluation_transform=None
        ).config
        assert config["loader"] == "torch"
        assert "neither image files nor uint8 images" in config["loader_reason"]

    def test_unreadable_samples_are_in_the_result(self, folder: Path) -> None:
        (folder / "cat" / "003.png").write_bytes(b"")
        (folder / "dog" / "001.png").write_text("no image")
        with pytest.warns(UserWarning, match="2 of 460 samples cannot be read .* sample 3: OSErr"):
            result = prune(folder)
        assert [index for index, _ in result.unreadable] == [3, 231]
        assert not {3, 231} & set(result.indices.tolist())

    def test_a_checkpoint_is_of_its_loader(self, folder: Path, tmp_path: Path) -> None:
        prune(folder, loader="dali", checkpoint_dir=tmp_path / "run")
        with pytest.raises(ValueError, match="made with another loader"):
            prune(folder, loader="torch", checkpoint_dir=tmp_path / "run")

    def test_command_line(self, folder: Path, tmp_path: Path) -> None:
        pytest.importorskip("timm")
        results = {}
        for loader in ("dali", "torch"):
            out = tmp_path / f"{loader}.safetensors"
            arguments = f"prune {folder} --out {out} --epochs 2 --model test_resnet --quiet"
            assert main([*arguments.split(), "--loader", loader, "--threads", "1"]) == 0
            results[loader] = PruneResult.load(out).config
        assert results["dali"]["evaluation_loader"] == results["dali"]["loader"] == "dali"
        assert results["torch"]["evaluation_loader"] == results["torch"]["loader"] == "torch"
