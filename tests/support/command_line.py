"""Runs the command in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from adapruner.cli.main import main

# Options of a run that takes a fraction of a second.
TINY = ("--model", "test_resnet", "--epochs", "2", "--batch-size", "16")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def runner(capfd: pytest.CaptureFixture[str]) -> Run:
    """A function that runs the command and returns its exit code, output and errors."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(str(end.code))
        return Outcome(code, *capfd.readouterr())

    return call
