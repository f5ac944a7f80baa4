"""What an epoch reads, in which order, and how far a loader has come with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from adapruner import masks
from adapruner.arguments import check_whole
from adapruner.data.base import Source
from adapruner.data.order import batch_count, epoch_batches


class Follows(Protocol):
    """What a loader asks of the one who decides what an epoch reads."""

    epoch: int
    seed: int
    num_samples: int

    def note_source(self, source: Source) -> None: ...

    def read_mask(self) -> torch.Tensor: ...

    def exclude(self, unreadable: Sequence[tuple[int, str]]) -> None: ...


def checked_batch_size(batch_size: int) -> int:
    """``batch_size``; ValueError unless it is a whole number of at least 1."""
    whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1; found {batch_size!r}")
    return int(batch_size)


class Plan:
    """What an epoch reads, batch by batch, and how far a loader has come with it.

    Iterated, the sampler of a DataLoader: the batches as lists of (epoch, index).
    """

    def __init__(
        self, follows: Follows, batch_size: int, drop_last: bool, block_size: int | None = None
    ) -> None:
        self.batch_size = checked_batch_size(batch_size)
        if block_size is not None:
            check_whole("block_size", block_size, 1)
        self._follows = follows
        self._drop_last, self._block_size = drop_last, block_size
        self._epoch, self._position = follows.epoch, 0
        self._taken_up = False

    def begin(self) -> None:
        """Set out on the current epoch: at its start, or where a state that was loaded was.

        Raises:
            ValueError: that state is not of the current epoch.
        """
        epoch = self._follows.epoch
        if self._taken_up and epoch != self._epoch:
            raise ValueError(
                f"this loader was at epoch {self._epoch} when its state was saved, the pruner is "
                f"at epoch {epoch}: load the state that was saved with it"
            )
        self._position = self._position if self._taken_up else 0
        self._epoch, self._taken_up = epoch, False

    def batches(self) -> Iterator[torch.Tensor]:
        """The batches of the current epoch that are still to be delivered, int64."""
        follows = self._follows
        every = epoch_batches(
            follows.read_mask(),
            follows.num_samples,
            follows.seed,
            follows.epoch,
            self.batch_size,
            drop_last=self._drop_last,
            block_size=self._block_size,
        )
        return islice(every, self._position, None)

    def deliver(self) -> None:
        """Count a batch that goes to the caller."""
        self._position += 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._follows.epoch
        return ([(epoch, index) for index in batch.tolist()] for batch in self.batches())

    def __len__(self) -> int:
        reads = masks.count(self._follows.read_mask())
        return batch_count(reads, self.batch_size, self._drop_last)

    def state_dict(self) -> dict[str, int]:
        """Where in its epoch the loader is, counted in batches delivered; plain values."""
        here = self._epoch == self._follows.epoch
        return {
            "seed": self._follows.seed,
            "epoch": self._follows.epoch,
            "batch_size": self.batch_size,
            "drop_last": int(self._drop_last),
            "block_size": self._block_size or 0,
            "position": self._position if here else 0,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Have the next iteration go on where a saved one was, the pruner's state being loaded too.

        Raises:
            ValueError: the loader saved had other settings than this one.
        """
        own = self.state_dict()
        for name in ("seed", "batch_size", "drop_last", "block_size"):
            if state[name] != own[name]:
                raise ValueError(
                    f"this loader has {name} {own[name]}, the one saved had {state[name]}"
                )
        self._epoch, self._position, self._taken_up = state["epoch"], state["position"], True
