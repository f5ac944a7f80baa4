"""Kills runs at random moments. A resumed run must end with the bits of one never stopped.

A parent imports everything once, and forks a child for each life of a run. Most kills are at a
random call that changes the run's folder, so that they fall into the writes of checkpoints,
results, reports and exports; the others are at a random time. Some hit a worker instead.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture import faults
from torture.command import Findings, main
from torture.runs import KINDS, Kind, check_data, live, make_data, outcome, warm_up

REPORT = "report.html"
REPORTS = 0.2  # share of the runs with a report, which takes longer than the rest
LONGEST = 120  # seconds of a life before it counts as one that hangs


class Life:
    """A child process that lives a run in ``folder``."""

    def __init__(self, work: Callable[[], None], errors: Path) -> None:
        self._errors = errors
        self._began = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            _child(work, errors)

    def end(self) -> int:
        """Wait for the end. Returns the exit code, below 0 for a signal.

        Raises:
            TimeoutError: the life takes too long. It is killed.
        """
        while time.monotonic() - self._began < LONGEST:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.kill()
        os.waitpid(self.process, 0)
        raise TimeoutError

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)

    def kill_worker(self, random: random.Random) -> bool:
        """Kill one of the child's own children, if it has any."""
        try:
            listed = Path(f"/proc/{self.process}/task/{self.process}/children").read_text()
            workers = [int(number) for number in listed.split()]
            if workers:
                os.kill(random.choice(workers), signal.SIGKILL)
            return bool(workers)
        except (FileNotFoundError, ProcessLookupError):
            return False

    def error(self) -> str:
        return self._errors.read_text()[-2000:] if self._errors.exists() else ""


def _child(work: Callable[[], None], errors: Path) -> None:
    code = 1
    try:
        with open(errors, "w") as file:
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Scenario:
    """Lives of one kind of run in one folder, all but the last of which are killed.

    Args:
        kind: the kind of run.
        data: the folder of the data.
        expected: what a life that was never killed leaves.
        seconds: how long such a life takes.
        calls: how many calls it makes that change the folder.
    """

    def __init__(self, kind: Kind, data: Path, arena: Path, random: random.Random) -> None:
        self.kind, self.data, self._random = kind, data, random
        self._arena = arena
        self.kills = self.worker_kills = 0
        self.expected: dict[str, Any] = {}
        self._measure()

    def _measure(self) -> None:
        """Live once undisturbed."""
        folder, told = self._folder(), self._arena / "calls"

        def work() -> None:
            faults.arm(folder, -1, faults.KILL)
            live(self.kind, self.data, folder, report=True)
            told.write_text(str(faults.disarm()))

        began = time.monotonic()
        life = Life(work, self._arena / "errors")
        if life.end() != 0:
            raise RuntimeError(f"a run that nobody killed has failed: {life.error()}")
        self.seconds, self.calls = time.monotonic() - began, int(told.read_text())
        self.expected = outcome(folder)

    def _folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._arena))
        (folder / "checkpoint").mkdir()
        return folder

    def play(self, deaths: int) -> str | None:
        """Die ``deaths`` times, then live to the end. Returns what is wrong, or None."""
        folder = self._folder()
        report = self._random.random() < REPORTS
        for _ in range(deaths):
            life = Life(self._doomed(folder, report), self._arena / "errors")
            code = self._end(life)
            if code == 1 and "RuntimeError: DataLoader worker" not in life.error():
                return f"a resumed run has failed: {life.error()}"
            self.kills += code == -signal.SIGKILL
        life = Life(lambda: live(self.kind, self.data, folder, report), self._arena / "errors")
        code = life.end()
        if code != 0:
            return f"the last life has failed with {code}: {life.error()}"
        found = outcome(folder)
        names = sorted((found.keys() ^ self.expected.keys()) - (set() if report else {REPORT}))
        if names:
            return f"stray or missing files: {names}"
        differing = [name for name in found if found[name] != self.expected[name]]
        return f"other bits in {differing}" if differing else None

    def _doomed(self, folder: Path, report: bool) -> Callable[[], None]:
        """A life. Most die at a call that changes the folder; with workers, many lose a worker."""
        by_call = 0.33 if "workers" in self.kind.name else 0.67
        number = self._random.randrange(self.calls) if self._random.random() < by_call else -1

        def work() -> None:
            faults.arm(folder, number, faults.KILL)
            live(self.kind, self.data, folder, report)

        self._by_time = number < 0
        return work

    def _end(self, life: Life) -> int:
        if self._by_time:
            time.sleep(self._random.uniform(0, self.seconds))
            if "workers" in self.kind.name and self._random.random() < 0.7:
                self.worker_kills += life.kill_worker(self._random)
            else:
                life.kill()
        return life.end()


def run(seconds: float, seed: int, findings: Findings) -> dict[str, Any]:
    """Play scenarios of every kind in turns for ``seconds``, each kind at least once."""
    warm_up()
    dice = random.Random(seed)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        arena = Path(os.path.realpath(name))
        make_data(arena)
        before = check_data(arena)
        scenarios = [Scenario(kind, arena, arena, dice) for kind in KINDS.values()]
        played = 0
        while played < len(scenarios) or time.monotonic() < end:
            scenario = scenarios[played % len(scenarios)]
            try:
                wrong = scenario.play(dice.randint(2, 8))
            except TimeoutError:
                wrong = f"a life hangs for {LONGEST} s"
            if wrong:
                findings.note(f"kill, {scenario.kind.name}", wrong)
            played += 1
        if check_data(arena) != before:
            findings.note("kill", "the data were changed")
        return {
            "runs": played,
            "kills": sum(scenario.kills for scenario in scenarios),
            "kills of workers": sum(scenario.worker_kills for scenario in scenarios),
            "kills by kind": {scenario.kind.name: scenario.kills for scenario in scenarios},
        }


if __name__ == "__main__":
    faults.with_faults()
    main(run)
