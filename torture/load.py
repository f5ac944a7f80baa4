"""Long and crowded runs: memory and open files stay flat, and runs do not disturb each other.

Also signals, pipes that close, and a clock that jumps.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adapruner import FolderInUseError, Pruner, fast_prune
from torture import faults
from torture.command import Findings, main
from torture.kill import Life
from torture.runs import KINDS, live, make_data, outcome, warm_up

SAMPLE_BYTES = 100
MOST_GROWTH = 16 << 20  # bytes of memory that a long run may grow by


def memory() -> int:
    """Bytes of memory that belong to this process alone, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def many_samples(folder: Path, count: int, findings: Findings) -> dict[str, Any]:
    """Read ``count`` samples of 100 bytes from a mapped file, once."""
    inputs = np.lib.format.open_memmap(
        folder / "x.npy", "w+", dtype=np.uint8, shape=(count, SAMPLE_BYTES)
    )
    targets = np.zeros(count, dtype=np.int64)
    del inputs
    np.save(folder / "y.npy", targets)
    del targets
    pruner = Pruner(count, 0.5, 2)
    loader = pruner.loader((folder / "x.npy", folder / "y.npy"), batch_size=1000)
    began, early, read = time.monotonic(), 0, 0
    for number, (_, _, ids) in enumerate(loader):
        read += len(ids)
        if number == len(loader) // 10:
            early = memory()
    grown = memory() - early
    if read != count:
        findings.note("load, many samples", f"expected {count} samples; found {read}")
    if grown > MOST_GROWTH:
        findings.note("load, many samples", f"memory has grown by {grown >> 20} MiB")
    for name in ("x.npy", "y.npy"):
        (folder / name).unlink()
    return {
        "samples": read,
        "growth KiB": grown >> 10,
        "samples per second": round(read / (time.monotonic() - began)),
    }


def many_epochs(folder: Path, epochs: int, findings: Findings) -> dict[str, Any]:
    """A run of many epochs over a small set, with a checkpoint after each."""
    seen: list[tuple[int, int]] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:  # once for each epoch
                seen.append((memory(), handles()))
            return super().forward(x)

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    held_out = torch.randn(8, 5, generator=generator), torch.arange(8) % 3
    model = Watched(5, 3)
    fast_prune(
        model,
        (x, y),
        0.5,
        epochs,
        batch_size=30,
        validation_data=held_out,
        checkpoint_dir=folder / "epochs",
        progress=False,
    )
    tenth = len(seen) // 10
    grown = seen[-1][0] - seen[tenth][0]
    # The history has one entry more for each epoch, which may cost some KiB.
    if grown > MOST_GROWTH + 8192 * epochs:
        findings.note("load, many epochs", f"memory has grown by {grown >> 20} MiB")
    if seen[-1][1] != seen[tenth][1]:
        findings.note("load, many epochs", f"open files: {seen[tenth][1]}, later {seen[-1][1]}")
    return {"epochs": epochs, "growth KiB": grown >> 10, "open files": seen[-1][1]}


def one_folder(folder: Path, processes: int, findings: Findings) -> dict[str, int]:
    """Many processes on one folder of checkpoints: all but the first are refused by name."""
    lives = []
    data = torch.randn(300, 5), torch.arange(300) % 3
    for _ in range(processes):

        def work(rank: int) -> None:
            try:
                fast_prune(
                    nn.Linear(5, 3), data, 0.5, 4, checkpoint_dir=folder / "one", progress=False
                )
            except FolderInUseError as error:
                if "found the lock of process " in str(error):
                    os._exit(7)
                raise

        lives.append(Life(work, folder))
    codes = [code for life in lives for code in life.end()]
    if set(codes) - {0, 7} or 0 not in codes:
        findings.note("load, one folder", f"exit codes {codes}")
    if sorted(os.listdir(folder / "one")) != ["checkpoint.safetensors"]:
        findings.note("load, one folder", f"left {os.listdir(folder / 'one')}")
    return {"processes": processes, "refused": codes.count(7)}


