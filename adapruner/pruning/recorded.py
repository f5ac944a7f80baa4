"""The visits of one of many ranks: recorded in the epoch, and repeated by all ranks at its end."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from adapruner import ops
from adapruner.pruning.distributed import Ranks, call_by_call
from adapruner.pruning.gates import Gates
from adapruner.pruning.record import NO_CLASS
from adapruner.pruning.visits import Batch, Event, LeftOut

# Calls whose visits are stored together, and later exchanged together.
PIECE = 256
# The recorded loss of a sample that has ignored rows only. No loss has this value.
NO_ROWS = -torch.inf


class Recorded:
    """The visits of one of many ranks. Events act when the ranks meet.

    An epoch visits a sample once. So nothing that a rank computes in an epoch depends on the steps
    of gates in that epoch, and it is enough to record the ids and the losses of each call. When the
    ranks meet, every rank gathers the records of all ranks and repeats all calls: call c of all
    ranks is one batch, in the order of the ranks. The gates then are what they would be in one
    process with these batches, bit for bit.

    A record takes 16 bytes for each visit. Ids travel as int64, losses as float32, and predicted
    classes, if there are any, as int32.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.forget()

    def forget(self) -> None:
        # The rank that has visited each sample in this epoch, from 1; made when it is needed.
        self._visited_by: Tensor | None = None
        self._clear()

    def _clear(self) -> None:
        # The size of each call; ~size for an evaluated batch.
        self._sizes = array("q")
        self._ids = _Pieces()
        self._losses = _Pieces()
        self._classes = _Pieces()
        self._predicts = False  # whether any call of the epoch has predicted classes
        # Number of calls before the sample was found, index, reason.
        self._unreadable: list[tuple[int, int, str]] = []

    @property
    def waiting(self) -> bool:
        return len(self._sizes) > 0

    @torch.compiler.disable  # a compiled loop would be compiled anew for each record
    def take(self, event: Event) -> Iterable[Event]:
        if isinstance(event, LeftOut):
            calls = len(self._sizes)
            self._unreadable += [(calls, int(index), why) for index, why in event.unreadable]
            return ()
        ids, losses, evaluated, predicted = event
        self._sizes.append(~len(ids) if evaluated else len(ids))
        self._ids.append(ids.to(torch.int64, copy=True))
        loss = losses.sample_loss.detach().float().clamp(min=0)
        self._losses.append(loss.masked_fill_(losses.pressure == torch.inf, NO_ROWS))
        self._predicts |= predicted is not None
        if predicted is None:
            predicted = torch.full_like(ids, NO_CLASS, dtype=torch.int32)
        self._classes.append(predicted)
        return ()

    def meet(self, call: str, gates: Gates, read: Tensor, **same: Any) -> Iterator[Event]:
        error = None
        try:
            gates.check_errors()
        except (IndexError, ValueError) as found:
            error = found
        calls = len(self._sizes)
        same["calls_of_loss_and_observe"] = calls
        same["predictions"] = self._predicts
        same["samples_to_read"] = hashlib.blake2b(read.numpy().data, digest_size=8).hexdigest()
        notes = self._ranks.exchange(call, self._unreadable, error, **same)
        left_out = defaultdict(list)  # before each call
        for place, index, reason in chain.from_iterable(notes):
            left_out[place].append((index, reason))
        for number, (size, ids, losses, no_rows, predicted) in enumerate(self._gather(gates)):
            if number in left_out:
                yield LeftOut(left_out[number])
            if len(ids):
                again = ops.masked_loss(losses, ids, gates.logits, gates.state)
                if no_rows is not None:
                    again.pressure.masked_fill_(no_rows, torch.inf)
                yield Batch(ids, again, size < 0, predicted)
        if calls in left_out:
            yield LeftOut(left_out[calls])
        self._clear()

    def _gather(
        self, gates: Gates
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None, Tensor | None]]:
        """The calls of all ranks.

        Each is its size (as in a record), ids, losses, samples without rows and predicted classes.
        """
        ranks, calls = self._ranks, len(self._sizes)
        own = torch.tensor(self._sizes, dtype=torch.int32, device="cpu")
        sizes = ranks.gather(own, [calls] * ranks.size).view(ranks.size, calls)
        self._check_kinds(sizes)
        lengths = torch.where(sizes < 0, ~sizes, sizes).long()
        every_piece = (self._ids.pieces(), self._losses.pieces(), self._classes.pieces())
        for begin, own_ids, own_losses, own_classes in zip(
            range(0, calls, PIECE), *every_piece, strict=True
        ):
            part = lengths[:, begin : begin + PIECE]
            counts = part.sum(1).tolist()
            every_id = ranks.gather(own_ids, counts)
            self._check_visited_once(every_id, counts, len(gates.logits))
            order = call_by_call(part).to(every_id.device)
            ids, losses = every_id[order], ranks.gather(own_losses, counts)[order]
            no_rows = losses == NO_ROWS
            losses.masked_fill_(no_rows, 0)
            classes = ranks.gather(own_classes, counts)[order] if self._predicts else None
            batches = part.sum(0).tolist()
            yield from zip(
                sizes[0, begin : begin + PIECE].tolist(),
                ids.split(batches),
                losses.split(batches),
                no_rows.split(batches) if no_rows.any() else repeat(None, len(batches)),
                repeat(None, len(batches)) if classes is None else classes.split(batches),
                strict=True,
            )

    def _check_kinds(self, sizes: Tensor) -> None:
        evaluated = sizes < 0
        if (evaluated != evaluated[0]).any():
            raise ValueError(
                "all ranks must call loss (or weigh) and observe in the same order, also for an "
                "empty batch; found another order on some ranks"
            )

    def _check_visited_once(self, ids: Tensor, counts: list[int], num_samples: int) -> None:
        """Raise ValueError if two ranks have visited the same sample."""
        size = self._ranks.size
        if self._visited_by is None:
            kind = torch.uint8 if size < 255 else torch.int16 if size < 32767 else torch.int32
            self._visited_by = torch.zeros(num_samples, dtype=kind, device=ids.device)
        number = torch.arange(1, size + 1, dtype=self._visited_by.dtype, device="cpu")
        own = number.repeat_interleave(torch.tensor(counts, device="cpu")).to(ids.device)
        before = self._visited_by[ids]
        self._visited_by[ids] = own
        twice = ((before != 0) & (before != own)) | (self._visited_by[ids] != own)
        if twice.any():
            raise ValueError(
                "a sample must be visited on one rank in an epoch; found sample "
                f"{int(ids[twice][0])} on two ranks. Read by pruner.loader, PrunedBatchSampler or "
                "pruner.batches, which give each rank its share"
            )


class _Pieces:
    """The tensors of many calls. Those of :data:`PIECE` calls are stored as one."""

    def __init__(self) -> None:
        self._whole: list[Tensor] = []
        self._recent: list[Tensor] = []

    def append(self, tensor: Tensor) -> None:
        self._recent.append(tensor)
        if len(self._recent) == PIECE:
            self._whole.append(torch.cat(self._recent))
            self._recent = []

    def pieces(self) -> Iterator[Tensor]:
        yield from self._whole
        if self._recent:
            yield torch.cat(self._recent)
