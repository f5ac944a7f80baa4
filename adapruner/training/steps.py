"""Optimiser steps that leave out batches whose loss is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from adapruner.pruning.distributed import Ranks
from adapruner.training.parallel import gradients_are_finite

# The host asks a GPU about its batches once in this number of batches.
LOOK_EVERY = 64


class LeftOut(NamedTuple):
    """A batch whose step was left out.

    Attributes:
        ids: dataset indices of the samples in it whose input is not finite.
    """

    ids: list[int]


class _Queued(NamedTuple):
    """The tensors of a batch that stay on the device until the host looks at them."""

    finite: Tensor  # bool scalar: whether its loss is finite
    broken: Tensor  # bools [B]: samples whose input is not finite
    ids: Tensor  # [B]


class Steps:
    """The steps of an optimiser, without steps whose loss is not finite.

    Such a step would spoil the weights for good. A fused optimiser can leave out a step on the
    device, as with :class:`torch.amp.GradScaler`. The host then queues batches, and :meth:`look`
    returns the batches that were left out. With any other optimiser the host waits for each loss.

    All ranks leave out the same steps, without an exchange of their own: a rank whose loss is not
    finite makes the gradients of all ranks NaN.

    Args:
        optimizer: optimiser of the model.
        device: device of the losses.
        ranks: the ranks that average their gradients.

    Attributes:
        finite: number of batches with a finite loss, up to the last look.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, ranks: Ranks) -> None:
        self.optimizer = optimizer
        self.device = device
        self._ranks = ranks
        self.finite = 0
        # The host decides about the first step. torch's fused SGD sets its momentum in the first
        # step even if that step is left out, and would read memory that was never written.
        self._begun = False
        self._queue: list[_Queued] = []

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that :meth:`look` is due."""
        return len(self._queue) >= (LOOK_EVERY if self._fused and self._begun else 1)

    @property
    def _fused(self) -> bool:
        return all(group.get("fused") for group in self.optimizer.param_groups)

    def take(self, loss: Tensor, inputs: Any, ids: Tensor) -> None:
        """Run the backward pass and the step of a batch, if its loss is finite.

        Args:
            loss: scalar, with its graph.
            inputs: the batch, nested as collate functions nest it.
            ids: ``[B]``, dataset indices of the samples.
        """
        optimizer: Any = self.optimizer
        optimizer.zero_grad(set_to_none=True)
        finite = loss.detach().isfinite()
        waiting = not self._ranks.alone  # the other ranks, for the gradients of this one
        if waiting:
            loss = loss * torch.where(finite, 1.0, torch.nan)
            loss.backward()
            finite = gradients_are_finite(optimizer)
        if self._fused and self._begun:
            if not waiting:
                loss.backward()
            optimizer.found_inf = (~finite).float()
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf
        elif finite:
            if not waiting:
                loss.backward()
            optimizer.step()
            self._begun = True
            self.finite += 1
            return
        self._queue.append(_Queued(finite, _not_finite(inputs, len(ids), self.device), ids))

    def look(self) -> list[LeftOut]:
        """The batches that were left out since the last look. Waits for the device."""
        if not self._queue:
            return []
        told = [batch.finite[None] for batch in self._queue]
        flags = torch.cat(told + [batch.broken for batch in self._queue]).cpu()
        finite, rest = flags[: len(told)].tolist(), flags[len(told) :]
        left_out = []
        for was_finite, batch in zip(finite, self._queue, strict=True):
            broken, rest = rest[: len(batch.ids)], rest[len(batch.ids) :]
            if not was_finite:
                left_out.append(LeftOut(batch.ids.cpu()[broken].tolist()))
        self.finite += sum(finite)
        self._queue = []
        return left_out


def _may_not_be_finite(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _not_finite(inputs: Any, count: int, device: torch.device) -> Tensor:
    """The samples of a batch with a value in ``inputs`` that is not finite, bools ``[count]``."""
    found = torch.zeros(count, dtype=torch.bool, device=device)
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, (list, tuple)):
        for part in inputs:
            found |= _not_finite(part, count, device)
    elif _may_not_be_finite(inputs) and inputs.dim() and len(inputs) == count:
        found |= ~inputs.isfinite().reshape(count, -1).all(1)
    return found
