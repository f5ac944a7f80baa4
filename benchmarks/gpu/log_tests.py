"""A plugin of pytest: a line of JSON for each test, written at once, and a time-out for each.

    pytest -p benchmarks.gpu.log_tests --line-file tests.jsonl --test-seconds 120

The file gets a test's outcome, and a line for each test file that could not be collected. A test
that takes too long ends its process, even inside a CUDA call that does not return. A process whose
device is lost after a test that failed ends too. Under pytest-xdist another worker takes its place.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import lines

LOST = 3  # status of a worker whose device is lost
KEPT = 3000  # characters of a failure


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--line-file", type=Path, required=True, help="a line of JSON a test")
    parser.addoption("--test-seconds", type=float, default=120.0, help="time-out of a test")
    parser.addoption("--test-device", default="cuda", help="cuda or cpu")


def pytest_configure(config: pytest.Config) -> None:
    in_worker = hasattr(config, "workerinput")
    alone = not in_worker and not getattr(config.option, "numprocesses", None)
    if not in_worker:
        config.pluginmanager.register(Log(config))
    if in_worker or alone:
        config.pluginmanager.register(Process(config))


class Process:
    """What a process that runs tests does: it ends itself when it hangs or loses its device."""

    def __init__(self, config: pytest.Config) -> None:
        from .device import find_device  # only a process that runs tests needs torch

        self.seconds: float = config.getoption("--test-seconds")
        self.device = find_device(config.getoption("--test-device"))
        self.failed = False
        # pytest captures stderr, and a worker under pytest-xdist has no other.
        self.stderr = os.fdopen(os.dup(sys.__stderr__.fileno()), "w")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(trylast=True)  # after the report was sent
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed
        if report.when == "teardown" and self.failed:
            self.failed = False
            if not self.device.works():
                os._exit(LOST)


class Log:
    """What the process that writes the file does; it learns of every test from its reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.file: Path = config.getoption("--line-file")
        self.seconds: float = config.getoption("--test-seconds")
        self.started: dict[str, float] = {}
        self.running: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.started[nodeid] = time.monotonic()
        self.running[nodeid] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            outcome = "not collected" if report.failed else report.outcome
            self.write(report.nodeid, outcome, 0.0, _text(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid
        if test not in self.running:  # its worker ended after its last report
            return
        if report.when == "???":  # pytest-xdist's report of a worker that ended
            took = time.monotonic() - self.started[test]
            late = took >= self.seconds
            text = f"not done within {self.seconds:g} s" if late else _text(report)
            del self.running[test]
            self.write(test, "failed", took, text)
            return
        # A failure of the set-up, the call or the tear-down is the test's; so is the first text.
        so_far = self.running[test]
        if report.failed or "outcome" not in so_far or report.when == "call":
            so_far["outcome"] = "failed" if so_far.get("outcome") == "failed" else report.outcome
        so_far["seconds"] = so_far.get("seconds", 0.0) + report.duration
        so_far["text"] = so_far.get("text") or _text(report)
        if report.when == "teardown":
            del self.running[test]
            self.write(test, **so_far)

    def write(self, test: str, outcome: str, seconds: float, text: str) -> None:
        line: dict[str, Any] = {"test": test, "outcome": outcome, "seconds": round(seconds, 3)}
        lines.append(self.file, line | ({"text": text} if text else {}))


def _text(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test did not pass: the end of what pytest says, or the reason of a skip."""
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return str(report.longrepr)[-KEPT:]
