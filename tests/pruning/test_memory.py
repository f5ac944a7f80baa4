"""Memory of a pruner of a hundred million samples, at rest and at its peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapruner import Pruner

NUM_SAMPLES = 10**8
SLACK = 16 * 2**20  # for the allocator, threads, and code compiled at first use

# Every sample counts as visited, so the first step prunes and explores.
STEPS = f"""
import json, sys, torch
from adapruner import Pruner

torch.set_num_threads(1)
settings = dict(warmup_epochs=0, track_losses=False, method=sys.argv[1])

def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

def measured():
    peak, held = memory("VmHWM:"), memory("VmRSS:")
    with open("/proc/self/clear_refs", "w") as peaks:
        peaks.write("5")  # the peak begins anew
    return held - before, peak - before

small = Pruner(1000, 0.5, epochs=2, **settings)
small.gates.age.zero_()
small.step()
next(small.batches(10))
before = memory("VmRSS:")
pruner = Pruner({NUM_SAMPLES}, 0.5, epochs=4, **settings)
pruner.gates.age.zero_()
for begin in range(0, {NUM_SAMPLES}, 2**22):
    part = pruner.gates.logits[begin : begin + 2**22]
    torch.randn(len(part), out=part)
    part[part == 1] = 0  # not as if it had never stepped
found = [measured()]
for _ in range(2):
    entry = pruner.step()
    found.append(measured())
next(pruner.batches(1024))
found.append(measured())
assert 0 < entry["kept"] < {NUM_SAMPLES} and entry["explored"] > 0
print(json.dumps(found))
"""


def free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


# At the peak: the masks of two epochs, and the scores and keys of a draw.
@pytest.mark.parametrize(("method", "moment"), [("published", 5.75), ("sampled", 13.75)])
def test_a_hundred_million_samples_are_held_in_five_bytes_and_two_bits_each(
    method: str, moment: float
) -> None:
    if free_memory() < 4 * 2**30:
        pytest.skip("needs a /proc that tells of memory, and 4 GiB of it")
    run = subprocess.run(
        [sys.executable, "-c", STEPS, method],
        # Freed memory goes back to the system at once, so it does not count as held.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)},
        capture_output=True,
        text=True,
        check=True,
    )
    made, *after = json.loads(run.stdout)
    assert made[0] <= 5.25 * NUM_SAMPLES + SLACK
    for held, peak in after:
        assert held <= 5.25 * NUM_SAMPLES + SLACK
        assert peak <= moment * NUM_SAMPLES + SLACK


@pytest.mark.parametrize("arguments", [{}, {"held_out": range(0, 4000, 7)}, {"track_losses": True}])
def test_tensors_held_are_gates_ages_and_bits(arguments: dict[str, object]) -> None:
    settings = {"warmup_epochs": 0, "track_losses": False, **arguments}
    pruner = Pruner(80_000, 0.5, epochs=3, **settings)
    pruner.gates.age.zero_()
    pruner.step()
    held = {}
    owners = [pruner, pruner.gates, pruner.selection]
    if pruner.gates.record is not None:
        owners.append(pruner.gates.record)
    for owner in owners:
        for value in vars(owner).values():
            if isinstance(value, torch.Tensor):
                held[value.data_ptr()] = value.nbytes
            else:
                assert not hasattr(value, "nbytes") or value.nbytes <= 16  # sizes of the segments
    state = pruner.gates.state.nbytes
    record = 10 * 80_001  # it has a place for ids that are out of range
    losses = 4 * 80_000 + record if "track_losses" in arguments else 0
    bits = 3 if "held_out" in arguments else 2
    assert sum(held.values()) - state == 80_000 * 5 + losses + bits * 10_000
