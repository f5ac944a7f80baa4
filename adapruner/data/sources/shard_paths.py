"""Find the tar files that paths, folders and patterns name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adapruner._util.addresses import is_address
from adapruner._util.tar_names import is_compressed_tar, is_tar
from adapruner.data.sources.image_folder import find_image

if TYPE_CHECKING:
    from adapruner.data.sources.remote import RemoteStore

# A result names its shards, and a hostile one must not keep a program busy for ever.
_MOST = 1_000_000  # paths of a pattern
_MOST_BRACES = 20


def find_shards(pattern: str | os.PathLike[str], store: RemoteStore | None = None) -> list[str]:
    """The shards of a path, a folder, a glob or a brace pattern, in order.

    Hidden files and folders are not shards, unless ``pattern`` names them.

    Args:
        pattern: a path or an address.
        store: the object store of an address.

    Raises:
        FileNotFoundError: a shard is missing, or no shard fits.
        ValueError: a shard is compressed, or the pattern stands for too many paths.
        UnreachableError: the object store did not answer.
    """
    if store is not None:
        addresses = _paths_of(os.fspath(pattern))
        remote = [shard for address in addresses for shard in store.find(address)]
        _check_not_compressed(remote)
        return remote
    text = os.path.expanduser(os.fspath(pattern))
    found: list[str] = []
    for path in [text] if os.path.lexists(text) else _paths_of(text):
        if os.path.isdir(path):
            found += _shards_in(path)
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(path) and not os.path.lexists(path):
            found += sorted(entry for entry in glob.glob(path) if not os.path.isdir(entry))
        else:
            raise FileNotFoundError(f"no such shard: {path}")
    if not found:
        raise FileNotFoundError(f"no shard fits {os.fspath(pattern)}")
    _check_not_compressed(found)
    return found


def absolute(path: str | os.PathLike[str]) -> str:
    """A path from the root on; an address as it is."""
    return str(path) if is_address(path) else os.path.abspath(os.path.expanduser(os.fspath(path)))


def is_shards(data: Any) -> bool:
    """Whether ``data`` is a path or pattern of a tar, a folder with tars, or a list of them.

    Every address of an object store, such as ``s3://bucket/train``, counts as shards.

    The ending may have any case. A compressed tar counts too, so that :func:`find_shards` can
    refuse it by name, unless it lies in a folder of images.

    Raises:
        ValueError: a folder has both tars and class folders with images.
    """
    if isinstance(data, (list, tuple)):
        return bool(data) and all(isinstance(p, (str, os.PathLike)) and is_shards(p) for p in data)
    if not isinstance(data, (str, os.PathLike)):
        return False
    if is_address(data):
        return True
    text = os.path.expanduser(os.fspath(data))
    if not os.path.isdir(text):
        text = text if os.path.lexists(text) else next(_expand_braces(text), text)
        return is_tar(text) or is_compressed_tar(text)
    shards = _shards_in(text)
    if not shards:
        return False
    image = find_image(text)
    tars = list(filter(is_tar, shards))
    if image is not None and tars:
        endings = sorted({os.path.splitext(tar)[1] for tar in tars})
        patterns = ", ".join(os.path.join(text, f"*{ending}") for ending in endings)
        raise ValueError(
            f"{text} must be shards or an image folder; found the tar {os.path.basename(tars[0])} "
            f"and the image {image}; for the shards, pass the tar files themselves, such as "
            f"{patterns}; for the images, move the tar files to another folder"
        )
    return image is None


def _shards_in(folder: str) -> list[str]:
    """The paths of the tars in ``folder``, plain and compressed, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            os.path.join(folder, entry.name)
            for entry in entries
            if (is_tar(entry.name) or is_compressed_tar(entry.name))
            and not entry.name.startswith(".")
            and not os.path.isdir(entry.path)
        )


def _check_not_compressed(shards: Sequence[str]) -> None:
    compressed = [shard for shard in shards if is_compressed_tar(shard)]
    if compressed:
        shown = ", ".join(compressed[:10]) + (", …" if len(compressed) > 10 else "")
        raise ValueError(
            f"shards must be plain .tar files; found {len(compressed)} compressed among "
            f"{len(shards)} shards: {shown}; decompress them, or name only the .tar files"
        )


def _paths_of(pattern: str) -> Iterator[str]:
    """The paths that the braces of a pattern stand for.

    Raises:
        ValueError: there are too many.
    """
    for number, path in enumerate(_expand_braces(pattern)):
        if number == _MOST:
            raise ValueError(
                f"a pattern must stand for at most {_MOST:,} paths; found {pattern[:80]!r}"
            )
        yield path


def _expand_braces(text: str) -> Iterator[str]:
    """Expand ``{000..012}`` and ``{a,b}``, as shells and webdataset do.

    Raises:
        ValueError: there are too many braces.
    """
    if text.count("{") > _MOST_BRACES:
        raise ValueError(
            f"a pattern must have at most {_MOST_BRACES} braces; found {text.count('{')} in "
            f"{text[:80]!r}"
        )
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if match is None:
        yield text
        return
    first, last, listed = match.groups()
    if listed is not None:
        parts: Iterator[str] = iter(listed.split(","))
    else:
        parts = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    for part in parts:
        yield from _expand_braces(text[: match.start()] + part + text[match.end() :])
