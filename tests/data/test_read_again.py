"""A read that fails once by chance excludes no sample."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import Followed
from torch.utils.data import Dataset

from adapruner import as_source
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.data.sources.image_folder import ImageFolderSource
from adapruner.vision import to_tensor
from adapruner.vision.decoding import read_image

PASSING = [errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EMFILE, errno.ENFILE]
COUNT = 6


class Flaky:
    """Raises for each name until it was asked for ``failures`` times."""

    def __init__(self, number: int, failures: int) -> None:
        self.number, self.failures = number, failures
        self.calls: Counter[str] = Counter()

    def open(self, name: str) -> None:
        self.calls[name] += 1
        if self.calls[name] <= self.failures:
            raise OSError(self.number, os.strerror(self.number), name)


class Numbers(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, files: Flaky) -> None:
        self.files, self.targets = files, [0, 1] * (COUNT // 2)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.files.open(f"{index}.bin")
        return torch.tensor([float(index)]), self.targets[index]


class FlakyFolder(ImageFolderSource):
    files = Flaky(0, 0)

    def _read(self, index: int) -> tuple[Any, int]:
        self.files.open(self.paths[index])
        return super()._read(index)


def ids_and_reasons(kind: Any, source: Any) -> tuple[list[int], dict[int, str]]:
    followed = Followed(COUNT)
    ids = torch.cat([batch[2] for batch in kind(source, followed, 2)]).tolist()
    return sorted(ids), dict(followed.unreadable)


@pytest.mark.parametrize("number", PASSING)
def test_a_read_that_fails_once(number: int) -> None:
    files = Flaky(number, 1)
    ids, reasons = ids_and_reasons(PrunedLoader, as_source(Numbers(files)))
    assert (ids, reasons) == (list(range(COUNT)), {})
    assert set(files.calls.values()) == {2}


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_other_errors_are_final(number: int) -> None:
    files = Flaky(number, 1)
    with pytest.raises(OSError, match=r"0\.bin"):
        as_source(Numbers(files))[0]
    assert files.calls == {"0.bin": 1}


@pytest.mark.parametrize("number", PASSING)
def test_a_read_that_fails_twice(number: int) -> None:
    files = Flaky(number, 2)
    with pytest.raises(OSError, match=r"3\.bin") as caught:
        as_source(Numbers(files))[3]
    assert caught.value.errno == number
    limited = number in (errno.EMFILE, errno.ENFILE)
    assert ("ulimit -n" in str(caught.value)) == limited
    assert files.calls == {"3.bin": 2}


def test_both_loaders_read_again(tmp_path: Path) -> None:
    """The DALI loader reads TIFFs through the source."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from adapruner.data.dali.loader import DaliLoader

    image_module = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    for number in range(COUNT):
        grey = np.full((8, 8), number, np.uint8)
        image_module.fromarray(grey).save(tmp_path / "a" / f"{number}.tiff")
    for loader in (DaliLoader, PrunedLoader):
        source = FlakyFolder(tmp_path, transform=to_tensor)
        source.files = Flaky(errno.EMFILE, 1)
        assert ids_and_reasons(loader, source) == (list(range(COUNT)), {})
        assert set(source.files.calls.values()) == {2}


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux")
def test_the_error_of_a_disk_keeps_its_number_and_names_the_file() -> None:
    """Page 0 of a process is not mapped, so its read fails with EIO after the file was opened."""
    with pytest.raises(OSError, match="/proc/self/mem") as caught:
        read_image("/proc/self/mem")
    assert caught.value.errno == errno.EIO
