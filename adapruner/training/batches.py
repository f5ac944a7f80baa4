"""Batches on the device of the model, in the memory format of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapruner._util.tensors import rebuilt


def memory_format_of(model: nn.Module) -> torch.memory_format:
    """The memory format of the model's 4-D weights, which 4-D inputs should have too."""
    weights = [weight for weight in model.parameters() if weight.dim() == 4]
    last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    plain = all(weight.is_contiguous() for weight in weights)
    return torch.channels_last if last and not plain else torch.preserve_format


def to_device(
    value: Any, device: torch.device, memory_format: torch.memory_format = torch.preserve_format
) -> Any:
    """``value`` with its tensors on ``device``, nested as collate functions nest them.

    Lists, tuples and namedtuples keep their types. Any other object that has a method ``to``, such
    as :class:`torch.nn.utils.rnn.PackedSequence`, is moved by it. Mappings become dicts.

    Args:
        memory_format: memory format of tensors of four dimensions.
    """

    def moved(part: Any) -> Any:
        return to_device(part, device, memory_format)

    if isinstance(value, Tensor):
        form = memory_format if value.dim() == 4 else torch.preserve_format
        return value.to(device, non_blocking=True, memory_format=form)
    if isinstance(value, Mapping):
        return {key: moved(part) for key, part in value.items()}
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return rebuilt(value, map(moved, value))
    return value


@contextmanager
def batch_norms_for(model: nn.Module, samples: int) -> Iterator[None]:
    """Let the batch norms of ``model`` take a batch of one sample, by their running statistics.

    One value has no variance, and torch refuses it. Larger batches are normalised as ever.
    """
    if samples > 1:
        yield
        return
    norms = [
        norm
        for norm in model.modules()
        # A SyncBatchNorm has the statistics of all ranks, which wait for this one.
        if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm) and norm.training
    ]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
