"""adapruner learns which samples of a training set are worth keeping."""

from importlib.metadata import version as _version

from adapruner.data.sources import as_source
from adapruner.files import FileFormatError
from adapruner.data.loader import UnreadableSampleError
from adapruner.pruner import Pruner
from adapruner.result import DatasetMismatchError, PruneResult
from adapruner.training import fast_prune

__version__ = _version("adapruner")

__all__ = [
    "DatasetMismatchError",
    "FileFormatError",
    "PruneResult",
    "Pruner",
    "UnreadableSampleError",
    "as_source",
    "fast_prune",
]
