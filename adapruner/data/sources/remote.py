"""Shards in an object store: s3://, gs://, http:// and the other addresses that fsspec knows.

Nothing is downloaded whole. The index of a shard is read once, and then the byte ranges of the
samples that an epoch reads, many at a time.
"""

from __future__ import annotations

import glob
import io
import math
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.context import get_spawning_popen
from typing import Any, BinaryIO, TypeVar, cast

from adapruner._util.addresses import check_address, is_address
from adapruner._util.checks import checked_real, checked_whole
from adapruner._util.extras import require
from adapruner._util.tar_names import is_compressed_tar, is_tar
from adapruner.data.sources.base import Location
from adapruner.data.sources.byte_cache import ByteCache
from adapruner.data.sources.shard_index import (
    ShardIndex,
    check_index,
    index_content,
    parse_index,
    scan,
)
from adapruner.data.sources.store_errors import in_a_run, is_final, is_forbidden
from adapruner.data.sources.stores import index_path, member_content
from adapruner.data.sources.tar_members import BLOCK
from adapruner.errors import UnreachableError

_PIECE = 1 << 20  # bytes of a request while headers are scanned
_RECHECK = 300.0  # seconds after which a shard's version is looked up again
_LONGEST_PAUSE = 10.0  # seconds
# A generation of gs:// comes before its etag, which also changes with the metadata.
_VERSIONS = ("ETag", "generation", "etag", "md5Hash", "version_id", "checksum")
_DATES = ("mtime", "LastModified", "Last-Modified", "last_modified", "modify", "created")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class RemoteOptions:
    """How shards in an object store are read.

    Attributes:
        storage_options: arguments of the fsspec file system, such as ``{"anon": True}`` or
            ``{"endpoint_url": …}`` for ``s3://``. No file keeps them.
        parallel: requests at a time, in each process that reads.
        timeout: seconds until a request counts as failed. File systems of fsspec that are not
            asynchronous (``memory://``, ``sftp://``) have time-outs of their own.
        attempts: tries of a request. Pauses between them double from 0.2 s up to 10 s.
        cache_folder: a folder of this machine that keeps samples and indexes; None keeps nothing.
        cache_bytes: the bytes that the cache may hold.

    Raises:
        TypeError, ValueError: a value is of another type, or out of range.
    """

    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    parallel: int = 32
    timeout: float = 30.0
    attempts: int = 8
    cache_folder: str | os.PathLike[str] | None = None
    cache_bytes: int = 10 * 2**30

    def __post_init__(self) -> None:
        for name in ("parallel", "attempts", "cache_bytes"):
            object.__setattr__(self, name, checked_whole(name, getattr(self, name), 1))
        timeout = checked_real("timeout", self.timeout, "a number of seconds above 0")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a number of seconds above 0; found {timeout}")
        object.__setattr__(self, "timeout", timeout)


