"""The devices that the native kernels can run on."""

from __future__ import annotations

import torch

from adapruner.ops.native import _C


def why_no_cuda() -> str | None:
    """The reason why the kernels cannot run on a GPU, or None where they can."""
    built = _C.build_info()
    if built["cuda"] is None:
        return f"this build of adapruner has no CUDA kernels: {built['no_cuda']}"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def check_device(device: torch.device | str | None) -> torch.device:
    """A device that the native kernels can run on; torch's default device where None.

    Raises:
        ValueError: the kernels cannot run on the device. The message gives the reason.
    """
    try:
        found = torch.get_default_device() if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:  # torch does not know the device
        raise ValueError(f"device must be 'cpu' or 'cuda'; found '{device}'") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda'; found '{found}'")
    if found.type == "cuda" and (reason := why_no_cuda()):
        raise ValueError(f"device '{found}' cannot be used here: {reason}")
    return found
