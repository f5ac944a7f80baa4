"""What can be told of the arguments of the command before torch loads."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from adapruner.cli.console import complain
from adapruner.pruning.methods import HOMES, current_name

EXPECTED = (
    "image folder, FOLDER/CLASS/.../IMAGE; WebDataset shards, as .tar files, patterns or a folder "
    "of them; or two .npy files, of uint8 images and of classes"
)


def ratio(text: str) -> float:
    """A share in (0, 1]."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"must be in (0, 1], the share of images to keep; found {text}"
        )
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0; found {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number; found {text!r}") from None


def at_least(least: int) -> Callable[[str], int]:
    """A whole number of at least ``least``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number; found {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}; found {value}")
        return value

    return convert


def method_name(text: str) -> str:
    """The name of a method; an old name is told on standard error."""
    name = current_name(text)
    if name not in HOMES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(HOMES)}; found {text!r}")
    if name != text:
        complain(f"warning: --method {text} is now called {name}")
    return name


def check_data(paths: Sequence[Path]) -> None:
    """Raise OSError or ValueError where it can be seen that ``paths`` are no images.

    Patterns of shards are left to be found later.
    """
    kinds = {path.suffix for path in paths}
    if kinds == {".npy"} and len(paths) != 2:
        raise ValueError(
            f"expected two arrays, of images and classes, got {len(paths)}: {paths[0]}"
        )
    if kinds <= {".tar", ".npy"} and len(kinds) == 1:
        return
    if len(paths) > 1:
        folder = next((path for path in paths if path.suffix not in (".tar", ".npy")), paths[0])
        raise ValueError(f"{folder} cannot be joined with other data; expected an {EXPECTED}")
    if not paths[0].exists():
        raise FileNotFoundError(f"no such folder: {paths[0]}; expected an {EXPECTED}")
    if not paths[0].is_dir():
        raise NotADirectoryError(f"{paths[0]} is no folder; expected an {EXPECTED}")


def check_destination(path: Path) -> None:
    """Raise OSError unless a file can be written there; leaves nothing behind."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is no regular file")
    if not path.parent.exists():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    _check_writable(path.parent, path)


def check_apart(written: Sequence[Path | None], read: Sequence[Path | None]) -> None:
    """Raise ValueError where two of the files to write are one, or one of them is to be read."""
    sources = {path.resolve() for path in read if path is not None}
    seen = set()
    for path in written:
        if path is None:
            continue
        if (place := path.resolve()) in sources:
            raise ValueError(f"cannot write {path}: it is to be read, and would be lost")
        if place in seen:
            raise ValueError(f"cannot write {path}: something else is to be written there")
        seen.add(place)


def check_checkpoint_folder(path: Path) -> None:
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
