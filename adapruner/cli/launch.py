"""The processes that ``torchrun`` starts. It describes each of them in environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def rank() -> int | None:
    """The rank of this process, or None for a process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the other processes. Yields the device of this one.

    Args:
        device: "cpu" or a CUDA device. "cuda" is a GPU of its own for each process.
    """
    if rank() is None:
        yield device
        return
    import torch
    from torch import distributed

    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if device != "cpu":
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield device
    finally:
        distributed.destroy_process_group()
