"""Where samples come from, and where the kept ones go."""

from adapruner.data.export import export
from adapruner.data.sources import Source, as_source

__all__ = ["Source", "as_source", "export"]
