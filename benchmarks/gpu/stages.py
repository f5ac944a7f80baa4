"""The stages of gpu-check: what each runs, and what its results say.

A stage is given a :class:`Check` and the seconds that it may take. Its results are files, written
line by line, so they stand however the stage ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from . import lines, sanitizers
from .runner import ROOT, Ended, run

# Modules that a stage measures, in this order, and the share of its time that each may take.
SUITES = {"masked_cross_entropy": 3, "topk": 2, "gate_update": 1}
STEPS = {"step": 1, "fast_prune": 2}
LEAST = 5.0  # seconds below which nothing is started
WORKERS = 8  # of pytest: each holds a CUDA context


class Report(NamedTuple):
    """How a stage ended.

    Attributes:
        verdict: "passed", "failed", "skipped", "out of time" or "interrupted".
        text: counts, or the reason.
    """

    verdict: str
    text: str


@dataclass
class Check:
    """One check of a machine.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal with tiny sizes.
        results: the folder of the results.
        only: words; operators, test files and suites whose names contain one take part. All do
            where there are none.
        absent: what is missing here, and what that means; a line each.
    """

    device: str
    results: Path
    only: tuple[str, ...] = ()
    absent: list[str] = field(default_factory=list)

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    def chosen(self, names: Sequence[str]) -> list[str]:
        return [n for n in names if not self.only or any(word in n for word in self.only)]

    def run(self, command: Sequence[str], seconds: float, **variables: str) -> Ended:
        return run(command, seconds, self.results / "log.txt", variables)

    def module(self, name: str, *arguments: object, seconds: float) -> Ended:
        """Run a module of this repository with the Python of this process."""
        return self.run([sys.executable, "-m", name, *map(str, arguments)], seconds)


class Stage(NamedTuple):
    """One stage.

    Attributes:
        name: its name in ``STAGES``.
        share: of the time left, in proportion to the shares of the stages still to come.
        file: the file of its results.
        perform: runs it.
    """

    name: str
    share: float
    file: str
    perform: Callable[[Check, float, Path], Report]


def missing(*modules: str) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def ended(how: Ended, failures: int, text: str) -> Report:
    """The report of a stage of one command; text says what was found, failures how much failed."""
    if how.status is None:
        text = f"{text}; ended after {how.seconds:.0f} s"
        return Report("failed" if failures else "out of time", text)
    if failures or how.status != 0:
        last = how.output.strip().splitlines()[-1:] if not failures else []
        return Report("failed", "; ".join([text, *last]))
    return Report("passed", text)


def smoke(check: Check, seconds: float, file: Path) -> Report:
    if missing("pytest"):
        check.absent.append("pytest is not installed: smoke leaves the samples of the tests out")
    how = check.module("benchmarks.gpu.smoke", check.device, file, *check.only, seconds=seconds)
    made = lines.read(file)
    counts = Counter(line["ok"] for line in made)
    text = f"{counts[True]} calls agree with the CPU, {counts[False]} failed"
    if counts[None]:
        text += f", {counts[None]} too large for this machine"
    if not made and how.status == 0:
        return Report("skipped", f"no operator is named like {' or '.join(check.only)}")
    return ended(how, counts[False], text)


def tests(check: Check, seconds: float, file: Path) -> Report:
    if missing("pytest"):
        return Report("skipped", "pytest is not installed")
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").glob("test_*.py"))
    if not (chosen := check.chosen([str(path) for path in files])):
        return Report("skipped", f"no test file is named like {' or '.join(check.only)}")
    plugin = ["-p", "benchmarks.gpu.log_tests", "--line-file", file, "--test-device", check.device]
    which = ["-m", "cuda" if check.device == "cuda" else "not cuda"]
    options = [*plugin, *which, "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if missing("xdist"):
        check.absent.append(
            "pytest-xdist is not installed: tests run one after another, and end with the first "
            "that ends the process"
        )
    else:
        workers = min(WORKERS, os.cpu_count() or 1)
        options += ["-n", workers, "--max-worker-restart", 100]
    how = check.module("pytest", *options, *chosen, seconds=seconds)
    return tests_report(check, how, lines.read(file))


def tests_report(check: Check, how: Ended, found: Sequence[dict[str, Any]]) -> Report:
    """What became of the tests. Files that lack a package are named, and are no failures."""
    counts = Counter(line["outcome"] for line in found)
    broken = 0
    for line in found:
        if line["outcome"] == "not collected":
            why = lines.reason(line["text"])
            broken += not why.startswith("ModuleNotFoundError")
            check.absent.append(f"{line['test']} was not collected: {why}")
    text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    # pytest's statuses: 1 where tests failed or files were not collected, 5 where none was chosen.
    if how.status in (1, 5) and not broken and counts["failed"] == 0:
        how = how._replace(status=0)
    return ended(how, counts["failed"] + broken, text or "no tests")


def measured(check: Check, seconds: float, file: Path, shares: Mapping[str, int]) -> Report:
    """Run suites one after another, each within its share of what is left."""
    if not (chosen := check.chosen(list(shares))):
        return Report("skipped", f"no suite is named like {' or '.join(check.only)}")
    end = time.monotonic() + seconds
    late: list[str] = []
    broken: list[str] = []
    for place, name in enumerate(chosen):
        share = shares[name] / sum(shares[each] for each in chosen[place:])
        part = (end - time.monotonic()) * share
        if part < LEAST:
            late.append(name)
            continue
        options = ["--device", check.device, "--seconds", part, "--results", file]
        options += ["--tiny"] if check.tiny else []
        how = check.module("benchmarks.gpu.suite", name, *options, seconds=part)
        left_out = [text for text in how.output.splitlines() if text.startswith("left out: ")]
        check.absent.extend(f"{name}: {text.removeprefix('left out: ')}" for text in left_out)
        if how.status is None:
            late.append(name)
        elif how.status != 0:
            broken.append(name)
    return rows_report(lines.read(file), broken, late)


def rows_report(
    rows: Sequence[dict[str, Any]], broken: Sequence[str], late: Sequence[str]
) -> Report:
    errors = [line for line in rows if "error" in line]
    text = f"{len(rows) - len(errors)} rows"
    if errors:
        text += f", {len(errors)} failed"
    broken = sorted(set(broken) - {line["suite"] for line in errors})
    text += f"; {', '.join(broken)} ended early" if broken else ""
    text += f"; no time for all of {', '.join(late)}" if late else ""
    if errors or broken:
        return Report("failed", text)
    return Report("out of time" if late else "passed", text)


def suites(check: Check, seconds: float, file: Path) -> Report:
    return measured(check, seconds, file, SUITES)


def step(check: Check, seconds: float, file: Path) -> Report:
    if len(missing("torchvision", "timm")) == 2:
        return Report("skipped", "neither torchvision nor timm is installed")
    return measured(check, seconds, file, STEPS)


def sanitize(check: Check, seconds: float, file: Path) -> Report:
    sanitizer = sanitizers.find_sanitizer()
    if sanitizer is None:
        return Report("skipped", "compute-sanitizer was not found")
    if not (chosen := sanitizers.kernel_filter(sanitizer)):
        check.absent.append("compute-sanitizer cannot choose kernels here: it watches torch's too")
    program = [sys.executable, "-m", "benchmarks.gpu.every_operator", check.device]
    end = time.monotonic() + seconds
    found: dict[str, sanitizers.Verdict] = {}
    for place, (tool, variables) in enumerate(sanitizers.TOOLS.items()):
        part = (end - time.monotonic()) / (len(sanitizers.TOOLS) - place)
        if part < LEAST:
            found[tool] = sanitizers.Verdict("out of time", "not started")
            continue
        how = check.run(sanitizers.command(sanitizer, chosen, tool, program), part, **variables)
        with file.open("a") as opened:
            opened.write(f"=== {tool}\n{how.output}\n")
        if how.status is None:
            found[tool] = sanitizers.Verdict("out of time", f"ended after {how.seconds:.0f} s")
        else:
            found[tool] = sanitizers.judge(how.status, how.output)
    verdicts = {verdict.verdict for verdict in found.values()}
    worst = next(v for v in ("failed", "out of time", "passed", "skipped") if v in verdicts)
    text = "; ".join(f"{tool} {verdict}: {text}" for tool, (verdict, text) in found.items())
    return Report(worst, text)


def quality(check: Check, seconds: float, file: Path) -> Report:
    module = "benchmarks.quality.gpu"
    if missing(module):
        return Report("skipped", f"{module} is not there")
    options = ["--seconds", int(0.95 * seconds), "--results", file]  # the rest is for imports
    options += ["--device", check.device, "--tiny"] if check.tiny else []
    how = check.module(module, *options, seconds=seconds)
    return ended(how, 0, f"{len(lines.read(file))} rows")


STAGES = (
    Stage("smoke", 2, "smoke.jsonl", smoke),
    Stage("tests", 4, "tests.jsonl", tests),
    Stage("suites", 5, "suites.jsonl", suites),
    Stage("step", 3, "step.jsonl", step),
    Stage("sanitizers", 2, "sanitizers.txt", sanitize),
    Stage("quality", 4, "quality.jsonl", quality),
)


def describe_device(check: Check, seconds: float = 120.0) -> dict[str, Any]:
    """What :mod:`benchmarks.gpu.device` finds, in a process of its own: none here holds the GPU."""
    how = check.module("benchmarks.gpu.device", check.device, seconds=seconds)
    if how.status != 0:
        last = how.output.strip().splitlines()[-1:] or ["no output"]
        return {"unusable": f"looking for it ended with status {how.status}: {last[0]}"}
    return json.loads(how.output.strip().splitlines()[-1])
