"""Samplers of the samples that an epoch reads, for any DataLoader. They can be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler

from adapruner._util.checks import checked_whole
from adapruner.pruning import bitmask
from adapruner.pruning.distributed import Ranks
from adapruner.pruning.order import STRETCH, batch_count, epoch_batches, share


class Samples(Protocol):
    """A dataset as a pruner sees it. :class:`adapruner.data.Source` follows this protocol."""

    targets: Any
    sizes: Any
    doubts: dict[str, str]  # warnings about the samples, by name

    @property
    def bytes_read(self) -> int | None: ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str: ...

    def about(self) -> dict[str, Any]: ...


class EpochSource(Protocol):
    """A pruner as samplers and loaders see it. It decides which samples an epoch reads."""

    epoch: int
    seed: int
    num_samples: int
    may_drop: int  # samples that loaders leave out of an epoch on purpose
    samples: Samples | None
    ranks: Ranks

    def read_mask(self) -> torch.Tensor: ...

    def planned_reads(self) -> list[int]: ...

    def note_samples(self, samples: Samples) -> None: ...

    def note_share(self, ids: torch.Tensor, weight: float) -> None: ...

    def exclude(self, unreadable: Sequence[tuple[int, str]]) -> None: ...

    def warn(self, name: str, text: str | None) -> None: ...


class _EpochSampler:
    """The common part of both samplers: the epoch and the position in it.

    Args:
        pruner: decides which samples an epoch reads.
        unit: number of samples of all ranks that count as 1 in the position and in ``len``.
        drop_last: leave out a last unit that is not full.
        block_size: see :func:`adapruner.pruning.order.block_order`.
    """

    def __init__(
        self, pruner: EpochSource, unit: int, drop_last: bool, block_size: int | None
    ) -> None:
        if block_size is not None:
            block_size = checked_whole("block_size", block_size, 1)
        self._pruner = pruner
        self._unit, self._drop_last, self._block_size = unit, drop_last, block_size
        self._epoch, self._position = pruner.epoch, 0
        self._resumed = False
        self.ranks.meet(
            type(self).__name__, batch_size=unit, drop_last=drop_last, block_size=block_size
        )

    def set_epoch(self, epoch: int) -> None:
        """Check that ``epoch`` is the pruner's. Training frameworks call this.

        Raises:
            ValueError: ``epoch`` is not the pruner's. Call :meth:`adapruner.Pruner.step` at the end
                of each epoch, so that the pruner moves to the next one.
        """
        if epoch != self._pruner.epoch:
            raise ValueError(
                f"set_epoch must get the epoch of the pruner, {self._pruner.epoch}; found {epoch}. "
                "Call pruner.step() once at the end of each epoch, and load the pruner's state "
                "before the loader is prepared. Accelerate counts only epochs that end: after one "
                "that was cut short, call set_epoch(pruner.epoch) of its loader"
            )

    @property
    def epoch(self) -> int:
        """The pruner's current epoch."""
        return self._pruner.epoch

    @property
    def ranks(self) -> Ranks:
        """The ranks of the pruner."""
        return self._pruner.ranks

    def planned_samples(self) -> int:
        """Planned number of samples of the whole run.

        See :meth:`adapruner.Pruner.planned_reads`.
        """
        return sum(self._pruner.planned_reads())

    @property
    def start(self) -> int:
        """The position at which the next iteration starts: 0, or that of a loaded state."""
        return self._position if self._resumed else 0

    def begin(self) -> None:
        """Begin the current epoch: at its start, or at the position of a loaded state.

        Raises:
            ValueError: the loaded state is of another epoch.
        """
        epoch = self._pruner.epoch
        if self._resumed and epoch != self._epoch:
            raise ValueError(
                f"the loader's state is of another epoch than the pruner: expected {epoch}, found "
                f"{self._epoch}; load two states that were saved at the same time"
            )
        self._position = self.start
        self._epoch, self._resumed = epoch, False

    def deliver(self, count: int = 1) -> None:
        """Count units that the caller gets."""
        self._position += count

    def _pieces(self, size: int) -> Iterator[torch.Tensor]:
        """The whole order of the current epoch, cut into batches of ``size``."""
        pruner = self._pruner
        return epoch_batches(
            pruner.read_mask(),
            pruner.num_samples,
            pruner.seed,
            pruner.epoch,
            size,
            drop_last=self._drop_last,
            block_size=self._block_size,
        )

    def order(self) -> Iterator[int]:
        """The samples that the current epoch reads, on all ranks, in their order."""
        for piece in self._pieces(STRETCH):
            yield from piece.tolist()

    def _count(self, reads: int) -> int:
        return batch_count(reads, self._unit, self._drop_last)

    def __len__(self) -> int:
        return self._count(bitmask.count(self._pruner.read_mask()))

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch, and the settings.

        The position counts the units that were asked for. A DataLoader with worker processes asks
        ahead, so save the state of its loader instead; see :func:`adapruner.pruned_loader`.
        """
        here = self._epoch == self._pruner.epoch
        return {
            "seed": self._pruner.seed,
            "epoch": self._pruner.epoch,
            "batch_size": self._unit,
            "drop_last": int(self._drop_last),
            "block_size": self._block_size or 0,
            "position": self._position if here else 0,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next iteration continue at the position of a saved state.

        The state of the pruner from the same time must be loaded too.

        Raises:
            ValueError: the saved sampler had other settings.
        """
        own = self.state_dict()
        for name in ("seed", "batch_size", "drop_last", "block_size"):
            if state[name] != own[name]:
                raise ValueError(
                    f"the state is of a loader with other settings: expected {name} {own[name]}, "
                    f"found {state[name]}"
                )
        self._epoch, self._position, self._resumed = state["epoch"], state["position"], True


