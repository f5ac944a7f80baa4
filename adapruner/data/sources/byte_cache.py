"""A bounded cache of bytes on disk, which several processes can share."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

_CHECKSUM_BYTES = 16
_STALE = 3600.0  # seconds; a temporary file of this age was left by a process that was killed


class ByteCache:
    """Values of bytes by key. The values that were used longest ago make room for new ones.

    Each value is one file with a checksum. A file that is cut off or altered counts as missing. A
    file appears whole or not at all, also if a process is killed.

    Args:
        folder: folder of the cache; made if it is missing.
        most_bytes: the bytes that the cache may hold. Each process looks after it has written a
            64th of it, so W processes exceed it by W / 64 at most.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], most_bytes: int) -> None:
        self._folder, self._most = Path(folder).absolute(), most_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder):  # a bad place shows now
            pass
        self._unchecked = 0
        self._full = False
        self._make_room()

    def get(self, *key: object) -> bytes | None:
        """The value of ``key``, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        value = content[_CHECKSUM_BYTES:]
        if content[:_CHECKSUM_BYTES] != _checksum(value):
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # another process has made room
            os.utime(path)
        return value

    def put(self, value: bytes, *key: object) -> None:
        """Keep ``value`` under ``key``.

        Warns:
            UserWarning: the value cannot be written. The cache then takes no more values.
        """
        if self._full or len(value) > self._most:
            return
        path = self._path(key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(_checksum(value) + value)
            os.replace(temporary, path)
        except OSError as error:
            self._full = True
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            warnings.warn(
                f"cannot write to the cache in {self._folder}, which takes no more values: {error}",
                stacklevel=2,
            )
            return
        self._unchecked += len(value)
        if self._unchecked > self._most // 64:
            self._make_room()

    def _path(self, key: tuple[object, ...]) -> Path:
        name = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=20).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _make_room(self) -> None:
        """Delete the values that were used longest ago, down to nine tenths of the limit."""
        self._unchecked = 0
        found, total, now = [], 0, time.time()
        for path in self._folder.glob("??/*"):
            try:
                status = path.stat()
                if path.suffix == ".tmp" and now - status.st_mtime > _STALE:
                    path.unlink()
                    continue
            except OSError:  # another process has deleted it
                continue
            total += status.st_size
            found.append((status.st_mtime_ns, status.st_size, path))
        if total <= self._most:
            return
        for _, size, path in sorted(found):
            if total <= self._most * 9 // 10:
                return
            path.unlink(missing_ok=True)
            total -= size


def _checksum(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_CHECKSUM_BYTES).digest()
