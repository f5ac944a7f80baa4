"""Names of tar files, plain and compressed. Importing this module does not import torch."""

from __future__ import annotations

_COMPRESSED = (
    *(f".tar.{kind}" for kind in ("gz", "bz2", "xz", "zst", "lz4", "lzma", "lz", "br", "z")),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tlz"),
)


def is_tar(name: str) -> bool:
    """Whether ``name`` ends in .tar, in any case."""
    return name.lower().endswith(".tar")


def is_compressed_tar(name: str) -> bool:
    """Whether ``name`` has the ending of a compressed tar, in any case."""
    return name.lower().endswith(_COMPRESSED)
