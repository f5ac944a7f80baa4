"""What the errors of file systems of fsspec say about a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from adapruner.errors import UnreachableError

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def is_final(error: Exception) -> bool:
    """Whether another attempt would get the same answer."""
    statuses = list(_statuses(error))
    if isinstance(error, FileNotFoundError) and statuses:
        # fsspec calls every failure of a look-up over http so. The status tells more.
        return statuses[-1] in (404, 410)
    return isinstance(error, _FINAL)


def is_forbidden(error: Exception) -> bool:
    """Whether the store refuses access."""
    return isinstance(error, PermissionError) or any(s in (401, 403) for s in _statuses(error))


def _statuses(error: BaseException) -> Iterator[Any]:
    """The status of each answer of http among an error and its cause; None without an answer."""
    for each in (error, error.__cause__):
        if isinstance(each, TimeoutError) or type(each).__module__.startswith("aiohttp"):
            yield getattr(each, "status", None)


def in_a_run(read: Callable[[_Item], _Answer]) -> Callable[[_Item], _Answer]:
    """``read`` of what could be read before. A refusal then says nothing about a sample.

    Raises:
        UnreachableError: the store refuses access.
    """

    def checked(item: _Item) -> _Answer:
        try:
            return read(item)
        except PermissionError as error:
            raise UnreachableError(f"{error}; credentials may have expired") from error

    return checked
