"""gpu-check as a whole, rehearsed on the CPU, and what becomes of its results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import lines, sanitizers, stages
from benchmarks.gpu.collect import collect
from benchmarks.gpu.runner import ROOT, Ended
from benchmarks.gpu.stages import Check
from benchmarks.gpu.tables import NOTHING

GPU = {"device": "GPU X", "capability": "9.0", "driver_version": "580.1", "python": "3.12"}
GPU |= {"torch": "2.11.0", "date": "2030-01-01", "commit": "abc1234"}
KERNELS = {"version": "13.0.48", "architectures": "9.0"}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a short rehearsal: one operator, its tests, its suite."""
    results = tmp_path_factory.mktemp("rehearsal") / "results"
    options = ["--device", "cpu", "--build", "no", "--seconds", "500", "--results", results]
    options += ["--stages", "smoke,tests,suites", "--only", "gate_update"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.check", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    log = results / "log.txt"
    assert done.returncode == 0, done.stdout + (log.read_text()[-5000:] if log.exists() else "")
    return results


def test_a_rehearsal(rehearsed: Path) -> None:
    summary = json.loads((rehearsed / "summary.json").read_text())
    assert {name: s["verdict"] for name, s in summary["stages"].items()} == {
        "smoke": "passed",
        "tests": "passed",
        "suites": "passed",
    }
    assert summary["provenance"]["torch"] == torch.__version__
    assert summary["provenance"]["device"] == "CPU, in a rehearsal"
    smoked = lines.read(rehearsed / "smoke.jsonl")
    assert {(line["operator"], line["ok"]) for line in smoked} == {("gate_update", True)}
    tested = lines.read(rehearsed / "tests.jsonl")
    files = {line["test"].split("::")[0] for line in tested}
    assert files == {"tests/test_gate_update.py", "tests/test_gate_update_errors.py"}
    assert {line["outcome"] for line in tested} == {"passed"}
    assert len({line["test"] for line in tested}) == len(tested)
    (row,) = lines.read(rehearsed / "suites.jsonl")
    assert row["suite"] == "gate_update"
    assert list(row["row"]["rivals"]) == ["adapruner", "index_add_"]
    assert all(path.is_file() for path in rehearsed.iterdir())


def test_a_device_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.check", "--results", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "the device cuda cannot be used: " in done.stdout.splitlines()[-1]


def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    text = "\n".join(f"<!-- {m}: begin -->\nold\n<!-- {m}: end -->" for m in ("gpu checks", "gpu"))
    (root / "docs" / "performance.md").write_text(f"# Head\n{text}\ntail\n")
    return root


def test_a_rehearsal_is_not_collected(rehearsed: Path, tmp_path: Path) -> None:
    root = repository(tmp_path)
    with pytest.raises(ValueError, match="holds a rehearsal on the CPU"):
        collect(rehearsed, root)
    with pytest.raises(ValueError, match=r"has no summary\.json"):
        collect(tmp_path, root)
    assert not (root / "benchmarks").exists()


def test_results_become_files_and_tables(rehearsed: Path, tmp_path: Path) -> None:
    results, root = tmp_path / "results", repository(tmp_path)
    shutil.copytree(rehearsed, results)
    summary = json.loads((results / "summary.json").read_text())
    summary["provenance"] = GPU | {"kernels": KERNELS, "clocks.max.sm": "1980 MHz"}
    summary["absent"] = ["a thing is not installed: so"]
    (results / "summary.json").write_text(json.dumps(summary))
    failure = "def test_x():\n>   assert f(1) == 2\nE   assert 3 == 2\n\n/home/me/tests/test_x.py:3"
    wrong = {"test": "tests/test_x.py::test_x", "outcome": "failed", "seconds": 1, "text": failure}
    lines.append(results / "tests.jsonl", wrong)
    call = {"n": 99, "operator": "topk_mask", "name": "3 of 5", "ok": False}
    lines.append(results / "smoke.jsonl", call | {"error": "RuntimeError: CUDA error\nmore"})
    lines.append(results / "suites.jsonl", {"suite": "topk", "name": "1e+09", "error": "E: no\nx"})
    old = root / "benchmarks" / "results" / "gpu" / "step.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text("{}\n")

    brought = collect(results, root)
    assert brought == ["summary.json", "smoke.jsonl", "tests.jsonl", "suites.jsonl"]
    assert sorted(path.name for path in old.parent.iterdir()) == sorted(brought)
    kept = lines.read(old.parent / "tests.jsonl")
    assert kept[-1] == wrong | {"text": "assert 3 == 2"}
    page = (root / "docs" / "performance.md").read_text()
    assert page.startswith("# Head\n<!-- gpu checks: begin -->\n| stage |")
    assert page.endswith("<!-- gpu: end -->\ntail\n")
    assert "old" not in page
    assert "- topk_mask, 3 of 5: RuntimeError: CUDA error\n" in page
    assert "- `tests/test_x.py::test_x`: assert 3 == 2\n" in page
    assert "- a thing is not installed: so\n" in page
    assert "| gate update [1e+04] | adapruner | " in page
    assert "| topk [1e+09] | failed: E: no | | | |" in page
    assert page.count("GPU X, driver 580.1, SM clock at most 1980 MHz") == 2
    assert "kernels of CUDA 13.0.48 for 9.0, torch 2.11.0" in page


def test_the_docs_say_where_nothing_was_measured() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    measured = (ROOT / "benchmarks" / "results" / "gpu" / "summary.json").exists()
    assert page.count(NOTHING) == (0 if measured else 2)


@pytest.mark.parametrize(
    ("status", "output", "verdict", "text"),
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", "passed", "ERROR SUMMARY: 0 errors"),
        (99, "x\n========= ERROR SUMMARY: 3 errors", "failed", "ERROR SUMMARY: 3 errors"),
        (
            99,
            "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n",
            "failed",
            "RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)",
        ),
        (
            1,
            "ValueError: x\n========= ERROR SUMMARY: 0 errors\n",
            "failed",
            "status 1: ValueError: x",
        ),
        (1, "========= Error: Device not supported. See it\n", "skipped", "Device not supported"),
        (255, "", "failed", "ended with status 255: no output"),
        (-11, "one\ntwo\n\n", "failed", "ended with status -11: two"),
    ],
)
def test_verdicts_of_sanitizers(status: int, output: str, verdict: str, text: str) -> None:
    found = sanitizers.judge(status, output)
    assert found.verdict == verdict
    assert text in found.text


