"""Addresses of object stores, as text. Importing this module does not import torch."""

from __future__ import annotations

import re
from typing import Any

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PASSWORD = re.compile(r"://[^/]*:[^/]*@")  # up to the last @, since a password may have one
_QUERY = re.compile(r"\?[^/]*=")


def is_address(data: Any) -> bool:
    """Whether ``data`` is text such as ``s3://bucket/name``."""
    return isinstance(data, str) and _ADDRESS.match(data) is not None


def check_address(address: str) -> None:
    """Raise ValueError for an address with a secret. Messages and results show addresses."""
    # github://ORG:REPO@REF/PATH has a repository there.
    if not address.startswith("github://") and (match := _PASSWORD.search(address)):
        shown = f"{address[: match.start()]}://…@{address[match.end() :]}"
        raise ValueError(
            f"an address must hold no password, since results and messages show it; found {shown}. "
            "Pass it as one of the storage_options of adapruner.data.RemoteOptions"
        )
    # Elsewhere a question mark is a part of a pattern.
    if address.lower().startswith("http") and (match := _QUERY.search(address)):
        raise ValueError(
            "an address must have no query, as presigned addresses have: one address names all "
            f"shards, or each shard; found {address[: match.start()]}?…"
        )
