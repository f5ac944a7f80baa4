"""Loads the native library, which registers ``torch.ops.adapruner.*``."""

from __future__ import annotations

import torch

try:
    from adapruner import _C
except ImportError as error:
    raise ImportError(
        f"the native library of adapruner cannot be loaded ({error}). It works with the torch "
        f"version that it was built with; found torch {torch.__version__}. Build it again, in the "
        "folder of its sources: pip install --no-build-isolation --force-reinstall --no-deps ."
    ) from error

__all__ = ["_C"]
