"""Files that the process may not read, also if root runs the tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534


@contextmanager
def permissions_count() -> Iterator[None]:
    """Where the tests run as root, which may read everything, the process is nobody meanwhile.

    What is read must lie in a :func:`public_folder`; what is imported meanwhile must be readable.
    """
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(_NOBODY)
    except PermissionError:
        pytest.skip("root without the capability to be somebody else")
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike the folders of pytest."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