class RemoteStore:
    """Shards in an object store, read by ranges of bytes. See :class:`~.stores.Store`."""

    reads_many = True

    def __init__(self, options: RemoteOptions | None = None) -> None:
        self.options = RemoteOptions() if options is None else options
        folder = self.options.cache_folder
        self._cache = None if folder is None else ByteCache(folder, self.options.cache_bytes)
        self._traffic = _Traffic()
        self._seen: dict[str, _Seen] = {}
        self._forget_connections()

    # --- shards by name

    def find(self, pattern: str) -> list[str]:
        """The shards of an address, a folder or a glob pattern, sorted.

        Raises:
            FileNotFoundError: nothing fits.
            UnreachableError: the store did not answer.
        """
        system, path = self._system(pattern)
        several = glob.has_magic(pattern)
        if _is_shard(pattern) and not several:
            return [pattern]

        def search() -> list[str]:
            # With details, since the names that ftp:// gives without them lack the folder.
            return system.glob(path) if several else [e["name"] for e in system.ls(path, True)]

        try:
            found = self._ask(pattern, search)
        except FileNotFoundError:
            found = []
        tars = sorted(filter(_is_shard, found))
        if not tars:
            raise FileNotFoundError(f"no shard fits {pattern}; found {len(found)} other entries")
        return [_address(system, name, pattern) for name in tars]

    def size(self, shard: str) -> int:
        return self._look(shard).size

    def version(self, shard: str) -> str:
        return self._look(shard).version

    def open(self, shard: str, piece: int = _PIECE) -> BinaryIO:
        """A shard as a file that can seek. A request asks for ``piece`` bytes at least."""
        return cast(BinaryIO, io.BufferedReader(_RangeFile(self, shard), piece))

    def open_index(
        self, shard: str, folder: str | os.PathLike[str] | None, column: str
    ) -> ShardIndex:
        size, version = self.size(shard), self.version(shard)
        if not version:
            warnings.warn(
                f"{shard} has no ETag and no date, so a change of it cannot be seen, and it is not "
                "cached",
                stacklevel=2,
            )
        given = self._given_index(shard, folder)
        if given is not None:
            index, stated = parse_index(*given)
            check_index(index, stated, given[1], self.open(shard, BLOCK), size)
            return index
        if (kept := self._cached(version, "index", shard, column)) is not None:
            return parse_index(kept, f"the cached index of {shard}")[0]
        index = scan(self.open(shard), column)
        if index.damage is None and index.lines:
            self._keep(version, index_content(index, size), "index", shard, column)
        return index

    def _given_index(
        self, shard: str, folder: str | os.PathLike[str] | None
    ) -> tuple[bytes, str] | None:
        """The content and the name of an index file, beside the shard or in ``folder``."""
        if folder is None:
            name = f"{shard[: -len('.tar')]}.idx"
        elif is_address(folder):
            name = f"{os.fspath(folder).rstrip('/')}/{index_path(shard, '.').name}"
        else:
            path = index_path(shard, folder)
            return (path.read_bytes(), str(path)) if path.is_file() else None
        system, path_in_store = self._system(name)
        try:
            content = self._ask(name, lambda: self._fetch(system, path_in_store, None, None))
        except FileNotFoundError:
            return None
        except PermissionError:  # a store may hide what is missing from who must not list it
            if folder is not None:
                raise
            return None
        return content, name

    # --- ranges of bytes

    def read_members(self, places: Sequence[Location]) -> list[bytes | OSError]:
        shards = list({place.path for place in places})
        changed = dict(zip(shards, self.each(in_a_run(self._changed), shards), strict=True))

        member = in_a_run(self._member)

        def read(place: Location) -> bytes | OSError:
            if changed[place.path]:
                return OSError(f"{place.path} has changed or gone since it was opened")
            try:
                return member(place)
            except UnreachableError:
                raise
            except OSError as error:
                return error

        return list(self.each(read, places))

    def _member(self, place: Location) -> bytes:
        shard, offset, size = place
        assert size is not None
        version = self._seen[shard].version
        if (kept := self._cached(version, shard, offset, size)) is not None:
            return kept
        content = member_content(self.read_range(shard, offset - BLOCK, BLOCK + size), place)
        self._keep(version, content, shard, offset, size)
        return content

    def read_range(self, shard: str, start: int, count: int) -> bytes:
        """``count`` bytes of a shard from ``start`` on; fewer at its end.

        Raises:
            OSError: the shard is missing, or the server gives more than was asked for.
            UnreachableError: the store did not answer.
        """
        system, path = self._system(shard)
        count = min(count, self.size(shard) - start)
        if count <= 0:
            return b""
        content = self._ask(shard, lambda: self._fetch(system, path, start, start + count))
        if len(content) > count:
            raise OSError(
                f"cannot read {shard}: expected {count} bytes from {start}; found {len(content)}, "
                "since the server ignores ranges"
            )
        return content

    def _fetch(self, system: Any, path: str, start: int | None, end: int | None) -> bytes:
        """One request; ``end`` is within the shard."""
        content = self._call(system, "cat_file", path, start=start, end=end)
        self._traffic.add(len(content))
        if start is not None and end is not None and len(content) < end - start:
            raise OSError(f"expected {end - start} bytes from {start}; found {len(content)}")
        return cast(bytes, content)

    def _call(self, system: Any, name: str, path: str, **settings: Any) -> Any:
        """A method of a file system that makes one request, within the time of a request."""
        if not system.async_impl:
            return getattr(system, name)(path, **settings)
        asyn = require("fsspec.asyn", extra="remote")
        method = getattr(system, f"_{name}")
        return asyn.sync(system.loop, method, path, timeout=self.options.timeout, **settings)

    def _ask(self, what: str, call: Callable[[], _Answer]) -> _Answer:
        """The answer of the store, after several attempts.

        Raises:
            FileNotFoundError: what is missing.
            PermissionError: what is forbidden.
            UnreachableError: every attempt failed.
        """
        attempts = self.options.attempts
        for attempt in range(attempts):
            if attempt:
                time.sleep(min(0.1 * 2**attempt, _LONGEST_PAUSE))
            try:
                return call()
            except Exception as error:  # its type depends on the file system
                if is_forbidden(error):
                    raise PermissionError(f"the store refuses access to {what}: {error}") from error
                if is_final(error):
                    raise
                last = error
        raise UnreachableError(
            f"cannot read {what}: {attempts} attempts failed, the last with "
            f"{type(last).__name__}: {last}"
        ) from last

    def bytes_read(self) -> int:
        """Bytes fetched so far, with all worker processes; those of the cache do not count."""
        return self._traffic.bytes

    # --- versions

    def _look(self, shard: str) -> _Seen:
        if shard not in self._seen:
            self._seen[shard] = self._status(shard)
        return self._seen[shard]

    def _status(self, shard: str) -> _Seen:
        system, path = self._system(shard)

        def ask() -> Mapping[str, Any]:
            system.invalidate_cache()
            return cast(Mapping[str, Any], self._call(system, "info", path))

        try:
            info = self._ask(shard, ask)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no such shard: {shard}") from error
        if info.get("size") is None:
            raise OSError(f"cannot read {shard}: the server does not say its size")
        named = [info[name] for name in (*_VERSIONS, *_DATES) if info.get(name)]
        version = str(named[0]).strip('"') if named else ""
        return _Seen(int(info["size"]), version, time.monotonic())

    def _changed(self, shard: str) -> bool:
        """Whether a shard has another version than at first. Looked up every few minutes."""
        seen = self._look(shard)
        if time.monotonic() - seen.when > _RECHECK:
            try:
                now = self._status(shard)
                seen.changed = (now.size, now.version) != (seen.size, seen.version)
            except FileNotFoundError:  # its samples are unreadable, and those of no other shard
                seen.changed = True
            seen.when = time.monotonic()
        return seen.changed

    # --- the cache

    def _cached(self, version: str, *key: object) -> bytes | None:
        return None if self._cache is None else self._cache.get(version, *key)

    def _keep(self, version: str, value: bytes, *key: object) -> None:
        if self._cache is not None and version:
            self._cache.put(value, version, *key)

    # --- connections, one set for each process

    def _forget_connections(self) -> None:
        self._systems: dict[tuple[Any, ...], Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def _own_connections(self) -> None:
        if self._process != os.getpid():  # threads and sockets do not survive a fork
            self._forget_connections()

    def _system(self, address: str) -> tuple[Any, str]:
        """The fsspec file system of an address, and the path in it.

        Raises:
            ImportError: the file system is not installed.
            ValueError: fsspec does not know the protocol, or the address has a secret.
        """
        check_address(address)
        self._own_connections()
        fsspec = require("fsspec", extra="remote")
        protocol = address.partition("://")[0].lower()
        try:
            kind = fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            raise ImportError(
                f'{address} needs a package that is not installed: {error}; "adapruner[remote]"'
                " has those of s3://, gs:// and http://"
            ) from error
        # Some have their host in the address, such as ftp://.
        told = kind._get_kwargs_from_urls(address)
        # Threads cannot share a connection that is not asynchronous.
        thread = None if kind.async_impl else threading.get_ident()
        key = (protocol, str(told), thread)
        if key not in self._systems:
            options = told | dict(self.options.storage_options)
            self._systems[key] = kind(skip_instance_cache=True, **options)
        system = self._systems[key]
        return system, system._strip_protocol(address)

    def each(self, call: Callable[[Any], _Answer], items: Iterable[Any]) -> Iterator[_Answer]:
        self._own_connections()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.options.parallel, "adapruner-remote")
        return self._pool.map(call, items)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_systems": {}, "_pool": None, "_process": -1}


