"""adapruner learns which samples of a training set are worth keeping.

Each name below is imported when it is first used. torch takes seconds to load, and
``adapruner --help`` and ``python -m adapruner.info`` work without it.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from adapruner._version import __version__

if TYPE_CHECKING:
    from adapruner.data.loaders.user_loader import pruned_loader
    from adapruner.data.sources.find import as_source
    from adapruner.data.with_ids import with_ids
    from adapruner.errors import (
        DatasetMismatchError,
        FileFormatError,
        FolderInUseError,
        RankError,
        UnreadableSampleError,
    )
    from adapruner.pruning.pruner import Pruner
    from adapruner.pruning.sampler import PrunedBatchSampler, PrunedSampler
    from adapruner.results.result import PruneResult
    from adapruner.training.fast_prune import fast_prune

__all__ = [
    "DatasetMismatchError",
    "FileFormatError",
    "FolderInUseError",
    "PruneResult",
    "PrunedBatchSampler",
    "PrunedSampler",
    "Pruner",
    "RankError",
    "UnreadableSampleError",
    "__version__",
    "as_source",
    "fast_prune",
    "pruned_loader",
    "with_ids",
]

_HOMES = {
    "DatasetMismatchError": "adapruner.errors",
    "FileFormatError": "adapruner.errors",
    "FolderInUseError": "adapruner.errors",
    "PruneResult": "adapruner.results.result",
    "PrunedBatchSampler": "adapruner.pruning.sampler",
    "PrunedSampler": "adapruner.pruning.sampler",
    "Pruner": "adapruner.pruning.pruner",
    "RankError": "adapruner.errors",
    "UnreadableSampleError": "adapruner.errors",
    "as_source": "adapruner.data.sources.find",
    "fast_prune": "adapruner.training.fast_prune",
    "pruned_loader": "adapruner.data.loaders.user_loader",
    "with_ids": "adapruner.data.with_ids",
}
_MODULES = ("data", "ops", "report", "vision")

if not TYPE_CHECKING:  # a type checker that sees __getattr__ accepts any name

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            value = getattr(_import_module(_HOMES[name]), name)
        elif name in _MODULES:
            return _import_module(f"adapruner.{name}")  # the import sets the attribute
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
