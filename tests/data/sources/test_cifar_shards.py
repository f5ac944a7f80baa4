"""CIFAR-10 as a folder, as shards and as arrays: the same samples ($ADAPRUNER_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.shard_files import write_tar

from adapruner import Pruner, as_source
from adapruner.cli.main import main
from adapruner.vision import training_transform

CIFAR = Path(os.environ.get("ADAPRUNER_DATA", "")) / "cifar10"
COUNT = 2000

pytestmark = pytest.mark.skipif(
    not (os.environ.get("ADAPRUNER_DATA") and CIFAR.is_dir()), reason="needs $ADAPRUNER_DATA"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of each class, as "images", as "shards" of 300, and as .npy files."""
    pillow = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("cifar")
    names = (CIFAR / "classes.txt").read_text().split()
    content = np.memmap(CIFAR / "test.jpegs", dtype=np.uint8, mode="r")
    index = np.load(CIFAR / "test.index.npy")[:COUNT]
    index = index[np.argsort([names[label] for label in index[:, 2]], kind="stable")]
    members, arrays = [], []
    for number, (offset, length, label) in enumerate(index.tolist()):
        encoded = content[offset : offset + length].tobytes()
        path = root / "images" / names[label] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
        target = sorted(names).index(names[label])
        members += [(f"{number:05d}.jpg", encoded), (f"{number:05d}.cls", b"%d" % target)]
        arrays.append(np.array(pillow.open(path).convert("RGB")))
    for start in range(0, 2 * COUNT, 600):
        write_tar(root / "shards" / f"{start:06d}.tar", members[start : start + 600])
    np.save(root / "x.npy", np.stack(arrays))
    np.save(root / "y.npy", [sorted(names).index(names[label]) for label in index[:, 2]])
    return root


def test_all_forms_give_the_same_batches(folder: Path) -> None:
    pytest.importorskip("torchvision")
    assert main(["index", str(folder / "shards")]) == 0
    forms = (folder / "images", folder / "shards", (folder / "x.npy", folder / "y.npy"))
    loaders = []
    for form in forms:
        source = as_source(form, transform=training_transform(32))
        assert len(source) == COUNT
        loaders.append(Pruner(COUNT, epochs=1).loader(source, 128, block_size=50))
    for batches in zip(*loaders, strict=True):
        for inputs, targets, ids in batches[1:]:
            assert torch.equal(ids, batches[0][2])
            assert torch.equal(inputs, batches[0][0])
            assert torch.equal(targets.long(), batches[0][1])


def test_command_prunes_shards(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    file = tmp_path / "kept.safetensors"
    options = ["--model", "test_resnet", "--epochs", "2", "--quiet", "--block-size", "50"]
    assert main(["prune", str(folder / "shards"), "--out", str(file), *options]) == 0
    command = ["export", str(file), "--to", "shards", "--out", str(tmp_path / "kept")]
    assert main(command) == 0
    assert len(as_source(tmp_path / "kept")) == round(0.7 * COUNT)