SANITIZER = """#!/bin/sh
case "$*" in
  --help) echo "  OPTION arg   which kernels" ;;
  *memcheck*) echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $*"; sleep 1000 ;;
  *initcheck*) echo "= ERROR SUMMARY: 2 errors"; exit 99 ;;
  *racecheck*) echo "= Device not supported" ;;
  *) echo "= ERROR SUMMARY: 0 errors" ;;
esac
"""


def sanitizer(folder: Path, option: str) -> str:
    """A program that answers as compute-sanitizer does."""
    program = folder / "compute-sanitizer"
    program.write_text(SANITIZER.replace("OPTION", option))
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("option", ["--kernel-regex", "--kernel-name", "--filter", "--other"])
def test_only_kernels_of_adapruner_are_watched(option: str, tmp_path: Path) -> None:
    found = sanitizers.kernel_filter(sanitizer(tmp_path, option))
    assert found == ([] if option == "--other" else [option, "kns=adapruner"])


def test_the_stage_of_sanitizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sanitizer(tmp_path, "--kernel-regex")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    check = Check("cpu", tmp_path)
    report = stages.sanitize(check, 40, tmp_path / "sanitizers.txt")
    assert report.verdict == "failed"
    said = [part.split(": ")[0] for part in report.text.split("; ")]
    assert said == [
        "memcheck out of time",
        "initcheck failed",
        "racecheck skipped",
        "synccheck passed",
    ]
    text = (tmp_path / "sanitizers.txt").read_text()
    assert "1 --tool memcheck --error-exitcode 99" in text
    assert "--kernel-regex kns=adapruner" in text
    assert check.absent == []


def outcome(test: str, outcome: str, text: str = "") -> dict[str, Any]:
    return {"test": test, "outcome": outcome, "seconds": 0.0, "text": text}


@pytest.mark.parametrize(
    ("status", "found", "verdict", "text"),
    [
        (0, [outcome("a", "passed"), outcome("b", "skipped")], "passed", "1 passed, 1 skipped"),
        (1, [outcome("a", "failed"), outcome("b", "passed")], "failed", "1 failed, 1 passed"),
        (1, [outcome("a", "passed"), outcome("b", "not collected", "E   ModuleNotFoundError: no")],
         "passed", "1 not collected, 1 passed"),
        (1, [outcome("a", "not collected", "E   SyntaxError: no")], "failed", "1 not collected"),
        (None, [outcome("a", "passed")], "out of time", "1 passed; ended after 9 s"),
        (None, [outcome("a", "failed")], "failed", "1 failed; ended after 9 s"),
        (-11, [outcome("a", "passed")], "failed", "1 passed; the last line"),
        (4, [], "failed", "no tests; the last line"),
    ],
)  # fmt: skip
def test_verdicts_of_tests(
    status: int | None, found: list[dict[str, Any]], verdict: str, text: str, tmp_path: Path
) -> None:
    check = Check("cpu", tmp_path)
    report = stages.tests_report(check, Ended(status, 9.0, "output\nthe last line\n"), found)
    assert report == (verdict, text)
    missing = [line["test"] for line in found if line["outcome"] == "not collected"]
    assert [line.split()[0] for line in check.absent] == missing
