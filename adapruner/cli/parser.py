"""The arguments of the command ``adapruner``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NoReturn

from adapruner._version import __version__
from adapruner.cli.checks import (
    EXPECTED,
    at_least,
    balance_of,
    method_name,
    place,
    positive,
    ratio,
)
from adapruner.cli.console import without_commands
from adapruner.pruning.methods import DEFAULT_METHOD, HOMES

EXPORT_FORMATS = ("paths", "npy", "csv", "parquet", "links", "wds-index", "shards")
# The reasons of adapruner.results.reasons, which imports torch.
REASONS = (
    *("kept", "easy", "does-not-fit", "low-score", "drawn-out", "quota", "unreadable"),
    "never-seen",
)

_EPILOG = "Set ADAPRUNER_TRACEBACK=1 to see the full traceback of an error."


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands. It stores the name of the subcommand in ``command``."""
    parser = _Parser(
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
    _add_show(add)
    _add_index(add)
    _add_info(add)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that names the option that an unknown option resembles.

    Its messages do not command the terminal: ``*`` can name any file.
    """

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            options = re.findall(r"--[\w-]+", " ".join(self._all_help()))
            close = get_close_matches(unknown[1].replace("_", "-"), options, n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        super().error(without_commands(message))

    def _all_help(self) -> Iterator[str]:
        yield self.format_help()
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from (parser.format_help() for parser in action.choices.values())


_AddParser = Callable[..., argparse.ArgumentParser]


def _add_prune(add: _AddParser) -> None:
    parser = add(
        "prune",
        help="train a model on images and learn which of them to keep",
        description="Train a model on images and learn which images to keep. The run reads fewer "
        "images than an ordinary run.",
    )
    option = parser.add_argument
    option("data", type=place, nargs="+", metavar="DATA", help=EXPECTED)
    option(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file for the result (safetensors); an old file is replaced",
    )
    _add_run_options(parser.add_argument_group("the run"))
    _add_data_options(parser.add_argument_group("the images"))
    _add_model_options(parser.add_argument_group("the model"))
    _add_practical_options(parser.add_argument_group("machine and output"))


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--keep-ratio",
        type=ratio,
        default=0.7,
        metavar="R",
        help="share of the images to keep, in (0, 1]; default %(default)s",
    )
    option(
        "--epochs",
        type=at_least(1),
        default=20,
        metavar="N",
        help="epochs of the run; default %(default)s",
    )
    option(
        "--warmup-epochs",
        type=at_least(0),
        metavar="N",
        help="epochs at the start that read every image; default about a tenth of --epochs",
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
        help="seed of new weights, the order and the augmentation; default %(default)s",
    )
    option(
        "--balance",
        type=balance_of,
        metavar="class|FILE.npy",
        help="class keeps the same share of every class; the file has the group of each image, "
        "integers, and every group keeps the same share; without it, three quarters of the kept "
        "images are dealt evenly over the classes",
    )
    option(
        "--method",
        type=method_name,
        default=DEFAULT_METHOD,
        metavar="{" + ",".join(HOMES) + "}",
        help="sampled draws the kept images with chances from their gates; published keeps the "
        "largest gate logits, as the paper does; default %(default)s",
    )


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--validation",
        type=place,
        action="append",
        metavar="DATA",
        help="held-out images of the same classes, in any form of DATA; repeat the option for each "
        "path; default 5%% of the images",
    )
    option(
        "--columns",
        nargs=2,
        metavar=("IMAGE", "CLASS"),
        help="shards only: extensions of the components that hold the image and the class "
        "(json:KEY for a key of the component json); default the only image, and cls",
    )
    option(
        "--index",
        type=place,
        metavar="DIR",
        help="folder of the shards' indexes; default beside the shards",
    )
    option(
        "--cache",
        type=Path,
        metavar="DIR",
        help="shards in an object store only: folder of this machine that keeps what was read, up "
        "to 10 GiB; default nothing is kept",
    )
    option(
        "--max-pixels",
        type=at_least(1),
        default=100_000_000,
        metavar="N",
        help="an image with more pixels counts as unreadable; default 100 million",
    )
    option(
        "--on-error",
        choices=["skip", "raise"],
        default="skip",
        help="skip leaves out unreadable images and lists them; raise ends the run at the first "
        "one; default %(default)s",
    )


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option("--model", default="resnet18", metavar="NAME", help="model of timm; default %(default)s")
    option(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict to start from (safetensors); default new random weights",
    )
    option(
        "--image-size",
        type=at_least(1),
        metavar="PIXELS",
        help="size of the crops; default the size of the images if it is at most 64, else 224",
    )
    option(
        "--small-images",
        action=argparse.BooleanOptionalAction,
        help="adapt the first layers of the model to small images; default for images of at most "
        "64 pixels",
    )


def _add_practical_options(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--device",
        metavar="DEVICE",
        help="device of the training: cpu, cuda, cuda:1, ...; default cuda if it can be used, else "
        "cpu",
    )
    option(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16 trains under autocast of torch; default %(default)s",
    )
    option("--compile", action="store_true", help="call the model through torch.compile")
    option(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="write a checkpoint to DIR after each epoch, and resume from a checkpoint in DIR",
    )
    option("--report", type=Path, metavar="FILE", help="also write an HTML report")
    option(
        "--save-model",
        type=Path,
        metavar="FILE",
        help="also write the state dict of the trained model (safetensors), for --weights",
    )
    option(
        "--loader",
        choices=["auto", "torch", "dali"],
        default="auto",
        help="loader of the images; auto uses DALI if it is installed and can read them; default "
        "%(default)s",
    )
    option(
        "--workers",
        type=at_least(0),
        default=0,
        metavar="N",
        help="extra processes that read images, default 0; with DALI, its threads, default one per "
        "core",
    )
    option(
        "--block-size",
        type=at_least(1),
        metavar="N",
        help="for slow disks: read blocks of N neighbouring images and mix 16 blocks at a time; "
        "default all images are mixed",
    )
    option(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="threads of computation on the CPU; default all cores",
    )
    option("--quiet", action="store_true", help="print warnings and errors only")


def _add_report(add: _AddParser) -> None:
    parser = add("report", help="write the HTML report of a result")
    _add_result(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="HTML file to write"
    )


def _add_export(add: _AddParser) -> None:
    parser = add("export", help="write the kept set, or a table of all samples, for other tools")
    _add_result(parser)
    parser.add_argument(
        "--to",
        choices=EXPORT_FORMATS,
        required=True,
        help="paths: text file, one path a line, relative to the image folder; npy: array of "
        "indices; csv, parquet: table of all samples, with the reason of each; links: image "
        "folder of symbolic links; wds-index: folder of DALI indexes of the kept samples; shards: "
        "folder of new shards with the kept samples",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DEST", help="file or folder to write"
    )


def _add_show(add: _AddParser) -> None:
    parser = add(
        "show",
        help="print samples of a result, with the reasons",
        description="Print how many samples were kept or pruned for which reason, or list the "
        "samples of one reason, or samples whose labels are likely wrong.",
    )
    _add_result(parser)
    listed = parser.add_mutually_exclusive_group()
    listed.add_argument("--reason", choices=REASONS, help="list the samples of this reason")
    listed.add_argument(
        "--suspects", action="store_true", help="list samples whose labels are likely wrong"
    )
    parser.add_argument(
        "--top",
        type=at_least(1),
        metavar="N",
        help="list at most N samples, the clearest cases first; default 20",
    )


def _add_info(add: _AddParser) -> None:
    parser = add(
        "info",
        help="show what a result holds, or versions, the native library and the installed extras",
    )
    parser.add_argument(
        "result", type=Path, nargs="?", metavar="RESULT", help="result file of prune"
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", type=Path, metavar="RESULT", help="result file of prune")
    parser.add_argument(
        "--data",
        type=place,
        action="append",
        metavar="DATA",
        help="place of the pruned data, if it has moved; repeat the option for each path",
    )


def _add_index(add: _AddParser) -> None:
    parser = add(
        "index",
        help="write the indexes of WebDataset shards",
        description="Write an index NAME.idx for each WebDataset shard NAME.tar, in the format of "
        "DALI's wds2idx. A run with indexes starts without reading every header of the shards.",
    )
    option = parser.add_argument
    option(
        "shards",
        nargs="+",
        metavar="SHARDS",
        help="tar files, folders of them, patterns, or addresses of an object store",
    )
    option(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the indexes; default beside the shards, except in an object store",
    )
    option(
        "--class",
        dest="column",
        default="cls",
        metavar="CLASS",
        help="component that holds the class, as in prune --columns; default %(default)s",
    )
