"""The smoke stage of gpu-check: what it calls, how it compares, how it goes on after a crash."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.operator_calls import CPU_ONLY

from benchmarks.gpu import lines, smoke
from benchmarks.gpu.device import find_device
from benchmarks.gpu.smoke_calls import Call, calls

# A worker as smoke.py runs it: seven calls. The second crashes, the fourth hangs, the fifth loses
# the device after its line was written.
WORKER = """
import json, os, signal, sys, time
for n in range(int(sys.argv[1]), 7):
    print(f"{{n}} op: call {{n}}", flush=True)
    if n == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if n == 3:
        time.sleep(1000)
    with open({file!r}, "a") as file:
        file.write(json.dumps({{"n": n, "pid": os.getpid(), "ok": n != 4}}) + "\\n")
    if n == 4:
        sys.exit(3)
"""


def worker(tmp_path: Path, program: str = WORKER) -> list[str]:
    text = program.format(file=str(tmp_path / "smoke.jsonl"))
    return [sys.executable, "-c", text]


def test_a_call_that_ends_its_process_is_followed_by_the_next_in_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "smoke.jsonl"
    smoke.drive(worker(tmp_path), file, seconds=5)
    found = lines.read(file)
    assert [line["n"] for line in found] == list(range(7))
    assert [line["ok"] for line in found] == [True, False, True, False, False, True, True]
    assert found[1]["error"] == "the process was ended by signal 11"
    assert found[1]["name"] == "call 1"
    assert found[3]["error"] == "the process was not done within 5 s"
    processes = [found[n]["pid"] for n in (0, 2, 4, 5, 6)]
    assert len(set(processes)) == 4
    assert processes[3] == processes[4]


def test_a_device_that_is_gone_ends_the_stage(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with status 7 before its first call"):
        smoke.drive(worker(tmp_path, "raise SystemExit(7)"), tmp_path / "smoke.jsonl")
    every = "import sys; print(f'{{sys.argv[1]}} op: call', flush=True); sys.exit(3)"
    with pytest.raises(RuntimeError, match="5 workers in a row ended in their first call"):
        smoke.drive(worker(tmp_path, every), tmp_path / "smoke.jsonl")
    assert [line["n"] for line in lines.read(tmp_path / "smoke.jsonl")] == list(range(5))


def test_every_operator_is_called_the_smallest_input_first() -> None:
    made = calls()
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas()}
    registered = {name.split("::")[1] for name in schemas if name.startswith("adapruner::")}
    assert {call.operator for call in made} == registered - CPU_ONLY
    sizes = [call.bytes for call in made if call.bytes < 2**14]
    assert sizes == sorted(sizes)
    assert max(call.bytes for call in made) > 2**32
    assert len({(call.operator, call.name) for call in made}) == len(made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_differences(dtype: torch.dtype, seeded: None) -> None:
    x = torch.randn(3, 257, dtype=torch.float64).to(dtype)
    x[0, 0], x[1, 1], x[2, 2] = torch.nan, torch.inf, -torch.inf
    assert smoke.difference(x.clone(), x, exact=False) == 0
    assert smoke.difference(x.clone(), x, exact=True) == 0
    near = x.clone()
    near[2, 5] *= 1 + torch.finfo(dtype).eps
    assert 0 < smoke.difference(near, x, exact=False) <= torch.finfo(dtype).eps
    with pytest.raises(AssertionError, match="1 values differ"):
        smoke.difference(near, x, exact=True)
    far = x.clone()
    far[1, 7] += 0.5
    with pytest.raises(AssertionError, match=r"differs from the CPU by 0\.[01]"):
        smoke.difference(far, x, exact=False)
    for place, value in [((0, 0), 0.0), ((1, 1), 1.0), ((0, 1), torch.nan), ((2, 2), torch.inf)]:
        other = x.clone()
        other[place] = value
        with pytest.raises(AssertionError):
            smoke.difference(other, x, exact=False)
        with pytest.raises(AssertionError):
            smoke.difference(other, x, exact=True)
    with pytest.raises(AssertionError, match=r"expected .* \[3, 257\]; found .* \[3, 256\]"):
        smoke.difference(x[:, 1:], x, exact=True)


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_differences_of_whole_numbers(n: int) -> None:
    x = torch.arange(n)
    assert smoke.difference(x.clone(), x, exact=False) == 0
    if n:
        with pytest.raises(AssertionError, match=f"{n} values differ"):
            smoke.difference(x + 1, x, exact=False)


def test_copies_keep_strides_and_offsets(seeded: None) -> None:
    memory = torch.randn(1000)
    views = [memory[1:], memory[3:903].view(30, 30).t(), memory[::3], memory[:1].expand(5), memory]
    for view in [*views, memory[:0]]:
        copied = smoke.moved(view, "cpu")
        assert torch.equal(copied, view)
        assert (copied.stride(), copied.storage_offset()) == (view.stride(), view.storage_offset())
        assert copied.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr()


def test_calls_that_do_not_fit_are_named() -> None:
    call = Call("topk_mask", "huge", lambda: ((), {}), 2**40)
    assert smoke.too_large(call, find_device("cpu")) == "needs 5120 GiB on the device"
    assert smoke.too_large(call._replace(bytes=100), find_device("cpu")) is None
