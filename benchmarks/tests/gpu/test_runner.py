"""Stages of gpu-check are bounded: a command ends with all its processes, and its results stand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import lines
from benchmarks.gpu.check import Summary, perform, stages_of
from benchmarks.gpu.runner import ROOT, run
from benchmarks.gpu.stages import STAGES, Check, Report, Stage, ended

# A shell whose child, which ignores SIGTERM, outlives it; the child's number comes first.
LEAVES_A_CHILD = "trap '' TERM; sleep 1000 & echo $!; echo found something"


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def check_of(tmp_path: Path) -> Check:
    return Check("cpu", tmp_path)


@pytest.mark.parametrize("ends", [False, True])
def test_a_command_leaves_no_process_behind(ends: bool, tmp_path: Path) -> None:
    program = LEAVES_A_CHILD + ("" if ends else "; wait")
    how = run(["sh", "-c", program], 1000 if ends else 2, tmp_path / "log")
    child, *rest = how.output.splitlines()
    assert how.status == (0 if ends else None)
    assert rest == ["found something"]
    assert not is_running(int(child))


def test_an_interrupted_run_ends_its_command(tmp_path: Path) -> None:
    program = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 1000"
    code = (
        "from pathlib import Path; from benchmarks.gpu.runner import run;"
        f"run(['sh', '-c', {program!r}], 1000, Path({str(tmp_path / 'log')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert not is_running(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(("program", "status"), [("exit 3", 3), ("kill -9 $$", -9), ("true", 0)])
def test_status_and_log(program: str, status: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    how = run(["sh", "-c", f"echo $WORD; {program}"], 1000, log, {"WORD": "a word"})
    assert (how.status, how.output) == (status, "a word\n")
    assert log.read_text().startswith("before\n")
    assert log.read_text().endswith("a word\n")


def test_what_a_stage_found_before_its_time_ran_out_stands(tmp_path: Path) -> None:
    check = check_of(tmp_path)
    child = tmp_path / "child"

    def slow(check: Check, seconds: float, file: Path) -> Report:
        program = f"echo '{{\"n\": 1}}' > {file}; printf '{{\"n\"' >> {file}; "
        program += f"sleep 1000 & echo $! > {child}; wait"
        how = check.run(["sh", "-c", program], 2)
        return ended(how, 0, f"{len(lines.read(file))} line")

    def quick(check: Check, seconds: float, file: Path) -> Report:
        return Report("passed", "")

    stages = [Stage("slow", 1, "slow.jsonl", slow), Stage("quick", 1, "quick.jsonl", quick)]
    assert perform(check, Summary(check, {}), stages, time.monotonic() + 1000)
    found = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [found[name]["verdict"] for name in ("slow", "quick")] == ["out of time", "passed"]
    assert found["slow"]["text"].startswith("1 line; ended after ")
    assert lines.read(tmp_path / "slow.jsonl") == [{"n": 1}]
    assert not is_running(int(child.read_text()))


def test_a_fault_or_an_interruption_of_a_stage_is_in_the_summary(tmp_path: Path) -> None:
    check = check_of(tmp_path)
    errors = {"faulty": ValueError("no such thing"), "stopped": KeyboardInterrupt()}

    def stage(name: str) -> Stage:
        def raises(check: Check, seconds: float, file: Path) -> Report:
            raise errors[name]

        return Stage(name, 1, f"{name}.jsonl", raises)

    with pytest.raises(KeyboardInterrupt):
        perform(check, Summary(check, {}), [stage(n) for n in errors], time.monotonic() + 1000)
    found = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert found["faulty"]["verdict"] == "failed"
    assert found["faulty"]["text"] == "gpu-check itself: ValueError: no such thing"
    assert found["stopped"]["verdict"] == "interrupted"


def test_stages_share_the_time_that_is_left(tmp_path: Path) -> None:
    check = check_of(tmp_path)
    given: list[float] = []

    def note(check: Check, seconds: float, file: Path) -> Report:
        given.append(seconds)
        return Report("failed" if len(given) == 2 else "passed", "")

    stages = [Stage(str(share), share, f"{share}.jsonl", note) for share in (1, 2, 5)]
    assert not perform(check, Summary(check, {}), stages, time.monotonic() + 8000)
    # None takes any time, so that each later one has its share of all.
    assert given == pytest.approx([1000, 8000 * 2 / 7, 8000], rel=0.01)
    given.clear()
    assert perform(check, Summary(check, {}), stages, time.monotonic() + 1)
    assert not given
    found = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert {stage["text"] for stage in found.values()} == {"no time left"}


def test_results_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    check = check_of(tmp_path)
    about = {"device": "A", "torch": "2", "commit": "abc"}
    Summary(check, about).add("smoke", Report("passed", "209 calls"), 1.0)
    again = Summary(check, about | {"date": "later"})
    again.add("tests", Report("passed", ""), 1.0)
    assert list(json.loads((tmp_path / "summary.json").read_text())["stages"]) == ["smoke", "tests"]
    with pytest.raises(SystemExit, match="another commit; name another folder"):
        Summary(check, about | {"commit": "abd"})


def test_names_of_stages() -> None:
    assert [stage.name for stage in stages_of("step,smoke")] == ["smoke", "step"]
    assert stages_of("") == list(STAGES)
    with pytest.raises(Exception, match="no stage is named test; expected some of smoke, tests"):
        stages_of("smoke,test")
    # summary.json and log.txt beside them: at most eight files.
    assert len({stage.file for stage in STAGES}) == len(STAGES) == 6


def test_the_commit_where_there_is_no_repository(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "provenance.py").write_text((ROOT / "benchmarks" / "provenance.py").read_text())
    code = "import provenance; print(provenance.commit())"

    def commit(**variables: str) -> str:
        paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "PATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | paths | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert commit(ADAPRUNER_COMMIT="1234abc") == "1234abc"
    (tmp_path / ".git").mkdir()  # a repository, and no git to ask
    assert commit(ADAPRUNER_COMMIT="1234abc") == "1234abc"
