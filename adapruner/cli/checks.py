"""Checks of the command's arguments that do not need torch."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from adapruner._util.addresses import is_address
from adapruner._util.tar_names import is_compressed_tar, is_tar
from adapruner.cli.console import complain
from adapruner.pruning.methods import HOMES, current_name

EXPECTED = (
    "image folder (FOLDER/CLASS/.../IMAGE), WebDataset shards (.tar files, a folder of them, or "
    "patterns; also s3://, gs:// or https://), or two .npy files (uint8 images, then classes)"
)

# A path of this machine, or the address of an object store.
Place: TypeAlias = "Path | str"


def place(text: str) -> Place:
    """Convert the text of a path or an address."""
    return text if is_address(text) else Path(text)


def ratio(text: str) -> float:
    """Convert the text of a share in (0, 1]."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"must be in (0, 1], the share of images to keep; found {text}"
        )
    return value


def positive(text: str) -> float:
    """Convert the text of a finite number above 0."""
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
    """A converter of the text of a whole number of at least ``least``."""

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
    """The current name of a method. An old name prints a warning to standard error."""
    name = current_name(text)
    if name not in HOMES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(HOMES)}; found {text!r}")
    if name != text:
        complain(f"warning: --method {text} is now called {name}")
    return name


def balance_of(text: str) -> str | Path:
    """ "class", or the .npy file with the group of each image."""
    if text == "class":
        return text
    if Path(text).suffix != ".npy":
        raise argparse.ArgumentTypeError(
            f"must be class or a .npy file with the group of each image; found {text!r}"
        )
    return Path(text)


def check_data(places: Sequence[Place]) -> None:
    """Raise OSError or ValueError where ``places`` clearly are not images.

    Patterns of shards are not searched here, and no object store is asked.
    """
    paths = [place for place in places if isinstance(place, Path)]
    if not paths:
        return
    if len(paths) < len(places):
        address = next(place for place in places if not isinstance(place, Path))
        raise ValueError(
            f"data must be files or lie in an object store, not both; found {paths[0]} and "
            f"{address}"
        )
    kinds = set(map(_kind, paths))
    if kinds == {".npy"} and len(paths) != 2:
        raise ValueError(
            f"expected two arrays, of images and of classes; found {len(paths)}: {paths[0]}"
        )
    if kinds <= {".tar", ".npy"} and len(kinds) == 1:
        return
    if len(paths) > 1:
        folder = next((path for path in paths if _kind(path) not in (".tar", ".npy")), paths[0])
        raise ValueError(
            f"{folder} cannot be combined with other data; expected one {EXPECTED}; "
            f"found {len(paths)} paths"
        )
    if not paths[0].exists():
        raise FileNotFoundError(f"no such folder: {paths[0]}; expected an {EXPECTED}")
    if not paths[0].is_dir():
        raise NotADirectoryError(f"{paths[0]} is not a folder; expected an {EXPECTED}")


def _kind(path: Path) -> str:
    """The suffix of ``path``, ".tar" for all tars. The data layer refuses compressed ones."""
    return ".tar" if is_tar(path.name) or is_compressed_tar(path.name) else path.suffix


def check_destination(path: Path) -> None:
    """Raise OSError unless a file can be written to ``path``. Nothing is left behind."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):  # told below
        pass
    except OSError as error:  # a name that is too long, say
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is not a regular file")
    if not path.parent.exists():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    _check_writable(path.parent, path)


def check_apart(written: Sequence[Path | None], read: Sequence[Place | None]) -> None:
    """Raise ValueError where two files to write are the same, or one of them is also read."""
    sources = {path.resolve() for path in read if isinstance(path, Path)}
    seen = set()
    for path in written:
        if path is None:
            continue
        if (place := path.resolve()) in sources:
            raise ValueError(f"cannot write {path}: the command reads it, and it would be lost")
        if place in seen:
            raise ValueError(f"cannot write {path}: the command also writes another file there")
        seen.add(place)


def check_checkpoint_folder(path: Path) -> None:
    """Raise OSError unless the folder can be written. It and its parents may be missing."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    _check_writable(existing, path)


def _check_writable(folder: Path, wanted: Path) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {wanted}: {folder} is not a folder")
    try:
        # A try, because permissions say too little: to root, and about a read-only disk.
        with tempfile.TemporaryDirectory(prefix=".adapruner.", dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot write {wanted}: no file can be made in {folder} ({reason})"
        ) from error
