"""Nested containers of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def to_cpu(state: Any) -> Any:
    """A nested state with its tensors copied to the CPU.

    Tensors of which ranks hold shards are gathered, so all ranks must call this.
    """
    if isinstance(state, Tensor):
        return whole(state).detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return rebuilt(state, map(to_cpu, state))
    return state


def whole(tensor: Any) -> Any:
    """The whole of a tensor of which ranks hold shards (a DTensor); another tensor as it is."""
    # Not by its type: the import of torch.distributed.tensor takes seconds.
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_of(tensor: Any) -> Any:
    """This rank's shard of a tensor of which ranks hold shards; another tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def rebuilt(like: Any, parts: Iterable[Any]) -> Any:
    """A list, tuple or namedtuple of the type of ``like``, with other parts."""
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    return type(like)(parts)
