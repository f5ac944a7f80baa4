"""The command ``adapruner``: it runs a subcommand and prints an error as one line.

This module does not import torch, so bad arguments are reported at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from adapruner.cli.checks import (
    check_apart,
    check_checkpoint_folder,
    check_data,
    check_destination,
)
from adapruner.cli.console import complain, say
from adapruner.cli.parser import build_parser
from adapruner.errors import RankError, UnreadableSampleError
from adapruner.training import CHECKPOINT_NAME


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; the arguments of the process where None.

    Returns:
        The exit code: 0 for success, 1 after an error (one line on standard error), 130 after
        Ctrl-C.

    Raises:
        SystemExit: code 2 where the arguments cannot be parsed, 0 after help or version.
    """
    arguments = build_parser().parse_args(argv)
    try:
        _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        complain(_interrupted(arguments))
        return 130
    except Exception as error:
        if os.environ.get("ADAPRUNER_TRACEBACK") or not _says_all(error):
            raise
        complain(f"error: {str(error) or type(error).__name__}")
        return 1
    return 0


def _says_all(error: Exception) -> bool:
    """Whether the message of an error is enough for a user. Other errors need a traceback."""
    return isinstance(
        error,
        (
            OSError,
            ValueError,
            ImportError,
            FloatingPointError,
            MemoryError,
            UnreadableSampleError,
            RankError,
        ),
    )


def _interrupted(arguments: argparse.Namespace) -> str:
    if arguments.command != "prune":
        return "interrupted"
    if arguments.checkpoint is None:
        return "interrupted; with --checkpoint DIR, the same command can resume a run"
    if not (arguments.checkpoint / CHECKPOINT_NAME).is_file():
        return f"interrupted before the first checkpoint in {arguments.checkpoint}"
    return f"interrupted; the same command resumes from the checkpoint in {arguments.checkpoint}"


def _prune(arguments: argparse.Namespace) -> None:
    check_data(arguments.data)
    if arguments.validation is not None:
        check_data(arguments.validation)
    if arguments.weights is not None and not arguments.weights.is_file():
        raise FileNotFoundError(f"no such file of weights: {arguments.weights}")
    # Checked now, not after hours of training.
    written = (arguments.out, arguments.report, arguments.save_model)
    groups = arguments.balance if isinstance(arguments.balance, Path) else None
    read = [*arguments.data, *(arguments.validation or ()), arguments.weights, groups]
    check_apart(written, read)
    for path in written:
        if path is not None:
            check_destination(path)
    if arguments.checkpoint is not None:
        check_checkpoint_folder(arguments.checkpoint)
    from adapruner.cli import commands

    commands.prune(arguments)


def _report(arguments: argparse.Namespace) -> None:
    check_apart([arguments.out], [arguments.result, *(arguments.data or ())])
    from adapruner.cli import commands

    commands.report(arguments)


def _export(arguments: argparse.Namespace) -> None:
    check_apart([arguments.out], [arguments.result, *(arguments.data or ())])
    from adapruner.cli import commands

    commands.export(arguments)


def _index(arguments: argparse.Namespace) -> None:
    from adapruner.cli import commands

    commands.index(arguments)


def _show(arguments: argparse.Namespace) -> None:
    from adapruner.cli import commands

    commands.show(arguments)


def _info(arguments: argparse.Namespace) -> None:
    if arguments.result is not None:
        from adapruner.cli import commands

        commands.info(arguments)
        return
    from adapruner.info import describe

    say(describe())


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "prune": _prune,
    "report": _report,
    "export": _export,
    "show": _show,
    "index": _index,
    "info": _info,
}
