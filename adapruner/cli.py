"""The command ``adapruner``: what can be said on it, and how it fails.

Nothing heavy is imported here: what is wrong with the arguments alone is said before torch loads.
What the subcommands do stands in ``commands.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from adapruner.methods import DEFAULT_METHOD, METHODS

EXPORT_FORMATS = ("paths", "npy", "parquet", "links")

_FOLDER = "image folder, FOLDER/CLASS/.../IMAGE"
_EPILOG = "With ADAPRUNER_TRACEBACK=1 an error shows where it comes from, instead of one line."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code: 0, 1 after an error (told in one line on standard error), 130 after Ctrl-C.

    Raises:
        SystemExit: code 2 where the arguments are no command, 0 after help or version.
    """
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        complain(_interrupted(arguments))
        return 130
    except Exception as error:
        if os.environ.get("ADAPRUNER_TRACEBACK") or not _says_all(error):
            raise
        complain(f"error: {str(error) or type(error).__name__}")
        return 1
    return 0


def say(text: str) -> None:
    """Print to standard output, whatever characters its encoding lacks."""
    _write(text, sys.stdout)


def complain(text: str) -> None:
    """Print as one line to standard error, after the command's name."""
    _write("adapruner: " + " ".join(text.splitlines()), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    # A file name need not be valid UTF-8, and no run is to fail for printing one.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _says_all(error: Exception) -> bool:
    """Whether it is an error that a user can mend; any other one needs its traceback."""
    if isinstance(error, (OSError, ValueError, ImportError, FloatingPointError, MemoryError)):
        return True
    loader = sys.modules.get("adapruner.data.loader")
    return loader is not None and isinstance(error, loader.UnreadableSampleError)


def _interrupted(arguments: argparse.Namespace) -> str:
    if arguments.command != "prune":
        return "interrupted"
    if arguments.checkpoint is None:
        return "interrupted; with --checkpoint DIR a run can go on where it was"
    if not (arguments.checkpoint / "checkpoint.safetensors").is_file():
        return f"interrupted, before the first checkpoint in {arguments.checkpoint}"
    return f"interrupted; the same command goes on from the checkpoint in {arguments.checkpoint}"


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand; each sets ``run``, which takes the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="adapruner",
        description="Learn which samples of a training set are worth keeping.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('adapruner')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = partial(commands.add_parser, allow_abbrev=False, epilog=_EPILOG)
    _add_prune(add)
    _add_report(add)
    _add_export(add)
    info = add("info", help="versions, the native library, the extras that are installed")
    info.set_defaults(run=_info)
    return parser


_AddParser = Callable[..., argparse.ArgumentParser]


def _add_prune(add: _AddParser) -> None:
    parser = add(
        "prune",
        help="train a model on an image folder and learn which images to keep",
        description="Train a model on an image folder, reading less than an ordinary run does, and "
        "learn on the way which images to keep.",
    )
    parser.set_defaults(run=_prune)
    option = parser.add_argument
    option("folder", type=Path, metavar="FOLDER", help=_FOLDER)
    option(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="where to write the result (safetensors); an old file is replaced",
    )
    _add_run_options(parser.add_argument_group("the run"))
    _add_model_options(parser.add_argument_group("the model and its images"))
    _add_practical_options(parser.add_argument_group("how it is carried out"))


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--keep-ratio",
        type=_ratio,
        default=0.7,
        metavar="R",
        help="share of the images to keep, in (0, 1]; default %(default)s",
    )
    option("--epochs", type=_at_least(1), default=20, metavar="N", help="default %(default)s")
    option(
        "--warmup-epochs",
        type=_at_least(0),
        metavar="N",
        help="epochs at the start that read everything; default a tenth of all",
    )
    option(
        "--batch-size",
        type=_at_least(1),
        default=128,
        metavar="N",
        help="images in a batch; default %(default)s",
    )
    option(
        "--lr",
        type=_positive,
        metavar="RATE",
        help="highest learning rate of AdamW; default 0.002",
    )
    option(
        "--seed",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="of the fresh weights, the order and the augmentation; default %(default)s",
    )
    option("--balance", choices=["class"], help="keep the same share of every class")
    option(
        "--method",
        choices=list(METHODS),
        default=DEFAULT_METHOD,
        help="what drives a gate; default %(default)s",
    )
    option(
        "--validation",
        type=Path,
        metavar="FOLDER",
        help="held-out images, in folders of the same classes; default 5%% of the images",
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--model", default="resnet18", metavar="NAME", help="a model of timm; default %(default)s"
    )
    option(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict to start from (safetensors); default fresh weights",
    )
    option(
        "--image-size",
        type=_at_least(1),
        metavar="PIXELS",
        help="images are cropped to this size; default their own if it is at most 64, else 224",
    )
    option(
        "--small-images",
        action=argparse.BooleanOptionalAction,
        help="adapt the model's first layers to small images; default up to 64 pixels",
    )


