"""The exceptions of this package that callers can catch by name."""

from __future__ import annotations


class DatasetMismatchError(ValueError):
    """A result, a checkpoint or a state belongs to another dataset."""


class FileFormatError(ValueError):
    """A file is cut off or altered, or of another kind or version than expected."""


class FolderInUseError(OSError):
    """Another run is writing its checkpoints to the folder."""


class UnreadableSampleError(RuntimeError):
    """A sample cannot be read, and the run must stop."""


class RankError(RuntimeError):
    """Another process of a distributed run has failed, so this one ends too."""


class UnreachableError(OSError):
    """An object store did not answer. The run must stop; no sample is at fault."""


class MissingEndMarkWarning(UserWarning):
    """A tar has no end-of-archive mark. Its members are whole, but it may be cut off after one."""


class PruningWarning(UserWarning):
    """A run or its result is doubtful. The message says why; ``PruneResult.warnings`` keeps it."""
