"""Every operator on the device beside the CPU: one line of JSON a call, written at once.

    PYTHONPATH=tests python -m benchmarks.gpu.smoke cuda|cpu smoke.jsonl [WORD ...]

Words choose the operators whose names contain one of them. A worker process makes the calls. If a
call ends the worker, hangs, or leaves its device unusable, that call has failed and a new worker
goes on after it. Ends with status 1 if a call failed.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import lines
from .device import Cpu, find_device
from .smoke_calls import Call, calls

CALL_SECONDS = 60.0  # of one call
START_SECONDS = 180.0  # until the first call of a worker: imports, the samples, a CUDA context
LOST = 3  # status of a worker whose device is lost
MOST_IN_A_ROW = 5  # workers that end in their first call before the rest is given up
# Largest difference as a share of the largest magnitude, where bits need not be equal.
TOLERANCES = {
    torch.float64: 1e-6,
    torch.float32: 1e-5,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-6,
}


def moved(x: torch.Tensor, device: str) -> torch.Tensor:
    """A copy on another device, with the strides and the offset of ``x`` in its memory."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.detach().untyped_storage())
    there = memory.to(device, copy=True)
    return there.as_strided(x.shape, x.stride(), x.storage_offset())


def all_moved(values: Sequence[Any], device: str) -> list[Any]:
    return [moved(each, device) if torch.is_tensor(each) else each for each in values]


def difference(found: torch.Tensor, expected: torch.Tensor, exact: bool) -> float:
    """The largest difference as a share of the largest magnitude; raises if it is too large."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise AssertionError(
            f"expected {expected.dtype} {list(expected.shape)}; "
            f"found {found.dtype} {list(found.shape)}"
        )
    exact = exact or not expected.dtype.is_floating_point
    gap = scale = 0.0
    # In pieces: the largest calls would take many times their memory in float64.
    pieces = zip(found.flatten().split(2**26), expected.flatten().split(2**26), strict=True)
    for ours, theirs in pieces:
        theirs = theirs.to(ours.device)
        equal = (ours == theirs) | ((ours != ours) & (theirs != theirs))  # NaN equals NaN here
        near = torch.zeros_like(equal) if exact else theirs.isfinite()
        if wrong := int((~equal & ~near).sum()):
            raise AssertionError(f"{wrong} values differ from the CPU's")
        if not exact and len(ours):
            off = (ours.double() - theirs.double()).where(near, 0)
            gap = max(gap, off.abs().nan_to_num(nan=torch.inf).max().item())
            scale = max(scale, theirs.double().where(near, 0).abs().max().item())
    worst = gap / scale if scale else gap
    if not exact and worst > TOLERANCES[expected.dtype]:
        raise AssertionError(f"differs from the CPU by {worst:.3g} of the largest magnitude")
    return worst


def compare(call: Call, device: Cpu) -> float:
    """Make a call on both devices; the largest difference of results and of arguments after it."""
    operator = getattr(torch.ops.adapruner, call.operator).default
    arguments, options = call.make()
    sides = []
    for name in ("cpu", device.name):
        given = all_moved(arguments, name)
        named = dict(zip(options, all_moved(list(options.values()), name), strict=True))
        with torch.no_grad():
            results = operator(*given, **named)
        results = results if isinstance(results, (tuple, list)) else [results]
        sides.append([x for x in (*results, *given) if torch.is_tensor(x)])
    device.synchronize()
    exact = "cross_entropy" not in call.operator
    expected, found = sides
    pairs = zip(found, expected, strict=True)
    return max((difference(x, y, exact) for x, y in pairs), default=0.0)


def work(device: Cpu, file: Path, words: Sequence[str], begin: int) -> int:
    """Make the calls from number ``begin`` on. The name of a call is printed before it is made."""
    import adapruner  # noqa: F401  (registers the operators)

    chosen = [c for c in calls() if not words or any(word in c.operator for word in words)]
    for number, call in enumerate(chosen[begin:], begin):
        print(f"{number} {call.operator}: {call.name}", flush=True)
        line: dict[str, Any] = {"n": number, "operator": call.operator, "name": call.name}
        start = time.perf_counter()
        if reason := too_large(call, device):
            line |= {"ok": None, "skipped": reason}
        else:
            try:
                line |= {"ok": True, "worst": compare(call, device)}
            except Exception as error:  # any failure of an operator is a finding
                line |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        lines.append(file, line | {"ms": round(1e3 * (time.perf_counter() - start), 2)})
        if line["ok"] is False and not device.works():
            return LOST
        device.free_cache()
    return 0


def too_large(call: Call, device: Cpu) -> str | None:
    """Why a call does not fit this machine: it takes several times its arguments on both sides."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 5 * call.bytes
    if needed > device.memory():
        return f"needs {needed / 2**30:.0f} GiB on the device"
    if needed > host / 2:
        return f"needs {needed / 2**30:.0f} GiB of memory"
    return None


def drive(command: Sequence[str], file: Path, seconds: float = CALL_SECONDS) -> None:
    """Run workers, each from the call after the last one's last, until all calls are made.

    ``command`` is extended by the number of the call to begin with. Each call may take ``seconds``.
    """
    begin = useless = 0
    while useless < MOST_IN_A_ROW:
        last, why = one_worker([*command, str(begin)], seconds)
        if why is None:
            return
        if last is None:
            raise RuntimeError(f"a worker of the smoke stage {why} before its first call")
        number, name = last.split(" ", 1)
        written = lines.read(file)
        if not written or written[-1]["n"] != int(number):
            operator, of = name.split(": ", 1)
            line = {"n": int(number), "operator": operator, "name": of, "ok": False}
            lines.append(file, line | {"error": f"the process {why}"})
        useless = useless + 1 if int(number) == begin else 0
        begin = int(number) + 1
    raise RuntimeError(
        f"{useless} workers in a row ended in their first call; the rest is left out"
    )


def one_worker(command: Sequence[str], seconds: float) -> tuple[str | None, str | None]:
    """Run one worker: the last call it announced, and how it failed, or None where it did not."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    last = None
    try:
        for last in announced(process, seconds):
            print(last, flush=True)
    except TimeoutError as error:
        return last, str(error)
    finally:
        process.kill()
        status = process.wait()
    if status == 0:
        return last, None
    return last, f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def announced(process: subprocess.Popen[str], call_seconds: float) -> Iterator[str]:
    """The calls that a worker announces; a TimeoutError where the next one takes too long."""
    heard: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            heard.put(line.rstrip("\n"))
        heard.put(None)

    threading.Thread(target=listen, daemon=True).start()
    seconds = START_SECONDS
    while True:
        try:
            line = heard.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"was not done within {seconds:.0f} s") from None
        if line is None:
            process.wait()
            return
        yield line
        seconds = call_seconds


def main() -> int:
    device, file, *words = sys.argv[1:]
    if "--from" in words:  # a worker
        begin = int(words[-1])
        return work(find_device(device), Path(file), words[:-2], begin)
    program = [sys.executable, "-m", "benchmarks.gpu.smoke", device, file, *words, "--from"]
    drive(program, Path(file))
    failed = [line for line in lines.read(Path(file)) if line["ok"] is False]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
