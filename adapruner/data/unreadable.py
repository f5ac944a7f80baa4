"""Samples that cannot be read: what is recorded, and when a run stops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from adapruner.errors import UnreadableSampleError
from adapruner.pruning.sampler import EpochSource

# So many samples that cannot be read, and none before them that can, stop a run.
ENOUGH_FAILURES = 16

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Unreadable(NamedTuple):
    """A sample that could not be read, and why."""

    sample: int
    reason: str


def describe_error(error: BaseException) -> str:
    """The reason that is recorded: without addresses in memory, which differ from run to run."""
    return f"{type(error).__name__}: {_ADDRESS.sub('', str(error))}"


def refuse_unreadable(unreadable: Sequence[Unreadable], on_error: str) -> None:
    """Raise for the first of ``unreadable``, if errors are to be raised."""
    if unreadable and on_error == "raise":
        raise UnreadableSampleError(
            f"sample {unreadable[0].sample} cannot be read: {unreadable[0].reason}"
        )


class Failures:
    """What could not be read: reported to the pruner, or raised.

    Args:
        pruner: decides what each epoch reads.
        num_samples: N.
        on_error: "skip" or "raise".
    """

    def __init__(self, pruner: EpochSource, num_samples: int, on_error: str) -> None:
        if on_error not in ("skip", "raise"):
            raise ValueError(f'on_error must be "skip" or "raise"; found {on_error!r}')
        self._pruner, self._num_samples, self._on_error = pruner, num_samples, on_error
        self._any_read = False
        self._first: list[Unreadable] = []  # before anything could be read

    def note(self, unreadable: list[Unreadable], read: int) -> None:
        """Take in what a batch lacks, and how many samples it has.

        Raises:
            UnreadableSampleError: errors are to be raised, or nothing at all could be read so far.
        """
        refuse_unreadable(unreadable, self._on_error)
        self._any_read = self._any_read or read > 0
        if not self._any_read:
            self._first += unreadable
            if len(self._first) >= min(ENOUGH_FAILURES, self._num_samples):
                # More likely the code than the data.
                raise UnreadableSampleError(
                    f"none of the first {len(self._first)} samples can be read; the first one, "
                    f"sample {self._first[0].sample}: {self._first[0].reason}"
                )
        if unreadable:
            self._pruner.exclude(unreadable)
