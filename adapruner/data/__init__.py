"""Sources of samples, and the loaders that read them."""

from adapruner.data.sources.base import Source
from adapruner.data.sources.find import as_source
from adapruner.data.sources.remote import RemoteOptions

__all__ = ["RemoteOptions", "Source", "as_source"]
