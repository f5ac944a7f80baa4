"""What the machine's memory gives, measured in the same run as what is held against it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .alternate import alternate

VALUES = 64_000_000  # 256 MB: far beyond every cache


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second at the present number of threads, from torch's own sum and copy.

    A copy counts what it reads and what it writes.
    """

    read: float
    copy: float


def measure_bandwidth() -> Bandwidth:
    source = torch.ones(VALUES)
    target = torch.zeros(VALUES)
    timings = alternate(
        {"read": source.sum, "copy": lambda: target.copy_(source)}, seconds=0.5, least=9
    )
    return Bandwidth(
        read=source.nbytes / timings["read"].median,
        copy=2 * source.nbytes / timings["copy"].median,
    )
