"""Several processes are refused, because each would select by its own losses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

_PROGRAM = """
import sys
import torch.distributed as distributed
from adapruner import Pruner

rank, count = int(sys.argv[2]), int(sys.argv[3])
store = distributed.FileStore(sys.argv[1], count)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
try:
    Pruner(10)
except RuntimeError as error:
    print(error)
distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("world_size", [1, 2])
def test_several_processes_are_refused(world_size: int, tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(tmp_path / "store"), str(rank), str(world_size)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    said = [run.communicate(timeout=300)[0].strip() for run in runs]
    expected = "adapruner does not run in several processes yet; found 2" if world_size > 1 else ""
    assert said == [expected] * world_size
    assert [run.returncode for run in runs] == [0] * world_size
