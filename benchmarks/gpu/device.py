"""The device that gpu-check runs on: a GPU, or the CPU, which stands in for it in a rehearsal.

    python -m benchmarks.gpu.device cuda|cpu       (prints what is there, as JSON)

All of gpu-check reaches the device through these two classes. A rehearsal therefore takes the same
steps, and its figures say nothing about a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], object]
FLUSHED = 256 * 2**20  # bytes: several times the L2 cache of any GPU
ASKED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


class Cpu:
    """Stands in for a GPU: calls run at once, and a graph is a list of calls."""

    name = "cpu"

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.name).manual_seed(seed)

    def synchronize(self) -> None:
        """Wait until all work on the device is done."""

    def works(self) -> bool:
        """Whether this process can still use the device."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True

    def memory(self) -> int:
        """Bytes that the device may use. A rehearsal keeps to 2 GiB."""
        return 2**31

    def free_cache(self) -> None:
        """Give memory that torch keeps for later tensors back to the device."""

    def flush(self) -> None:
        """Overwrite the caches of the device."""

    def seconds_of(self, call: Call) -> float:
        """How long the device works on one call."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def captured(self, calls: Sequence[Call]) -> Call:
        """One call that repeats all of these, without what Python takes to make them."""

        def replay() -> None:
            for call in calls:
                call()

        return replay

    def facts(self) -> dict[str, Any]:
        """Name and properties of the device, its driver and clocks."""
        return {"device": "CPU, in a rehearsal"}


class Cuda(Cpu):
    """The first CUDA device."""

    name = "cuda"

    def __init__(self) -> None:
        self._flushed: torch.Tensor | None = None

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def memory(self) -> int:
        return torch.cuda.get_device_properties(0).total_memory

    def free_cache(self) -> None:
        torch.cuda.empty_cache()

    def flush(self) -> None:
        if self._flushed is None:
            self._flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=self.name)
        self._flushed.zero_()

    def seconds_of(self, call: Call) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def captured(self, calls: Sequence[Call]) -> Call:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def facts(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "torch_cuda": torch.version.cuda,
            **_ask_nvidia_smi(),
        }


def find_nvidia_smi() -> str | None:
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/bin")


def find_device(name: str) -> Cpu:
    if name == "cpu":
        return Cpu()
    if name != "cuda":
        raise ValueError(f"the device must be 'cuda' or 'cpu'; found {name!r}")
    return Cuda()


def _ask_nvidia_smi() -> dict[str, str]:
    """Driver, clocks and power limit at this moment; nothing where nvidia-smi is not there."""
    if (program := find_nvidia_smi()) is None:
        return {}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = [program, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader", "-i", first]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in said.stdout.split(",")]
    return dict(zip(ASKED, values, strict=False))


def describe(device: Cpu) -> dict[str, Any]:
    """The facts of the device, and the machine, versions, date and commit once adapruner is built.

    ``unusable`` says why the device cannot be used, where it cannot.
    """
    try:
        found = device.facts()
    except (RuntimeError, AssertionError) as error:  # torch's words for "no CUDA device"
        return {"unusable": (str(error).splitlines() or [type(error).__name__])[0]}
    found["torch"] = torch.__version__
    if importlib.util.find_spec("adapruner._C") is not None:
        from adapruner import _C

        from ..provenance import provenance

        found |= provenance() | {"kernels": _C.build_info()["cuda"]}
    return found


if __name__ == "__main__":
    print(json.dumps(describe(find_device(sys.argv[1]))))
