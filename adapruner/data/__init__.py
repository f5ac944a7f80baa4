"""Where samples come from, and how they are read; and, for convenience, where the kept ones go."""

from adapruner.data.sources.base import Source
from adapruner.data.sources.find import as_source

__all__ = ["Source", "as_source"]
