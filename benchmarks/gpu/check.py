"""Everything that needs a GPU, on a machine that has one, in the order of its worth.

    python -m benchmarks.gpu.check [--seconds N] [--stages a,b] ...            (make gpu-check)

Builds in place for the GPU that is there, then runs the stages: smoke, tests, suites, step,
sanitizers, quality. No network, git or virtual environment is needed. Each thing that is missing is
one line. All runs share ``--seconds``; a stage that runs out of its share is ended with all its
processes, and its results stand. ``--device cpu`` rehearses the same steps on the CPU.

Ends with status 1 if anything failed and 2 if the device cannot be used. A budget that is missed,
or a stage that ran out of time, is not a failure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from . import lines
from .runner import ROOT
from .stages import LEAST, STAGES, Check, Report, Stage, describe_device, missing

SECONDS = 1800.0
BUILD_SHARE = 0.6  # of all seconds, at most
NEEDED = ("torch", "numpy", "safetensors", "tqdm")  # by adapruner itself
# What a figure depends on: results of two runs are put together only where these agree.
SAME = ("device", "driver_version", "torch", "commit", "kernels")
OPTIONAL = {
    "hypothesis": "test files of random cases are not collected",
    "nvidia.dali": "tests of the DALI loader are skipped",
    "torchvision": "the steps take timm's ResNet-18",
}


def absences() -> list[str]:
    """What is not here, and what that means."""
    found = [f"{name} is not installed: {then}" for name, then in OPTIONAL.items() if lacks(name)]
    if shutil.which("git") is None:
        found.append("git was not found: the commit is that of ADAPRUNER_COMMIT")
    return found


def lacks(module: str) -> bool:
    try:
        return bool(missing(module))
    except ModuleNotFoundError:  # of a package that would hold it
        return True


def build(check: Check, capability: str | None, seconds: float) -> Report:
    """The native library in place; for the GPU that is there, or without kernels on the CPU."""
    kernels = {"ADAPRUNER_CUDA": "on", "TORCH_CUDA_ARCH_LIST": capability or ""}
    if check.device == "cpu":
        kernels = {"ADAPRUNER_CUDA": "off"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return told(check.run(command, seconds, **kernels))


def told(how: Any) -> Report:
    """The report of a command that either does all of its work or fails."""
    if how.status == 0:
        return Report("passed", "")
    last = (how.output.strip().splitlines() or ["no output"])[-1]
    why = "out of time" if how.status is None else f"status {how.status}"
    return Report("failed", f"{why}: {last}")


class Summary:
    """summary.json: the machine, how each stage ended, and what was missing.

    It is written anew after each stage. Results of an earlier run in the same folder stay, if it
    ran on the same machine and code.
    """

    def __init__(self, check: Check, about: dict[str, Any]) -> None:
        self.check = check
        self.file = check.results / "summary.json"
        self.about = about
        self.stages: dict[str, Any] = {}
        if self.file.exists():
            before = json.loads(self.file.read_text())
            if changed := [n for n in SAME if before["provenance"].get(n) != about.get(n)]:
                raise SystemExit(
                    f"gpu-check: {check.results} holds results of a run with another "
                    f"{', '.join(changed)}; name another folder in RESULTS"
                )
            self.stages = before["stages"]

    def add(self, name: str, report: Report, seconds: float) -> None:
        self.stages[name] = {**report._asdict(), "seconds": round(seconds, 1)}
        print(f"{name:<11} {report.verdict} ({seconds:.0f} s) {report.text}", flush=True)
        self.write()

    def write(self) -> None:
        absent = list(dict.fromkeys(self.check.absent))
        text = {"provenance": self.about, "stages": self.stages, "absent": absent}
        self.file.write_text(json.dumps(text, indent=1) + "\n")


def perform(check: Check, summary: Summary, chosen: list[Stage], end: float) -> bool:
    """Run the stages. Each may take its share of the time left; whether none failed."""
    good = True
    for place, stage in enumerate(chosen):
        left = end - time.monotonic()
        seconds = left * stage.share / sum(each.share for each in chosen[place:])
        file = check.results / stage.file
        file.unlink(missing_ok=True)
        start = time.monotonic()
        if seconds < LEAST:
            report = Report("skipped", "no time left")
        else:
            try:
                report = stage.perform(check, seconds, file)
            except Exception as error:  # a fault of this program ends its stage, and no other
                report = Report("failed", f"gpu-check itself: {type(error).__name__}: {error}")
            except (KeyboardInterrupt, SystemExit):
                summary.add(stage.name, Report("interrupted", ""), time.monotonic() - start)
                raise
        summary.add(stage.name, report, time.monotonic() - start)
        good &= report.verdict != "failed"
    return good


def claims(results: Path) -> list[str]:
    """What every row reached, beside its budget."""
    found = []
    for stage in ("suites", "step"):
        for line in lines.read(results / f"{stage}.jsonl"):
            title = f"{line['suite']} {line['name']}"
            if "error" in line:
                found.append(f"{title}: {line['error'].splitlines()[0]}")
                continue
            for one in line["row"]["claims"]:
                sign, value = "≤" if one["most"] else "≥", one["value"]
                figure = "not measured" if value is None else f"{value:.3g}"
                verdict = {True: "met", False: "missed", None: ""}[one["met"]]
                found.append(f"{title}: {figure} {one['text']} ({sign} {one['limit']}) {verdict}")
            found += [f"{title}: {rival}: {why}" for rival, why in line["row"]["failed"].items()]
    return found


def stages_of(text: str) -> list[Stage]:
    """The stages that a list names, in their own order."""
    names = [name for name in text.split(",") if name]
    known = [stage.name for stage in STAGES]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(
            f"no stage is named {', '.join(unknown)}; expected some of {', '.join(known)}"
        )
    return [stage for stage in STAGES if not names or stage.name in names]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--stages", type=stages_of, default=list(STAGES), help="names, by commas")
    parser.add_argument("--only", default="", help="words, by commas; see the docs")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--build", choices=("yes", "no"), default="yes")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    end = time.monotonic() + arguments.seconds
    # A stage's processes end with this one: by a signal as by an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if lacking := missing(*NEEDED):
        print(f"gpu-check: {', '.join(lacking)} not installed for {sys.executable}")
        return 2
    only = tuple(word for word in arguments.only.split(",") if word)
    check = Check(arguments.device, arguments.results.resolve(), only, absences())
    check.results.mkdir(parents=True, exist_ok=True)
    print(f"gpu-check: all output goes to {check.results / 'log.txt'}", flush=True)
    device = describe_device(check)
    if "unusable" in device:
        print(f"gpu-check: the device {check.device} cannot be used: {device['unusable']}")
        return 2
    start = time.monotonic()
    if arguments.build == "yes":
        built = build(check, device.get("capability"), BUILD_SHARE * arguments.seconds)
        print(f"build       {built.verdict} ({time.monotonic() - start:.0f} s) {built.text}")
        if built.verdict != "passed":
            return 1
    about = describe_device(check)
    if "commit" not in about:
        print(f"gpu-check: the library cannot be used: {about.get('unusable', 'it is not built')}")
        return 1
    about["seconds"] = arguments.seconds
    good = perform(check, Summary(check, about), arguments.stages, end)
    figures = [] if check.tiny else claims(check.results)  # a rehearsal's say nothing
    print("\n".join(["", *figures, *dict.fromkeys(check.absent)]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