def jumping_clock(arena: Path, findings: Findings) -> None:
    """The clock of the day jumps by years in a run, there and back. The bits do not change."""
    found = []
    for jumps in (False, True):
        folder = arena / f"clock-{jumps}"
        folder.mkdir()

        def work(rank: int, folder: Path = folder, jumps: bool = jumps) -> None:
            dice = random.Random(0)
            if jumps:
                signal.signal(
                    signal.SIGALRM, lambda *_: faults.jump(dice.randrange(-(10**9), 10**9))
                )
                signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            live(KINDS["shards"], arena, folder, report=False)

        life = Life(work, arena)
        if life.end() != [0]:
            findings.note("load, clock", life.errors()[0])
            return
        found.append(outcome(folder))
    if found[0] != found[1]:
        findings.note("load, clock", "other bits after the clock has jumped")


def command(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    call = [sys.executable, "-m", "adapruner", *words]
    return subprocess.Popen(call, env=environment, **options)


def signals_and_pipes(arena: Path, findings: Findings) -> int:
    """SIGTERM, SIGINT twice, and readers that go away. Returns the number of cases."""
    data, out = str(arena / "images"), arena / "signals"
    out.mkdir()
    tiny = ("--model", "test_resnet", "--epochs", "3", "--batch-size", "16", "--threads", "1")

    def prune(name: str, **options: Any) -> subprocess.Popen[bytes]:
        words = (
            "prune",
            data,
            "--out",
            str(out / name),
            *tiny,
            "--checkpoint",
            str(out / f"{name}-c"),
        )
        return command(*words, "--loader", "torch", **options)

    def expect(case: str, process: subprocess.Popen[bytes], codes: set[int], result: bool) -> None:
        code = process.wait(timeout=300)
        if code not in codes:
            findings.note(f"load, {case}", f"exit code {code}")
        if (out / case).exists() != result:
            findings.note(f"load, {case}", "the result is there" if not result else "no result")

    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for case, sent, codes in (
        ("SIGTERM", [signal.SIGTERM], {-signal.SIGTERM}),
        ("SIGINT", [signal.SIGINT], {130}),
        ("SIGINT twice", [signal.SIGINT, signal.SIGINT], {130, -signal.SIGINT, 1}),
    ):
        process = prune(case, **quiet)
        first = out / f"{case}-c" / "checkpoint.safetensors"
        while process.poll() is None and not first.exists():
            time.sleep(0.01)
        for one in sent:
            process.send_signal(one)
            time.sleep(0.02)
        process.wait(timeout=300)
        if process.returncode == 0:  # it had ended already
            continue
        expect(case, process, codes, False)
        expect(case, prune(case, **quiet), {0}, True)  # the same command resumes
    gone, kept = os.pipe()
    os.close(gone)  # nobody reads
    for case, options in (
        ("stderr is closed", {"stdout": subprocess.DEVNULL, "stderr": kept}),
        ("stdout is closed", {"stdout": kept, "stderr": subprocess.DEVNULL}),
    ):
        expect(case, prune(case, **options), {0}, True)
    os.close(kept)
    return 5


def run(seconds: float, seed: int, findings: Findings) -> dict[str, Any]:
    """Every case once; the long ones are longer if there is more time."""
    warm_up()
    scale = max(0.1, min(1.0, seconds / 900))
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        arena = Path(os.path.realpath(name))
        make_data(arena)
        cases: dict[str, Callable[[], Any]] = {
            "one folder": lambda: one_folder(arena, 8, findings),
            "a clock that jumps": lambda: jumping_clock(arena, findings),
            "signals and pipes": lambda: signals_and_pipes(arena, findings),
            "many epochs": lambda: many_epochs(arena, round(2000 * scale), findings),
            "many samples": lambda: many_samples(arena, round(10**7 * scale), findings),
        }
        return {name: case() for name, case in cases.items()}


if __name__ == "__main__":
    faults.with_faults()
    main(run)
