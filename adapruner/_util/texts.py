"""Texts of objects, the same in every process."""

from __future__ import annotations

import re

_MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def without_memory_addresses(text: str) -> str:
    """``text`` without the addresses in memory that Python writes for objects without a repr."""
    return _MEMORY_ADDRESS.sub("", text)
