"""The short form of the campaign: each kind once, as ``make torture`` runs it for longer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvidia.dali", reason="the campaign runs both loaders")
for module in ("PIL.Image", "torchvision", "matplotlib", "jinja2", "pyarrow"):
    pytest.importorskip(module)

ROOT = Path(__file__).resolve().parents[2]


def figures_of(kind: str) -> dict[str, Any]:
    """The figures of a kind that was run for the shortest time. It must find nothing."""
    command = [sys.executable, "-m", f"torture.{kind}", "--seconds", "0", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["findings"] == []
    figures: dict[str, Any] = told["figures"]
    return figures


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@needs_compiler
def test_killed_runs_end_with_the_bits_of_one_that_was_never_stopped() -> None:
    figures = figures_of("kill")
    # Where a kill falls is a matter of time, and a life can end before it.
    assert figures["runs"] == len(figures["kills by kind"]) == 7
    assert figures["kills"] >= 1


@needs_compiler
def test_a_run_that_loses_a_rank_ends_on_all_and_goes_on_to_the_same_bits() -> None:
    figures = figures_of("ranks")
    assert figures["runs"] == len(figures["kills by kind"]) == 4
    assert figures["kills"] >= 1


@needs_compiler
def test_a_write_that_fails_loses_nothing() -> None:
    assert figures_of("disk")["faults"] >= 60


def test_damaged_files_give_a_clear_error_or_the_right_value() -> None:
    figures = figures_of("fuzz")
    assert figures["inputs"] >= 1000
    # The mutations are neither all harmless nor all fatal.
    for parser in ("result", "index", "tar", "npy", "checkpoint"):
        assert 0 < figures["inputs that were taken"][parser] < figures["inputs by parser"][parser]


def test_both_loaders_read_the_same_damaged_images() -> None:
    assert figures_of("pictures")["images"] == 64


def test_operators_give_the_same_bits_for_all_layouts_and_threads() -> None:
    outcomes = figures_of("native")["outcomes"]
    assert outcomes["equal"] > 50
    assert outcomes["refused"] > 5


def test_a_parser_that_fails_unclearly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from torture import fuzz

    def unclear(dice: Any, files: Any) -> None:
        raise KeyError("x")

    def silent(dice: Any, files: Any) -> None:
        raise ValueError(" ")

    def clear(dice: Any, files: Any) -> None:
        raise ValueError("the file is cut off")

    told = {}
    for parser in (unclear, silent, clear):
        monkeypatch.setitem(fuzz.PARSERS, parser.__name__, (parser, 0.1))
        told[parser.__name__] = fuzz.attempt(parser.__name__, 0, None)
    assert "KeyError: 'x'" in told["unclear"][1]
    assert "ValueError" in told["silent"][1]
    assert told["clear"] == (False, "")