class Deliveries:
    """The position of a loader: batches that its caller got, without those that were read ahead.

    Args:
        sampler: makes the batches of the loader.
    """

    def __init__(self, sampler: PrunedBatchSampler) -> None:
        self._sampler = sampler
        self._epoch, self._position = sampler.epoch, 0

    def begin(self) -> None:
        """Begin an iteration, before the sampler is asked for its batches."""
        self._epoch, self._position = self._sampler.epoch, self._sampler.start

    def deliver(self) -> None:
        """Count a batch that the caller gets."""
        self._position += 1

    def state_dict(self) -> dict[str, int]:
        """The state of the sampler, at the position of the caller."""
        here = self._epoch == self._sampler.epoch
        return self._sampler.state_dict() | {"position": self._position if here else 0}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next iteration continue at the position of a saved state.

        Load the state of the pruner from the same moment too.

        Raises:
            ValueError: the saved loader had other settings.
        """
        self._sampler.load_state_dict(state)
        self._epoch, self._position = state["epoch"], state["position"]


class PrunedSampler(_EpochSampler, Sampler[int]):
    """Dataset indices of the samples that the current epoch of a pruner reads.

    Use it as the ``sampler`` of any :class:`torch.utils.data.DataLoader`. Each iteration is one
    epoch, in the order of :meth:`adapruner.Pruner.batches`. ``len`` is the number of samples of the
    current epoch. It is for one process; many processes need a :class:`PrunedBatchSampler`.

    Args:
        pruner: a :class:`adapruner.Pruner`.
        block_size: see :func:`adapruner.pruning.order.block_order`.

    Raises:
        ValueError: the pruner belongs to many ranks.

    Example:
        >>> from adapruner import Pruner, with_ids
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> dataset = TensorDataset(torch.randn(64, 5), torch.arange(64) % 3)
        >>> pruner = Pruner(len(dataset), epochs=2)
        >>> loader = DataLoader(with_ids(dataset), batch_size=16, sampler=PrunedSampler(pruner))
        >>> inputs, targets, ids = next(iter(loader))
    """

    def __init__(self, pruner: EpochSource, *, block_size: int | None = None) -> None:
        if not pruner.ranks.alone:
            raise ValueError(
                "PrunedSampler does not know the batches, so it cannot share them among "
                f"{pruner.ranks.size} ranks; use PrunedBatchSampler(pruner, batch_size)"
            )
        super().__init__(pruner, 1, False, block_size)

    def __iter__(self) -> Iterator[int]:
        self.begin()
        for index in islice(self.order(), self._position, None):
            self.deliver()
            yield index


class PrunedBatchSampler(_EpochSampler, Sampler[list[int]]):
    """Batches of dataset indices, for the ``batch_sampler`` of any DataLoader.

    Each iteration is one epoch, in the batches of :meth:`adapruner.Pruner.batches`. The last two
    batches share their samples evenly if the last batch would have a single sample. ``len`` is the
    number of batches of the current epoch.

    With W ranks, each rank gets its share of global batches of W·``batch_size`` samples, and all
    ranks get the same number of batches. A rank without a share of a small last batch gets the
    batch's first sample, which then counts for nothing in the loss and in the gates.

    Args:
        pruner: a :class:`adapruner.Pruner`.
        batch_size: samples in a batch of this process.
        drop_last: leave out a last batch that is not full.
        block_size: see :func:`adapruner.pruning.order.block_order`.

    Raises:
        ValueError: ``drop_last`` would leave out all samples of an epoch.
    """

    def __init__(
        self,
        pruner: EpochSource,
        batch_size: int,
        drop_last: bool = False,
        *,
        block_size: int | None = None,
    ) -> None:
        batch_size = checked_whole("batch_size", batch_size, 1)
        self.batch_size, self.drop_last = batch_size, drop_last
        size = batch_size * pruner.ranks.size
        if drop_last:
            pruner.may_drop = max(pruner.may_drop, size - 1)
        super().__init__(pruner, size, drop_last, block_size)
        if drop_last and not min(self.planned_lengths()):
            raise ValueError(
                f"drop_last would leave out every sample of an epoch: it reads "
                f"{min(pruner.planned_reads())}, fewer than a batch of {size}. Use a smaller batch "
                "or drop_last=False"
            )

    def planned_lengths(self) -> list[int]:
        """Planned number of batches of each epoch of the run.

        See :meth:`adapruner.Pruner.planned_reads`.
        """
        return [self._count(reads) for reads in self._pruner.planned_reads()]

    def planned_batches(self, accumulate: int = 1) -> int:
        """Planned number of batches of the whole run, for learning rate schedules.

        With gradient accumulation it is the number of optimiser steps. The last group of an epoch
        may have fewer batches, and it counts as a step.

        Args:
            accumulate: batches of an optimiser step.
        """
        accumulate = checked_whole("accumulate", accumulate, 1)
        return sum(-(-length // accumulate) for length in self.planned_lengths())

    def batches(self) -> Iterator[torch.Tensor]:
        """The batches of the current epoch that were not delivered yet, int64."""
        return islice(self._shares(), self._position, None)

    def _shares(self) -> Iterator[torch.Tensor]:
        ranks = self.ranks
        for batch in self._pieces(self._unit):
            own = share(batch, ranks.rank, ranks.size)
            weight = ranks.size * len(own) / len(batch)
            if weight == 0:
                own = batch[:1]
            if not ranks.alone:
                self._pruner.note_share(own, weight)
            yield own

    def __iter__(self) -> Iterator[list[int]]:
        self.begin()
        for batch in self.batches():
            self.deliver()
            yield batch.tolist()
