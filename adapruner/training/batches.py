"""Batches on the device of the model, in the memory format of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def memory_format_of(model: nn.Module) -> torch.memory_format:
    """The memory format of the model's 4-D weights, which 4-D inputs should have too."""
    weights = [weight for weight in model.parameters() if weight.dim() == 4]
    last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    plain = all(weight.is_contiguous() for weight in weights)
    return torch.channels_last if last and not plain else torch.preserve_format


def to_device(
    value: Any, device: torch.device, memory_format: torch.memory_format = torch.preserve_format
) -> Any:
    """Tensors in ``value``, nested as collate functions nest them, on ``device``.

    Args:
        memory_format: format of tensors with four dimensions.
    """
    if isinstance(value, Tensor):
        form = memory_format if value.dim() == 4 else torch.preserve_format
        return value.to(device, non_blocking=True, memory_format=form)
    if isinstance(value, Mapping):
        return {key: to_device(v, device, memory_format) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_device(v, device, memory_format) for v in value]
    return value
