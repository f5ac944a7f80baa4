"""Records of unreadable samples, and the errors that stop a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adapruner._util.texts import without_memory_addresses
from adapruner.errors import UnreadableSampleError
from adapruner.pruning.sampler import EpochSource

# A run stops if this many samples are unreadable before the first readable one.
ENOUGH_FAILURES = 16


class Unreadable(NamedTuple):
    """A sample that could not be read, and why."""

    sample: int
    reason: str


def describe_error(error: BaseException) -> str:
    """The reason as text. Memory addresses are removed, because they differ between runs."""
    return f"{type(error).__name__}: {without_memory_addresses(str(error))}"


def refuse_unreadable(unreadable: Sequence[Unreadable], on_error: str) -> None:
    """Raise for the first of ``unreadable`` if ``on_error`` is "raise"."""
    if unreadable and on_error == "raise":
        raise UnreadableSampleError(
            f"sample {unreadable[0].sample} cannot be read: {unreadable[0].reason}"
        )


def no_sample_readable() -> UnreadableSampleError:
    """The error of an epoch without a readable sample."""
    return UnreadableSampleError("expected a readable sample in the epoch; found none")


class Failures:
    """Reports unreadable samples to the pruner, or raises.

    Args:
        pruner: decides which samples each epoch reads.
        num_samples: N.
        on_error: "skip" or "raise".
    """

    def __init__(self, pruner: EpochSource, num_samples: int, on_error: str) -> None:
        if on_error not in ("skip", "raise"):
            raise ValueError(f'on_error must be "skip" or "raise"; found {on_error!r}')
        self._pruner, self._num_samples, self._on_error = pruner, num_samples, on_error
        self._any_read = False
        self._first: list[Unreadable] = []  # until a sample can be read

    def note(self, unreadable: list[Unreadable], read: int) -> None:
        """Note the unreadable samples of a batch, and the number of samples that it has.

        Raises:
            UnreadableSampleError: ``on_error`` is "raise", or no sample could be read so far.
        """
        refuse_unreadable(unreadable, self._on_error)
        self._any_read = self._any_read or read > 0
        if not self._any_read:
            self._first += unreadable
            if len(self._first) >= min(ENOUGH_FAILURES, self._num_samples):
                # The code is more likely wrong than the data.
                raise UnreadableSampleError(
                    f"none of the first {len(self._first)} samples can be read; found for sample "
                    f"{self._first[0].sample}: {self._first[0].reason}"
                )
        if unreadable:
            self._pruner.exclude(unreadable)
