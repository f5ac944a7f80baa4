"""The command ``adapruner``: what can be said on it, and how it fails.

Nothing heavy is imported here: what is wrong with the arguments alone is said before torch loads.
What the subcommands do stands in ``commands.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from adapruner._version import __version__
from adapruner.cli_checks import (
    EXPECTED,
    at_least,
    check_apart,
    check_checkpoint_folder,
    check_data,
    check_destination,
    positive,
    ratio,
)
from adapruner.methods import DEFAULT_METHOD, METHODS

EXPORT_FORMATS = ("paths", "npy", "parquet", "links", "wds-index", "shards")

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
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = partial(commands.add_parser, allow_abbrev=False, epilog=_EPILOG)
    _add_prune(add)
    _add_report(add)
    _add_export(add)
    _add_index(add)
    info = add("info", help="versions, the native library, the extras that are installed")
    info.set_defaults(run=_info)
    return parser


_AddParser = Callable[..., argparse.ArgumentParser]


def _add_prune(add: _AddParser) -> None:
    parser = add(
        "prune",
        help="train a model on images and learn which of them to keep",
        description="Train a model on images, reading less than an ordinary run does, and learn on "
        "the way which images to keep.",
    )
    parser.set_defaults(run=_prune)
    option = parser.add_argument
    option("data", type=Path, nargs="+", metavar="DATA", help=EXPECTED)
    option(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="where to write the result (safetensors); an old file is replaced",
    )
    _add_run_options(parser.add_argument_group("the run"))
    _add_data_options(parser.add_argument_group("the images"))
    _add_model_options(parser.add_argument_group("the model"))
    _add_practical_options(parser.add_argument_group("how it is carried out"))


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--keep-ratio",
        type=ratio,
        default=0.7,
        metavar="R",
        help="share of the images to keep, in (0, 1]; default %(default)s",
    )
    option("--epochs", type=at_least(1), default=20, metavar="N", help="default %(default)s")
    option(
        "--warmup-epochs",
        type=at_least(0),
        metavar="N",
        help="epochs at the start that read everything; default a tenth of all",
    )
    option(
        "--batch-size",
        type=at_least(1),
        default=128,
        metavar="N",
        help="images in a batch; default %(default)s",
    )
    option(
        "--lr",
        type=positive,
        metavar="RATE",
        help="highest learning rate of AdamW; default 0.002",
    )
    option(
        "--seed",
        type=at_least(0),
        default=0,
        metavar="N",
        help="of the fresh weights, the order and the augmentation; default %(default)s",
    )
    option("--balance", choices=["class"], help="keep the same share of every class")
    option(
        "--method",
        choices=list(METHODS),
        default=DEFAULT_METHOD,
        help="sampled draws what is kept by learned gates; adapruner is the published objective, "
        "whose largest gates are kept; default %(default)s",
    )


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--validation",
        type=Path,
        action="append",
        metavar="DATA",
        help="held-out images of the same classes, in any of these forms (once for each path); "
        "default 5%% of the images",
    )
    option(
        "--columns",
        nargs=2,
        metavar=("IMAGE", "CLASS"),
        help="in shards, the extensions of the components with the image and the class (json:KEY "
        "for a key in a component json); default the one that is an image, and cls",
    )
    option(
        "--index",
        type=Path,
        metavar="DIR",
        help="where the indexes of shards are; default beside them",
    )
    option(
        "--max-pixels",
        type=at_least(1),
        default=100_000_000,
        metavar="N",
        help="an image of more counts as unreadable; default 100 million",
    )
    option(
        "--on-error",
        choices=["skip", "raise"],
        default="skip",
        help="what an unreadable image does: it is left out and listed (skip, the default), or "
        "ends the run",
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
        type=at_least(1),
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
        "--device",
        metavar="DEVICE",
        help="where to train: cpu, cuda, cuda:1, ...; default cuda where it can be used, else cpu",
    )
    option(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16 trains under torch's autocast; default %(default)s",
    )
    option("--compile", action="store_true", help="call the model through torch.compile")
    option(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="write a checkpoint after each epoch, and go on from the one that is there",
    )
    option("--report", type=Path, metavar="FILE", help="also write an HTML report")
    option(
        "--save-model",
        type=Path,
        metavar="FILE",
        help="also write the trained model's state dict (safetensors), as --weights takes it",
    )
    option(
        "--loader",
        choices=["auto", "torch", "dali"],
        default="auto",
        help="what reads the images; auto, the default, takes DALI where it is installed and can",
    )
    option(
        "--workers",
        type=at_least(0),
        default=0,
        metavar="N",
        help="processes that read images, default none but the one that trains; or threads of "
        "DALI, default one per core",
    )
    option(
        "--block-size",
        type=at_least(1),
        metavar="N",
        help="read N images that stand next to each other at about the same time, and mix 16 such "
        "blocks: for slow disks; default all are mixed",
    )
    option("--threads", type=at_least(1), metavar="N", help="of computation; default all cores")
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
        "indices; a Parquet file of both; a folder of links, itself an image folder; of shards, a "
        "folder of DALI's indexes of the kept samples, or of new shards with these alone",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DEST", help="the file, or folder, to write"
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", type=Path, metavar="RESULT", help="what prune has written")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        metavar="DATA",
        help="what was pruned, where it is no longer in its place (once for each path)",
    )


def _add_index(add: _AddParser) -> None:
    parser = add(
        "index",
        help="write the indexes of WebDataset shards",
        description="Write where the samples of WebDataset shards lie, NAME.idx for NAME.tar, as "
        "DALI's wds2idx does; with it, a run need not read every header first.",
    )
    parser.set_defaults(run=_index)
    option = parser.add_argument
    option("shards", nargs="+", metavar="SHARDS", help="tar files, folders of them, or patterns")
    option("--out", type=Path, metavar="DIR", help="where to write them; default beside the shards")
    option(
        "--class",
        dest="column",
        default="cls",
        metavar="CLASS",
        help="the component with the class, as in prune --columns; default %(default)s",
    )


def _prune(arguments: argparse.Namespace) -> None:
    check_data(arguments.data)
    if arguments.validation is not None:
        check_data(arguments.validation)
    if arguments.weights is not None and not arguments.weights.is_file():
        raise FileNotFoundError(f"no such file of weights: {arguments.weights}")
    # Before hours of training, not after them.
    written = (arguments.out, arguments.report, arguments.save_model)
    check_apart(written, [*arguments.data, *(arguments.validation or ()), arguments.weights])
    for path in written:
        if path is not None:
            check_destination(path)
    if arguments.checkpoint is not None:
        check_checkpoint_folder(arguments.checkpoint)
    from adapruner import commands

    commands.prune(arguments)


def _report(arguments: argparse.Namespace) -> None:
    check_apart([arguments.out], [arguments.result, *(arguments.data or ())])
    from adapruner import commands

    commands.report(arguments)


def _export(arguments: argparse.Namespace) -> None:
    check_apart([arguments.out], [arguments.result, *(arguments.data or ())])
    from adapruner import commands

    commands.export(arguments)


def _index(arguments: argparse.Namespace) -> None:
    from adapruner import commands

    commands.index(arguments)


def _info(arguments: argparse.Namespace) -> None:
    from adapruner.info import describe

    say(describe())
