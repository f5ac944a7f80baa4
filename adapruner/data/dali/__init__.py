"""The DALI loader: decoding and augmentation in native threads (the extra "dali")."""

from adapruner.data.dali.loader import DaliLoader

__all__ = ["DaliLoader"]
