"""Sources of samples, and the loaders that read them."""

from adapruner.data.sources.base import Source
from adapruner.data.sources.find import as_source

__all__ = ["Source", "as_source"]
