"""The members of a tar, header by header."""

from __future__ import annotations

import os
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, BinaryIO, TypeAlias

from adapruner.errors import MissingEndMarkWarning, UnreachableError

BLOCK = 512  # bytes; a tar header is one block, and contents are padded to whole blocks

# A shard by its path, or as an open file that can seek and whose ``name`` is the shard.
Shard: TypeAlias = "str | os.PathLike[str] | BinaryIO"

_CHUNK = 1 << 20  # bytes read at once behind the end of an archive
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


def walk(shard: Shard) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Yield the regular files of a tar, each with the open shard at the file's first byte.

    Iterating a ``TarFile`` would silently stop at a broken header. It would also stop at the first
    end-of-archive mark, and lose the second of two tars that were joined by ``cat``. The members
    after a mark are read here, as by GNU tar's ``--ignore-zeros``: they have byte ranges like all
    others, and leaving them out would lose samples without a word. Other bytes after a mark are
    damage, because the header of a second tar may be broken there.

    Raises:
        OSError: the shard cannot be opened, is not a tar, or is damaged. The message has its name.
        UnreachableError: the store of the shard did not answer.

    Warns:
        MissingEndMarkWarning: after the last member, the file ends without a mark.
        UserWarning: members are links or sparse files.
    """
    with _opened(shard) as handle:
        yield from _walk(handle)


def _opened(shard: Shard) -> Any:
    return open(shard, "rb") if isinstance(shard, (str, os.PathLike)) else nullcontext(shard)


def _walk(handle: Any) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    shard, length, offset = handle.name, handle.seek(0, os.SEEK_END), 0
    handle.seek(0)
    left_out: list[str] = []
    try:
        # "r:" refuses compressed files, which have no byte ranges.
        with tarfile.open(fileobj=handle, mode="r:", encoding="utf-8") as tar:
            while offset != length:  # beyond it, the last block is not whole
                handle.seek(offset)
                try:
                    info = tarfile.TarInfo.fromtarfile(tar)
                except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                    following = _next_archive(handle, offset)
                    if following is None:
                        _warn_of_links(shard, left_out)
                        return
                    offset = following
                    tar.pax_headers = {}  # without the global headers of the archive that has ended
                    continue
                end = info.offset_data + info.size
                if info.size < 0 or tar.offset <= offset:
                    raise tarfile.ReadError(f"member {info.name} has the size {info.size}")
                if end > length:
                    raise tarfile.ReadError(
                        f"cut off: {info.name} ends at byte {end}, the file at {length}"
                    )
                if info.isreg() and not info.issparse():
                    handle.seek(info.offset_data)
                    yield info, handle
                elif info.isreg() or info.islnk() or info.issym():
                    left_out.append(info.name)
                offset = tar.offset
    except UnreachableError:
        raise
    except OSError as error:
        if error.filename is not None:
            raise  # the message of the system has the path
        raise OSError(f"cannot read {shard}: {error}") from error
    except Exception as error:  # tarfile's own errors, and errors from broken numbers and names
        what = "it is cut off" if offset + BLOCK > length else "it is damaged"
        text = str(error) or type(error).__name__
        if offset == 0 and (compression := _compression(handle)) is not None:
            what, text = "it is compressed", f"{compression}; expected a plain tar"
        raise OSError(f"cannot read {shard}: {what} at byte {offset} ({text})") from error
    _warn_of_links(shard, left_out)
    warnings.warn(
        f"{shard} has no end-of-archive mark; it may be cut off between two members",
        MissingEndMarkWarning,
        stacklevel=3,
    )


def _warn_of_links(shard: Any, left_out: list[str]) -> None:
    if left_out:
        warnings.warn(
            f"links and sparse files are left out of {shard}, since their bytes are not in one "
            f"range; found {len(left_out)}, the first is {left_out[0]}. GNU tar packs files in "
            "place of links with --dereference --hard-dereference",
            stacklevel=4,
        )


def _next_archive(handle: Any, offset: int) -> int | None:
    """Offset of the first block from ``offset`` on that is not zero, or None."""
    handle.seek(offset)
    while chunk := handle.read(_CHUNK):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return (offset + zeros) // BLOCK * BLOCK
        offset += len(chunk)
    return None


def _compression(handle: Any) -> str | None:
    """The compression that a file's first bytes tell, or None."""
    handle.seek(0)
    start = handle.read(8)
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
