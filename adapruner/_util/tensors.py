"""Nested containers of tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def to_cpu(state: Any) -> Any:
    """A nested state with its tensors copied to the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(to_cpu(value) for value in state)
    return state