def _add_practical_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="write a checkpoint after each epoch, and go on from the one that is there",
    )
    option(
        "--on-error",
        choices=["skip", "raise"],
        default="skip",
        help="what an unreadable image does: it is left out and listed (skip, the default), or "
        "ends the run",
    )
    option("--report", type=Path, metavar="FILE", help="also write an HTML report")
    option(
        "--save-model",
        type=Path,
        metavar="FILE",
        help="also write the trained model's state dict (safetensors), as --weights takes it",
    )
    option(
        "--workers",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="processes that read images; default %(default)s, none but the one that trains",
    )
    option("--threads", type=_at_least(1), metavar="N", help="of computation; default all cores")
    option("--quiet", action="store_true", help="print warnings and errors only")


def _add_report(add: _AddParser) -> None:
    parser = add("report", help="write the HTML report of a result")
    parser.set_defaults(run=_report)
    _add_result(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the HTML file to write"
    )


def _add_export(add: _AddParser) -> None:
    parser = add("export", help="write the kept set for other tools")
    parser.set_defaults(run=_export)
    _add_result(parser)
    parser.add_argument(
        "--to",
        choices=EXPORT_FORMATS,
        required=True,
        help="a text file of paths relative to the image folder, one per line; a .npy file of "
        "indices; a Parquet file of both; or a folder of links, itself an image folder",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DEST", help="the file, or folder, to write"
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", type=Path, metavar="RESULT", help="what prune has written")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="the image folder that was pruned, where it is no longer in its place",
    )


def _prune(arguments: argparse.Namespace) -> None:
    _check_folder(arguments.folder)
    if arguments.validation is not None:
        _check_folder(arguments.validation)
    if arguments.weights is not None and not arguments.weights.is_file():
        raise FileNotFoundError(f"no such file of weights: {arguments.weights}")
    # Before hours of training, not after them.
    _check_destination(arguments.out)
    for also in (arguments.report, arguments.save_model):
        if also is not None:
            _check_destination(also)
    if arguments.checkpoint is not None:
        _check_checkpoint_folder(arguments.checkpoint)
    from adapruner import commands

    commands.prune(arguments)


def _report(arguments: argparse.Namespace) -> None:
    from adapruner import commands

    commands.report(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from adapruner import commands

    commands.export(arguments)


def _info(arguments: argparse.Namespace) -> None:
    from adapruner.info import describe

    say(describe())


def _ratio(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"must be in (0, 1], the share of images to keep; found {text}"
        )
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0; found {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number; found {text!r}") from None


def _at_least(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number; found {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}; found {value}")
        return value

    return convert


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path}; expected an {_FOLDER}")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is no folder; expected an {_FOLDER}")


def _check_destination(path: Path) -> None:
    """Raise OSError unless a file can be written there; leaves nothing behind."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is no regular file")
    if not path.parent.exists():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    _check_writable(path.parent, path)


def _check_checkpoint_folder(path: Path) -> None:
    """The same for a folder that may be missing, and whose parents may be."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    _check_writable(existing, path)


def _check_writable(folder: Path, wanted: Path) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {wanted}: {folder} is no folder")
    try:
        # Tried, because permissions do not tell: not to root, and not of a read-only disk.
        with tempfile.TemporaryDirectory(prefix=".adapruner.", dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot write {wanted}: nothing can be made in {folder} ({reason})"
        ) from error
