"""Small runs on arrays, images and shards, from the data to the exports."""

from __future__ import annotations

import importlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import Dataset

from adapruner import PruneResult, as_source, fast_prune
from adapruner._util.files import replace_atomically
from adapruner._util.tensors import whole
from adapruner.data.sources.shard_index import scan, write_index
from adapruner.vision import evaluation_transform, training_transform

SAMPLES, SIDE = 90, 8
EPOCHS = 4


class Kind(NamedTuple):
    """A kind of run, in one process or on several ranks."""

    name: str
    data: Callable[[Path], Any]
    settings: dict[str, Any]
    exports: tuple[tuple[str, str], ...]
    ranks: int = 1

    def on(self, ranks: int) -> Kind:
        return self._replace(name=f"{self.name}, {ranks} ranks", ranks=ranks)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Images under noise from torch's generator, which every read draws anew."""

    def __init__(self) -> None:
        self.targets = [index % 3 for index in range(SAMPLES)]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = torch.zeros(3, SIDE, SIDE)
        x[self.targets[index]] = 1
        return x + torch.randn(3, SIDE, SIDE), self.targets[index]


class Network(nn.Module):
    """A convolution, a batch norm and dropout, for images of 8 × 8 pixels and three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
        )
        self.head = nn.Linear(4 * (SIDE - 2) ** 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """uint8 images ``[N, 8, 8, 3]`` and their classes."""
    random = np.random.default_rng(1)
    classes = np.arange(SAMPLES) % 3
    images = random.integers(0, 200, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8)
    images[np.arange(SAMPLES), :, :, classes] += 50
    return images, classes


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def make_data(folder: Path) -> None:
    """Write an image folder, three shards with their indexes, and two arrays."""
    images, classes = pixels()
    np.save(folder / "images.npy", images)
    np.save(folder / "classes.npy", classes)
    for index, (image, number) in enumerate(zip(images, classes.tolist(), strict=True)):
        path = folder / "images" / "abc"[number] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(image))
    (folder / "shards").mkdir()
    for part in range(3):
        path = folder / "shards" / f"{part}.tar"
        with tarfile.open(path, "w") as tar:
            for index in range(part, SAMPLES, 3):
                for ending, content in (
                    ("png", _png(images[index])),
                    ("cls", str(classes[index]).encode()),
                ):
                    info = tarfile.TarInfo(f"{index:03d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        write_index(path.with_suffix(".idx"), scan(path), path.stat().st_size)


_PICTURES = {
    "transform": training_transform(SIDE),
    "evaluation_transform": evaluation_transform(SIDE),
}
_OF_FILES = (("paths", "paths.txt"), ("parquet", "kept.parquet"), ("links", "links"))
_OF_SHARDS = (("wds-index", "indexes"), ("shards", "kept-shards"))
KINDS = {
    kind.name: kind
    for kind in (
        Kind("noise", lambda folder: Noisy(), {}, (("npy", "kept.npy"),)),
        Kind("noise, workers", lambda folder: Noisy(), {"num_workers": 2}, (("npy", "kept.npy"),)),
        Kind(
            "arrays",
            lambda folder: (folder / "images.npy", folder / "classes.npy"),
            {"loader": "torch", **_PICTURES},
            (("npy", "kept.npy"), ("parquet", "kept.parquet")),
        ),
        Kind(
            "images", lambda folder: folder / "images", {"loader": "torch", **_PICTURES}, _OF_FILES
        ),
        Kind(
            "images, DALI",
            lambda folder: folder / "images",
            {"loader": "dali", "num_workers": 2, **_PICTURES},
            _OF_FILES,
        ),
        Kind(
            "shards", lambda folder: folder / "shards", {"loader": "torch", **_PICTURES}, _OF_SHARDS
        ),
        Kind(
            "shards, DALI",
            lambda folder: folder / "shards",
            {"loader": "dali", "num_workers": 2, **_PICTURES},
            _OF_SHARDS,
        ),
    )
}


ON_RANKS = (
    KINDS["noise"].on(2),
    KINDS["arrays"].on(3),
    KINDS["images, DALI"].on(2),
    KINDS["shards"].on(2),
)


def warm_up() -> None:
    """Import what a life imports late, so that forked lives need not."""
    for module in (
        *("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_svg", "jinja2"),
        *(
            "matplotlib.font_manager",
            "pandas",
            "pyarrow.parquet",
            "nvidia.dali.fn",
            "adapruner.report",
        ),
        *("adapruner.data.dali.loader", "torch.utils.data", "torchvision.transforms.v2"),
    ):
        importlib.import_module(module)


def live(kind: Kind, data: Path, folder: Path, report: bool) -> None:
    """A whole life of a run in ``folder``: checkpoints, result, model, report and exports.

    A file that an earlier life has finished is written again; a finished folder stays. Rank 0
    writes.
    """
    torch.manual_seed(0)
    model = Network()
    if kind.ranks > 2:  # DDP of three ranks or more resumes to rounding
        fully_shard(model, mesh=init_device_mesh("cpu", (kind.ranks,)))
    torch.seed()  # whatever the caller's generators are at
    result = fast_prune(
        model,
        kind.data(data),
        0.5,
        EPOCHS,
        batch_size=16 // kind.ranks,
        seed=3,
        checkpoint_dir=folder / "checkpoint",
        progress=False,
        **kind.settings,
    )
    weights = {name: whole(weight) for name, weight in model.state_dict().items()}
    if kind.ranks > 1 and distributed.get_rank() > 0:
        return
    result.save(folder / "result")
    replace_atomically(folder / "model", lambda path: save_file(weights, path))
    for to, name in kind.exports:
        if not (folder / name).is_dir():
            result.export(folder / name, to=to)
    if report:
        result.report(folder / "report.html")


def outcome(folder: Path) -> dict[str, Any]:
    """All that a life leaves in ``folder``: each file with its bytes, without seconds."""
    result = PruneResult.load(folder / "result")
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]
    found: dict[str, Any] = {
        "result": [
            result.indices.tolist(),
            result.gate_logits.numpy().tobytes(),
            result.sample_losses.numpy().tobytes(),
            history,
            result.fingerprint,
            result.config,
            result.unreadable,
        ]
    }
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif name in ("result", "checkpoint/checkpoint.safetensors", "report.html"):
            found.setdefault(name, path.stat().st_size > 0)  # they hold seconds
        elif path.is_file():
            found[name] = path.read_bytes()
    if "report.html" in found:
        found["report.html"] = (folder / "report.html").read_text().rstrip().endswith("</html>")
    return found


def check_data(data: Path) -> list[str]:
    """The fingerprints of the data, which no run may change."""
    places = (data / "images", data / "shards", (data / "images.npy", data / "classes.npy"))
    return [as_source(place).fingerprint() for place in places]
