"""Prunes with an installed wheel, and says where it is. ``make wheel`` runs it in a fresh venv."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import adapruner


def main() -> None:
    if not adapruner.__file__.startswith(sys.prefix):
        sys.exit(f"expected adapruner of {sys.prefix}; found {adapruner.__file__}")
    inputs, targets = torch.randn(100, 5), torch.arange(100) % 3
    result = adapruner.fast_prune(torch.nn.Linear(5, 3), (inputs, targets), 0.7, 3, progress=False)
    if len(result.indices) != 70:
        sys.exit(f"expected 70 kept samples; found {len(result.indices)}")
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "libgomp" in line}
    if len(runtimes) != 1:
        sys.exit(f"expected one OpenMP runtime; found {', '.join(sorted(runtimes))}")
    print(f"{adapruner.__file__}: kept 70 of 100 samples")


if __name__ == "__main__":
    main()
