"""The interface of a pruning method: it drives the gates and ranks the samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from adapruner.pruning.gates import Gates
from adapruner.pruning.objective import Objective

# The entries of a run's epochs so far: see adapruner.PruneResult.history.
History: TypeAlias = Sequence[Mapping[str, Any]]

# Score of a sample whose gate has never stepped, because none of its losses was finite.
NEVER_FINITE = -1e3


@dataclass(frozen=True)
class Method(Objective, ABC):
    """A method: an objective that drives the gates, and a way to rank samples by them.

    Attributes:
        descent: share of the epochs after the warm-up in which the keep ratio comes down to r.
        chooses_best: whether the result is the selection with the best held-out loss; otherwise it
            is the last one.
        has_floors: whether classes have floors in the last selection, where they are known; see
            :func:`adapruner.pruning.quotas.class_floors`.
    """

    has_floors: ClassVar[bool] = False

    descent: float = 0.5
    chooses_best: bool = True

    def at(self, keep_ratio: float, epochs: int) -> Method:
        """This method for a run with that keep ratio and number of epochs."""
        return self

    def by_neighbours(self, history: History) -> bool:
        """Whether the kept set compares each sample with its neighbours in the dataset.

        Classes then have no floors.
        """
        return False

    @abstractmethod
    def scores(self, gates: Gates, history: History) -> Tensor:
        """Ranking score of each sample. A larger score is better.

        Args:
            gates: the gates of the run. Every sample was visited, and the warm-up is over.
            history: the epochs so far.

        Returns:
            Float32 ``[N]`` on the gates' device: −inf for an excluded sample, :data:`NEVER_FINITE`
            for a sample that never had a finite loss.
        """

    def figures(
        self, gates: Gates, history: History, classes: Tensor | None = None
    ) -> dict[str, float]:
        """What the method knows of the run, for the entry of the last epoch in ``history``.

        Args:
            gates, history: as in :meth:`scores`.
            classes: integers ``[N]``, where they are known.
        """
        return {}

    @abstractmethod
    def keys(self, gates: Gates, history: History, seed: int, final: bool) -> Tensor | None:
        """Keys of the next selection, which keeps the samples with the largest keys.

        Args:
            gates, history: as in :meth:`scores`.
            seed: seed of the run.
            final: whether the selection is the kept set of the result. Otherwise it is the read set
                of an epoch.

        Returns:
            Float32 ``[N]`` on the gates' device, or None if the gate logits are the keys.
        """
