"""as_source: fingerprints from the user, refusals, sources of sources, worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import INPUTS, TARGETS, Pairs, double, make_image_folder, sha256, to_tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from adapruner.data import Source, as_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


def test_stated_fingerprint(folder: Path) -> None:
    stated = sha256(b"adapruner stated 1\nmy data, version 2")
    for data in (Pairs([(0, 0)]), (INPUTS, TARGETS), folder, Subset(Pairs([(0, 0)]), [0])):
        assert as_source(data, fingerprint="my data, version 2").fingerprint() == stated
        assert as_source(data, fingerprint=stated).fingerprint() == stated
    with pytest.raises(ValueError, match="empty string"):
        as_source((INPUTS, TARGETS), fingerprint="")
    with pytest.raises(TypeError, match="fingerprint must be a string; found int"):
        as_source((INPUTS, TARGETS), fingerprint=3)  # type: ignore[arg-type]


def test_datasets_that_are_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

        def __len__(self) -> int:
            return 3

    class Endless(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    for data in (Stream(), iter([1]), 3, None, {1, 2}):
        with pytest.raises(TypeError, match="map-style dataset, with __len__ and __getitem__"):
            as_source(data)
    with pytest.raises(TypeError, match="found Endless, which has no length"):
        as_source(Endless())
    with pytest.raises(
        TypeError, match="found a dict with keys 'train', 'test'; pass one of its val"
    ):
        as_source({"train": [1], "test": [2]})
    for empty in ([], Pairs([]), Subset(Pairs([(0, 0)]), [])):
        with pytest.raises(ValueError, match="of length 0"):
            as_source(empty)
    with pytest.raises(
        ValueError, match=r"columns are for shards and Hugging Face datasets; found Pairs"
    ):
        as_source(Pairs([(0, 0)]), columns=("a", "b"))


def test_source_of_a_source() -> None:
    source = as_source((INPUTS, TARGETS))
    assert as_source(source) is source
    changed = as_source(source, transform=double, fingerprint="x")
    assert torch.equal(changed[1][0], 2 * INPUTS[1])
    assert torch.equal(source[1][0], INPUTS[1])
    assert (source.deterministic, changed.deterministic) == (True, False)
    assert changed.fingerprint() == sha256(b"adapruner stated 1\nx") != source.fingerprint()
    with pytest.raises(ValueError, match="expected a source without a transform; found one with"):
        as_source(changed, transform=double)


def test_sources_reach_workers_that_are_spawned(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", INPUTS.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    sources: list[Source] = [
        as_source((mapped, TARGETS), transform=double),
        as_source(folder, transform=to_tensor),
        as_source(Subset(Pairs([(torch.ones(1), 0)] * 3), [2, 0])),
    ]
    together = Joined(sources)
    loader = DataLoader(together, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for (inputs, target), (expected, label) in zip(loader, together, strict=True):
        assert torch.equal(inputs, expected)
        assert int(target) == int(label)


class Joined(Dataset[tuple[Any, Any]]):
    """Several sources as one dataset, so that one worker process reads them all."""

    def __init__(self, sources: list[Source]) -> None:
        self.places = [(source, index) for source in sources for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        source, place = self.places[index]
        return source[place]
