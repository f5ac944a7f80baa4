"""The plugin of gpu-check's tests: a line for each test, whatever becomes of its process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import lines
from benchmarks.gpu.runner import ROOT, environment

HARMLESS = """
import pytest

@pytest.mark.parametrize("i", range(3))
def test_passes(i): pass

def test_fails(): assert 1 == 2

def test_skips(): pytest.skip("a reason")

@pytest.fixture
def ends_badly():
    yield
    raise RuntimeError("in the tear-down")

def test_tear_down(ends_badly): pass

@pytest.fixture
def begins_badly(): raise RuntimeError("in the set-up")

def test_set_up(begins_badly): pass
"""
DEADLY = """
import os, signal, time

def test_crashes(): os.kill(os.getpid(), signal.SIGSEGV)

def test_hangs(): time.sleep(1000)
"""
EXPECTED = {
    "test_gone.py": ("not collected", "ModuleNotFoundError: No module named 'nothing_such'"),
    "test_some.py::test_passes[0]": ("passed", ""),
    "test_some.py::test_passes[1]": ("passed", ""),
    "test_some.py::test_passes[2]": ("passed", ""),
    "test_some.py::test_fails": ("failed", "assert 1 == 2"),
    "test_some.py::test_skips": ("skipped", "Skipped: a reason"),
    "test_some.py::test_tear_down": ("failed", "RuntimeError: in the tear-down"),
    "test_some.py::test_set_up": ("failed", "RuntimeError: in the set-up"),
}
DEATHS = {
    "test_some.py::test_crashes": ("failed", "crashed while running"),
    "test_some.py::test_hangs": ("failed", "not done within 5 s"),
}


@pytest.mark.parametrize("parallel", [False, True])
def test_a_line_for_each_test(parallel: bool, tmp_path: Path) -> None:
    if parallel and importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    (tmp_path / "test_some.py").write_text(HARMLESS + (DEADLY if parallel else ""))
    (tmp_path / "test_gone.py").write_text("import nothing_such")
    file = tmp_path / "tests.jsonl"
    options = ["--line-file", str(file), "--test-seconds", "5", "--test-device", "cpu"]
    options += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    options += ["-n", "1"] if parallel else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.log_tests", *options, "."],
        cwd=tmp_path,
        env=environment({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = lines.read(file)
    expected = EXPECTED | (DEATHS if parallel else {})
    assert sorted(line["test"] for line in found) == sorted(expected)
    for line in found:
        outcome, text = expected[line["test"]]
        assert line["outcome"] == outcome
        assert text in lines.reason(line.get("text", ""))
