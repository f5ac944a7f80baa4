"""Readers of the command's output that go away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_data import blobs
from torch import nn

from adapruner import fast_prune


@pytest.fixture
def gone() -> Iterator[int]:
    """A descriptor to which writing fails, because nobody can read it any more."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_command_works_on_without_its_reader(gone: int, stream: str) -> None:
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: gone}
    done = subprocess.run([sys.executable, "-m", "adapruner", "info"], **streams, check=False)
    assert done.returncode == 0
    assert not done.stderr


def test_the_command_works_without_any_stream(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m adapruner info >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


@pytest.mark.parametrize("broken", ["gone", "closed", "none"])
def test_a_run_goes_on_without_a_reader_of_its_progress(
    gone: int, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    stream = open(os.dup(gone), "w", buffering=1)  # noqa: SIM115
    if broken == "closed":
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.close()
    monkeypatch.setattr(sys, "stderr", None if broken == "none" else stream)
    torch.manual_seed(0)
    result = fast_prune(nn.Linear(5, 3), blobs(60), 0.5, 2, batch_size=16, progress=True)
    monkeypatch.undo()
    assert len(result.indices) == 30
    if broken != "closed":  # what was not written must not be an error at the end of the test
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.close()
