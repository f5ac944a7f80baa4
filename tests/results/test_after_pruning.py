"""Every export is read by the training loop of the README, through both loaders: the kept samples,
all of them, once an epoch, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import make_pictures
from support.shard_files import write_tar
from torch import nn
from torch.utils.data import Subset

from adapruner import Pruner, PruneResult, as_source
from adapruner.data.sources.base import Source
from adapruner.results.export import export
from adapruner.vision import evaluation_transform, to_tensor

pytest.importorskip("PIL")
pytest.importorskip("torchvision")

KEPT = [0, 2, 3, 11, 17, 29, 30, 36, 41, 49]
Make = Callable[[Path], Source]


def folder(root: Path) -> Source:
    return as_source(make_pictures(root / "images"))


def shards(root: Path) -> Source:
    """The same 50 images of two classes in three shards."""
    whole = folder(root)
    for j, part in enumerate((range(20), range(20, 29), range(29, 50))):
        members = []
        for n in part:
            members += [(f"{n:03d}.png", whole.encoded(n)), (f"{n:03d}.cls", b"%d" % (n >= 30))]
        write_tar(root / f"shards/train-{j}.tar", members)
    return as_source(root / "shards")


def arrays(root: Path) -> Source:
    """The same images as .npy files."""
    whole = folder(root)
    np.save(root / "x.npy", np.stack([np.asarray(whole.image(n)) for n in range(50)]))
    np.save(root / "y.npy", np.arange(50) // 30)
    return as_source((root / "x.npy", root / "y.npy"))


def read_paths(file: Path, source: Source) -> Any:
    assert source.paths is not None
    number = {path: index for index, path in enumerate(source.paths)}
    return Subset(source, [number[line] for line in file.read_text().splitlines()])


def read_npy(file: Path, source: Source) -> Any:
    return Subset(source, np.load(file).tolist())


def read_parquet(file: Path, source: Source) -> Any:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(file, filters=[("kept", "==", True)])
    return Subset(source, rows["index"].to_pylist())


def read_links(exported: Path, source: Source) -> Any:
    return as_source(exported)


def read_indexes(exported: Path, source: Source) -> Any:
    assert source.root is not None
    tars = [Path(source.root) / f"{path.stem}.tar" for path in sorted(exported.glob("*.idx"))]
    return as_source(tars, index_folder=exported)


EXPORTS = {
    "paths": ([folder], read_paths),
    "links": ([folder], read_links),
    "npy": ([folder, shards, arrays], read_npy),
    "parquet": ([folder, shards, arrays], read_parquet),
    "wds-index": ([shards], read_indexes),
    "shards": ([shards], read_links),
}
CASES = [(to, make, read) for to, (makes, read) in EXPORTS.items() for make in makes]


@pytest.fixture(params=["torch", "dali"])
def loader_for(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def call(data: Any, pruner: Pruner) -> Any:
        source = as_source(data, transform=evaluation_transform(16))
        if request.param == "torch":
            return pruner.loader(source, batch_size=4)
        pytest.importorskip("nvidia.dali")
        from adapruner.data.dali.loader import DaliLoader

        return DaliLoader(source, pruner, 4, num_threads=1)

    return call


@pytest.mark.parametrize(
    ("to", "make", "read"), CASES, ids=[f"{to} of {make.__name__}" for to, make, _ in CASES]
)
def test_training_loop_reads_it(
    to: str,
    make: Make,
    read: Callable[[Path, Source], Any],
    tmp_path: Path,
    loader_for: Callable[..., Any],
) -> None:
    source = make(tmp_path)
    result = PruneResult(
        indices=torch.tensor(KEPT),
        gate_logits=torch.zeros(50),
        keep_ratio=0.2,
        fingerprint=source.fingerprint(),
        dataset=source.about(),
    )
    export(result, tmp_path / "kept", to=to, source=source)
    data = read(tmp_path / "kept", source)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(len(data), keep_ratio=1.0, epochs=2)
    loader = loader_for(data, pruner)
    whole = as_source(folder(tmp_path / "again"), transform=evaluation_transform(16))
    while not pruner.finished:
        seen = []
        for images, targets, ids in loader:
            numbers = [KEPT[place] for place in ids.tolist()]
            expected = torch.stack([whole[number][0] for number in numbers])
            assert torch.allclose(images, expected, atol=1e-5)
            assert targets.tolist() == [number // 30 for number in numbers]
            loss = pruner.loss(model(images), targets, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen += numbers
        assert sorted(seen) == KEPT
        pruner.step()
    assert pruner.result().unreadable == []


def test_paths_are_read_by_dalis_own_reader(tmp_path: Path) -> None:
    """As a list of files; as a folder of links, too."""
    dali = pytest.importorskip("nvidia.dali")
    source = folder(tmp_path)
    result = PruneResult(torch.tensor(KEPT), torch.zeros(50), 0.2, source.fingerprint())
    export(result, tmp_path / "kept.txt", to="paths", source=source)
    export(result, tmp_path / "links", to="links", source=source)
    lines = (tmp_path / "kept.txt").read_text().splitlines()
    labels = [int(line.startswith("dog/")) for line in lines]

    def read(**where: Any) -> Iterator[tuple[torch.Tensor, int]]:
        @dali.pipeline_def(batch_size=len(KEPT), num_threads=1, device_id=None)
        def pipeline() -> Any:
            content, label = dali.fn.readers.file(**where)
            return dali.fn.decoders.image(content, device="cpu"), label

        pipe = pipeline()
        pipe.build()
        images, found = pipe.run()
        for n in range(len(KEPT)):
            yield torch.from_numpy(np.array(images.at(n))), int(found.at(n)[0])

    for where in (
        {"file_root": source.root, "files": lines, "labels": labels},
        {"file_root": str(tmp_path / "links")},
    ):
        for (image, label), number in zip(read(**where), KEPT, strict=True):
            assert torch.allclose(
                image.permute(2, 0, 1) / 255, to_tensor(source.image(number)), atol=1e-6
            )
            assert label == number // 30
