"""The events of an epoch that act on the gates. In a process alone they act at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from adapruner import ops
from adapruner.pruning.distributed import Ranks
from adapruner.pruning.gates import Gates


class Batch(NamedTuple):
    """The visits of a batch. An evaluated batch does not count in the training loss."""

    ids: Tensor
    losses: ops.MaskedLoss
    evaluated: bool
    predicted: Tensor | None = None  # predicted classes, int32 [B], where known


class LeftOut(NamedTuple):
    """Unreadable samples: (index, reason) of each."""

    unreadable: Sequence[tuple[int, str]]


Event: TypeAlias = Batch | LeftOut


class Visits(Protocol):
    """What happens in an epoch, in the order in which it acts on the gates."""

    @property
    def waiting(self) -> bool:
        """Whether the gates have not seen all visits. The same on all ranks."""

    def take(self, event: Event) -> Iterable[Event]:
        """Take an event of this rank. Returns the events to act on now."""

    def meet(self, call: str, gates: Gates, read: Tensor, **same: Any) -> Iterator[Event]:
        """Meet the other ranks. Yields the events of all ranks to act on, one after another.

        Args:
            call, same: see :meth:`adapruner.pruning.distributed.Ranks.meet`.
            gates: the gates, which have seen each event before the next one is asked for.
            read: bit mask of the samples that the epoch reads, the same on all ranks.

        Raises:
            IndexError, ValueError: a GPU has found an error in a batch of this rank.
            RankError: another rank has failed.
        """

    def forget(self) -> None:
        """Begin an epoch, or another state of the gates: drop what was recorded."""


class Direct:
    """The visits of a process alone. Each event acts at once."""

    waiting = False

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def take(self, event: Event) -> Iterable[Event]:
        return (event,)

    def meet(self, call: str, gates: Gates, read: Tensor, **same: Any) -> Iterator[Event]:
        self._ranks.meet(call)
        gates.check_errors()
        return iter(())

    def forget(self) -> None:
        """Nothing to drop."""


class Ended(Direct):
    """After the end of a run, no event acts: the result stands."""

    def take(self, event: Event) -> Iterable[Event]:
        return ()
