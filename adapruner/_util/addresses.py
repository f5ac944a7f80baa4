"""Addresses of object stores, as text. Importing this module does not import torch."""

from __future__ import annotations

import re
from typing import Any

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(data: Any) -> bool:
    """Whether ``data`` is text such as ``s3://bucket/name``."""
    return isinstance(data, str) and _ADDRESS.match(data) is not None
