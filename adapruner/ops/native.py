"""Loads the native library, which registers ``torch.ops.adapruner.*``."""

from __future__ import annotations

import torch

try:
    from adapruner import _C
except ImportError as error:
    raise ImportError(
        f"adapruner's native library cannot be loaded ({error}). It is compiled against the torch "
        f"that was there when adapruner was installed; this is torch {torch.__version__}. "
        "Build it anew, in its sources: pip install --no-build-isolation --force-reinstall "
        "--no-deps ."
    ) from error

__all__ = ["_C"]
