"""The arguments of the command ``adapruner``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from adapruner._version import __version__
from adapruner.cli.checks import EXPECTED, at_least, method_name, positive, ratio
from adapruner.pruning.methods import DEFAULT_METHOD, HOMES

EXPORT_FORMATS = ("paths", "npy", "parquet", "links", "wds-index", "shards")

_EPILOG = "With ADAPRUNER_TRACEBACK=1 an error shows where it comes from, instead of one line."


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; ``command`` of what it parses names the subcommand."""
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
    add("info", help="versions, the native library, the extras that are installed")
    return parser


_AddParser = Callable[..., argparse.ArgumentParser]


def _add_prune(add: _AddParser) -> None:
    parser = add(
        "prune",
        help="train a model on images and learn which of them to keep",
        description="Train a model on images, reading less than an ordinary run does, and learn on "
        "the way which images to keep.",
    )
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
        type=method_name,
        default=DEFAULT_METHOD,
        metavar="{" + ",".join(HOMES) + "}",
        help="sampled draws the kept images by learned gates; published keeps the largest gates, "
        "as the paper does; default %(default)s",
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
    _add_result(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the HTML file to write"
    )


def _add_export(add: _AddParser) -> None:
    parser = add("export", help="write the kept set for other tools")
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
