"""Nested containers of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def to_cpu(state: Any) -> Any:
    """A nested state with its tensors copied to the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return rebuilt(state, map(to_cpu, state))
    return state


def rebuilt(like: Any, parts: Iterable[Any]) -> Any:
    """A list, tuple or namedtuple of the type of ``like``, with other parts."""
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    return type(like)(parts)