def object_store(
    patterns: Sequence[Any], options: RemoteOptions | None = None
) -> RemoteStore | None:
    """The object store of addresses; None if all patterns are paths.

    Raises:
        ValueError: some patterns are addresses and others are paths.
    """
    addresses = [pattern for pattern in patterns if is_address(pattern)]
    if not addresses:
        return None
    if len(addresses) < len(patterns):
        path = next(pattern for pattern in patterns if not is_address(pattern))
        raise ValueError(
            f"shards must all be files or all lie in an object store; found {path} and "
            f"{addresses[0]}"
        )
    return RemoteStore(options)


def _address(system: Any, name: str, pattern: str) -> str:
    """The address of an entry that ``pattern`` has found. It names the same host."""
    if "host" not in system._get_kwargs_from_urls(pattern):
        return cast(str, system.unstrip_protocol(name))
    protocol, _, rest = pattern.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}/{name.lstrip('/')}"


def _is_shard(name: str) -> bool:
    last = name.rpartition("/")[2]
    return (is_tar(last) or is_compressed_tar(last)) and not last.startswith(".")


@dataclass
class _Seen:
    """Size and version of a shard, and when they were looked up."""

    size: int
    version: str
    when: float
    changed: bool = False


class _RangeFile(io.RawIOBase):
    """A shard as a file. Each read is a request."""

    def __init__(self, store: RemoteStore, shard: str) -> None:
        self.name = shard
        self._store, self._position = store, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._store.size(self.name),
        }[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._store.read_range(self.name, self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Traffic:
    """Bytes, counted over a process and its workers."""

    def __init__(self) -> None:
        # Of the context "spawn", because its lock can be handed to workers of every kind.
        self._count = multiprocessing.get_context("spawn").Value("q")

    def add(self, count: int) -> None:
        with self._count.get_lock():
            self._count.value += count

    @property
    def bytes(self) -> int:
        return int(self._count.value)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:  # a copy that is no worker counts for itself
            return _Traffic, ()
        return _shared, (self._count,)


def _shared(count: Any) -> _Traffic:
    traffic = _Traffic.__new__(_Traffic)
    traffic._count = count
    return traffic
