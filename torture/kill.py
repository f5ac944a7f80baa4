"""Kills runs at random moments. A resumed run must end with the bits of one never stopped.

A parent imports everything once, and forks a child for each life of a run. Most kills are at a
random call that changes the run's folder, so that they fall into the writes of checkpoints,
results, reports and exports; the others are at a random time. Some hit a worker instead. Of a run
on several ranks, one rank is killed, and the others must end by themselves.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Container
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import distributed

from torture import faults
from torture.command import Findings, main
from torture.runs import KINDS, Kind, check_data, live, make_data, outcome, warm_up

REPORT = "report.html"
REPORTS = 0.2  # share of the runs with a report, which takes longer than the rest
# An error of a rank tells that another rank has ended.
OF_ANOTHER_RANK = ("adapruner.errors.RankError", "another rank cannot be reached", "gloo")
LONGEST = 600  # seconds of a life, on a busy machine, before it counts as one that hangs


class Life:
    """The child processes that live a run: the ranks, or one process.

    It has begun when all ranks are in one process group.

    Args:
        work: what a rank does, given its number.
        arena: a folder for the files of this life.
        ranks: number of ranks.
    """

    def __init__(self, work: Callable[[int], None], arena: Path, ranks: int = 1) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=arena))
        self._began = time.monotonic()
        begun, begins = os.pipe()
        self.processes = []
        for rank in range(ranks):
            process = os.fork()
            if process == 0:
                _child(work, self._folder, rank, ranks, begins)
            self.processes.append(process)
        os.close(begins)
        with open(begun, "rb") as pipe:
            pipe.read(ranks)

    def end(self) -> list[int]:
        """Wait for the end. Returns the exit code of each rank, below 0 for a signal.

        Raises:
            TimeoutError: the life takes too long. It is killed.
        """
        codes: dict[int, int] = {}
        killed = time.monotonic()
        while len(codes) < len(self.processes):
            if time.monotonic() - self._began > LONGEST:
                self._clear(codes)
                raise TimeoutError
            if -signal.SIGKILL not in codes.values():
                killed = time.monotonic()
            for process in self.processes:
                if process not in codes and (found := os.waitpid(process, os.WNOHANG))[0]:
                    codes[process] = os.waitstatus_to_exitcode(found[1])
            time.sleep(0.002)
        self.seconds_of_others = time.monotonic() - killed
        return [codes[process] for process in self.processes]

    def _clear(self, ended: Container[int]) -> None:
        for process in self.processes:
            if process not in ended:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)

    def kill(self, random: random.Random) -> None:
        """Kill one of the ranks."""
        os.kill(random.choice(self.processes), signal.SIGKILL)

    def kill_worker(self, random: random.Random) -> bool:
        """Kill one of the children of the first rank, if it has any."""
        first = self.processes[0]
        try:
            listed = Path(f"/proc/{first}/task/{first}/children").read_text()
            workers = [int(number) for number in listed.split()]
            if workers:
                os.kill(random.choice(workers), signal.SIGKILL)
            return bool(workers)
        except (FileNotFoundError, ProcessLookupError):
            return False

    def errors(self) -> list[str]:
        """The end of what each rank wrote to standard error."""
        return [path.read_text()[-2000:] for path in sorted(self._folder.glob("errors *"))]


def _child(
    work: Callable[[int], None], folder: Path, rank: int, ranks: int, begins: int
) -> NoReturn:
    code = 1
    try:
        with open(folder / f"errors {rank}", "w") as file:
            os.dup2(file.fileno(), 2)
        if ranks > 1:
            store = distributed.FileStore(str(folder / "store"), ranks)
            distributed.init_process_group(
                "gloo",
                store=store,
                rank=rank,
                world_size=ranks,
                timeout=timedelta(seconds=2 * LONGEST),
            )
        os.write(begins, b".")
        os.close(begins)
        work(rank)
        code = 0
    except BaseException as error:
        # The end of another worker would raise an error in the middle of the report.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        traceback.print_exception(error)
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
        self.slowest = 0.0
        self.expected: dict[str, Any] = {}
        self._measure()

    def _measure(self) -> None:
        """Live once undisturbed."""
        folder, told = self._folder(), self._arena / "calls"

        def work(rank: int) -> None:
            faults.arm(folder, -1, faults.KILL)
            live(self.kind, self.data, folder, report=True)
            if rank == 0:
                told.write_text(str(faults.disarm()))

        life = self._begin(work)
        began = time.monotonic()
        if any(life.end()):
            raise RuntimeError(f"a run that nobody killed has failed: {life.errors()}")
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
            life = self._begin(self._doomed(folder, report))
            if wrong := _wrong_end(codes := self._end(life), life.errors()):
                return wrong
            self.kills += -signal.SIGKILL in codes
            self.slowest = max(self.slowest, life.seconds_of_others)
        life = self._begin(lambda rank: live(self.kind, self.data, folder, report))
        if any(codes := life.end()):
            return f"the last life has failed with {codes}: {life.errors()}"
        found = outcome(folder)
        names = sorted((found.keys() ^ self.expected.keys()) - (set() if report else {REPORT}))
        if names:
            return f"stray or missing files: {names}"
        differing = [name for name in found if found[name] != self.expected[name]]
        return f"other bits in {differing}" if differing else None

    def _begin(self, work: Callable[[int], None]) -> Life:
        return Life(work, self._arena, self.kind.ranks)

    def _doomed(self, folder: Path, report: bool) -> Callable[[int], None]:
        """A life. Most die at a call that changes the folder; with workers, many lose a worker."""
        by_call = 0.33 if "workers" in self.kind.name else 0.67
        number = self._random.randrange(self.calls) if self._random.random() < by_call else -1

        def work(rank: int) -> None:
            faults.arm(folder, number if rank == 0 else -1, faults.KILL)
            live(self.kind, self.data, folder, report)

        self._by_time = number < 0
        return work

    def _end(self, life: Life) -> list[int]:
        if self._by_time:
            time.sleep(self._random.uniform(0, self.seconds))
            if "workers" in self.kind.name and self._random.random() < 0.7:
                self.worker_kills += life.kill_worker(self._random)
            else:
                life.kill(self._random)
        return life.end()


def _wrong_end(codes: list[int], errors: list[str]) -> str | None:
    """What is wrong with the end of a life of which one process was to be killed, or None."""
    for code, error in zip(codes, errors, strict=True):
        of_another = -signal.SIGKILL in codes and any(text in error for text in OF_ANOTHER_RANK)
        expected = of_another or "RuntimeError: DataLoader worker" in error
        if code not in (0, -signal.SIGKILL) and not (code == 1 and expected):
            return f"a resumed run has failed with {codes}: {error}"
    return None


def run(kinds: Collection[Kind], seconds: float, seed: int, findings: Findings) -> dict[str, Any]:
    """Play scenarios of every kind in turns for ``seconds``, each kind at least once.

    Where ``seconds`` is 0, a run of each kind dies once.
    """
    warm_up()
    dice = random.Random(seed)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        arena = Path(os.path.realpath(name))
        make_data(arena)
        before = check_data(arena)
        scenarios = [Scenario(kind, arena, arena, dice) for kind in kinds]
        played = 0
        while played < len(scenarios) or time.monotonic() < end:
            scenario = scenarios[played % len(scenarios)]
            try:
                wrong = scenario.play(dice.randint(2, 8) if seconds else 1)
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
            "slowest end of other ranks, s": round(
                max(scenario.slowest for scenario in scenarios), 1
            ),
            "kills by kind": {scenario.kind.name: scenario.kills for scenario in scenarios},
        }


if __name__ == "__main__":
    faults.with_faults()
    main(partial(run, KINDS.values()))
