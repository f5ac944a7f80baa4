"""The memory of the exact top-k beside its input and results, as csrc/ops.cpp states it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.processes import run_python

from adapruner import ops

N = 100_000_000


def _field(file: str, name: str) -> int:
    """A size in bytes from a file of /proc that gives it in kB."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {name} in {file}")


def extra_memory() -> int:
    """Peak memory of a large top-k in bytes, without its input and result."""
    torch.set_num_threads(2)
    random = torch.Generator().manual_seed(0)
    ops.topk_mask(torch.rand(1_000_000, generator=random), 500_000)  # threads and code are loaded
    m = torch.empty(N).uniform_(generator=random)
    before = _field("/proc/self/status", "VmRSS")
    mask = ops.topk_mask(m, round(0.7 * N)).selected
    assert m.min() < 0.01  # keeps m alive until here
    return _field("/proc/self/status", "VmHWM") - before - mask.nbytes


def test_a_large_topk_takes_little_memory_of_its_own():
    try:
        available = _field("/proc/meminfo", "MemAvailable")
        _field("/proc/self/status", "VmHWM")
    except (OSError, ValueError):
        pytest.skip("no /proc that tells")
    if available < 8 * N:
        pytest.skip("too little memory")
    found = run_python("import test_topk_memory as t; print(t.extra_memory())", __file__)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) <= N / 4 + 8e6
