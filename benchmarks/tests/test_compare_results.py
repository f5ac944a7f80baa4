"""The comparison of two runs of the benchmark suites: what got slower by more than the noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "compare_results.py"


def write(folder: Path, **rows: dict[str, tuple[float, float, float]]) -> Path:
    """A result file; rows: name to {rival: quartiles in seconds}."""
    timed = {
        name: {"threads": 2, "rivals": {rival: {"seconds": s, "n": 9} for rival, s in row.items()}}
        for name, row in rows.items()
    }
    folder.mkdir()
    (folder / "suite.json").write_text(json.dumps({"provenance": {}, "rows": timed}))
    return folder


def compare(before: Path, after: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(before), str(after)]
    return subprocess.run(command, capture_output=True, text=True)


BEFORE = {"ours": (0.98, 1.0, 1.02), "rival": (3.9, 4.0, 4.1)}


def test_a_slower_row_is_named(tmp_path: Path) -> None:
    before = write(tmp_path / "before", first=BEFORE, second=BEFORE)
    after = write(tmp_path / "after", first=BEFORE, second=BEFORE | {"ours": (1.38, 1.4, 1.42)})
    done = compare(before, after)
    assert done.returncode == 1
    assert "slower  × 1.40" in done.stdout
    assert "suite: second" in done.stdout
    assert "suite: first" not in done.stdout
    assert "1 of 2 rows slower" in done.stdout


def test_a_slower_machine_is_not(tmp_path: Path) -> None:
    before = write(tmp_path / "before", row=BEFORE)
    twice = {name: tuple(2 * s for s in seconds) for name, seconds in BEFORE.items()}
    done = compare(before, write(tmp_path / "after", row=twice))
    assert done.returncode == 0
    assert "0 of 1 rows slower" in done.stdout


def test_the_noise_of_a_row_excuses_it(tmp_path: Path) -> None:
    noisy = {"ours": (0.7, 1.0, 1.3), "rival": (4.0, 4.0, 4.0)}
    before = write(tmp_path / "before", row=noisy)
    after = write(tmp_path / "after", row=noisy | {"ours": (0.9, 1.2, 1.5)})
    assert compare(before, after).returncode == 0


def test_a_faster_row_is_named_and_is_no_failure(tmp_path: Path) -> None:
    before = write(tmp_path / "before", row=BEFORE)
    done = compare(before, write(tmp_path / "after", row=BEFORE | {"ours": (0.49, 0.5, 0.51)}))
    assert done.returncode == 0
    assert "faster  × 0.50" in done.stdout


@pytest.mark.parametrize("other", ["nothing", "no row in common"])
def test_what_cannot_be_compared_is_said(tmp_path: Path, other: str) -> None:
    before = write(tmp_path / "before", row=BEFORE)
    after = tmp_path / "after"
    after.mkdir() if other == "nothing" else write(after, another=BEFORE)
    done = compare(before, after)
    assert done.returncode == 1
    assert ("holds no results" if other == "nothing" else other) in done.stderr
