"""Checks of arguments that several places take."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapruner.ops import _C


def check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number; found {reprlib.repr(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; found {value}")


def check_tensors(**named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor; found {type(value).__name__}, {reprlib.repr(value)}"
            )


def check_one_process() -> None:
    """Raise RuntimeError in one of several processes of a distributed run."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        count = distributed.get_world_size()
        if count > 1:  # each would select by the losses that it alone has seen
            raise RuntimeError(f"adapruner does not run in several processes yet; found {count}")


def why_no_cuda() -> str | None:
    """Why nothing can run on a GPU here; None where it can."""
    built = _C.build_info()
    if built["cuda"] is None:
        return f"this build of adapruner has no CUDA kernels: {built['no_cuda']}"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def check_device(device: torch.device | str | None) -> torch.device:
    """The device, if the native kernels can run there; torch's default one where None.

    Raises:
        ValueError: they cannot; the message says why.
    """
    try:
        found = torch.get_default_device() if device is None else torch.device(device)
    except RuntimeError as error:  # no device that torch has heard of
        raise ValueError(f"device must be 'cpu' or 'cuda'; found '{device}'") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda'; found '{found}'")
    if found.type == "cuda" and (reason := why_no_cuda()):
        raise ValueError(f"device '{found}' cannot be used here: {reason}")
    return found


def check_labels(labels: Any, num_samples: int) -> Tensor:
    tensor = torch.as_tensor(labels, device="cpu")
    if tensor.dim() != 1 or len(tensor) != num_samples:
        raise ValueError(
            f"labels must have shape [{num_samples}], one per sample; found {list(tensor.shape)}"
        )
    if not _is_whole(tensor):
        raise TypeError(f"labels must be integers; found {tensor.dtype}")
    if tensor.numel() and int(tensor.min()) < 0:
        raise ValueError(f"labels must be at least 0; found {int(tensor.min())}")
    tensor = tensor.to(torch.int64)
    # What is held for each class is held for those that there are.
    return tensor.unique(return_inverse=True)[1] if int(tensor.max()) >= num_samples else tensor


def check_held_out(held_out: Any, num_samples: int) -> Tensor:
    tensor = torch.as_tensor(held_out, device="cpu").flatten()
    if tensor.numel() and not _is_whole(tensor):
        raise TypeError(f"held_out must hold dataset indices, integers; found {tensor.dtype}")
    tensor = tensor.to(torch.int64)
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_samples:
        raise ValueError(f"held_out must hold dataset indices in [0, {num_samples})")
    if tensor.unique().numel() != tensor.numel():
        raise ValueError("held_out holds an index twice")
    if tensor.numel() >= num_samples:
        raise ValueError("held_out leaves no sample to train on")
    return tensor


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
