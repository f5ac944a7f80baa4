"""Nested containers of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
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


def missing_part(weight: Tensor) -> str | None:
    """How a weight is kept, if it cannot be used apart from its layer; None if it can.

    FSDP and DeepSpeed ZeRO-3 give a layer its whole weight while the layer runs. At other times a
    rank has a part of it. Gradients of such a weight are not shared with the other ranks.
    """
    if hasattr(weight, "full_tensor"):
        return "a DTensor, which FSDP2 or tensor parallelism shards"
    if hasattr(weight, "ds_id"):
        return "a parameter that DeepSpeed ZeRO-3 shards"
    if getattr(weight, "_fsdp_flattened", False) or _is_freed(weight):
        return "a parameter that FSDP shards"
    return None


def _is_freed(tensor: Tensor) -> bool:
    """Whether the memory of a tensor was freed, as FSDP does with a layer's whole weights."""
    if torch.compiler.is_compiling() or tensor.numel() == 0:
        return False
    try:
        return tensor.untyped_storage().nbytes() == 0
    except (NotImplementedError, RuntimeError):  # of torch.func, which has no memory of its own
        return False


def shard_of(tensor: Any) -> Any:
    """This rank's shard of a tensor of which ranks hold shards; another tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def rebuilt(like: Any, parts: Iterable[Any]) -> Any:
    """A list, tuple or namedtuple of the type of ``like``, with other parts."""
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    return type(like)(parts)
