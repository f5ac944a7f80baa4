"""Optimiser steps that leave out batches whose loss or gradients are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

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

    finite: Tensor  # bool scalar: whether its step was taken
    broken: Tensor  # bools [B]: samples whose input is not finite
    ids: Tensor  # [B]


class Steps:
    """The steps of an optimiser, without steps whose loss or gradients are not finite.

    Such a step would spoil the weights for good. The batch may also have spoilt the running
    statistics of batch norms, so they get back the values from before the batch. So do statistics
    that are not finite after a good step, as after values of 1e38.

    A fused optimiser can leave out a step on the device, as with :class:`torch.amp.GradScaler`. The
    host then queues batches, and :meth:`look` returns the batches that were left out. With any
    other optimiser the host waits for each batch.

    All ranks leave out the same steps, without an exchange of their own: a rank whose loss is not
    finite makes the gradients of all ranks NaN.

    Args:
        model: the model.
        optimizer: optimiser of the model.
        device: device of the losses.

    Attributes:
        finite: number of batches of the epoch with a finite loss and finite gradients, up to the
            last look.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.device = device
        self._statistics = _RunningStatistics(model, device)
        self.finite = 0
        # The host decides about the first step. torch's fused SGD sets its momentum in the first
        # step even if that step is left out, and would read memory that was never written.
        self._begun = False
        self._queue: list[_Queued] = []

    def begin(self) -> None:
        """Begin an epoch. The model may have been changed since the last one."""
        self.finite = 0
        self._statistics.note()

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that :meth:`look` is due."""
        return len(self._queue) >= (LOOK_EVERY if self._fused and self._begun else 1)

    @property
    def _fused(self) -> bool:
        return all(group.get("fused") for group in self.optimizer.param_groups)

    def take(self, loss: Tensor, inputs: Any, ids: Tensor) -> None:
        """Run the backward pass of a batch, and its step if loss and gradients are finite.

        Args:
            loss: scalar, with its graph.
            inputs: the batch, nested as collate functions nest it.
            ids: ``[B]``, dataset indices of the samples.
        """
        optimizer: Any = self.optimizer
        optimizer.zero_grad(set_to_none=True)
        # A loss that is not finite makes the gradients NaN, on all ranks.
        (loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)).backward()
        finite = gradients_are_finite(optimizer)
        if self._fused and self._begun:
            optimizer.found_inf = (~finite).float()
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf
        elif finite:
            optimizer.step()
            self._begun = True
            self.finite += 1
            self._statistics.settle(finite)
            return
        self._statistics.settle(finite)
        self._queue.append(_Queued(finite, not_finite_inputs(inputs, len(ids), self.device), ids))

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


class _RunningStatistics:
    """The running means and variances of a model's norms, as they were after the last good batch.

    Their values are kept in one flat tensor, so a batch costs a few calls, however many norms there
    are. The host does not wait for the device.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._norms = [norm for norm in model.modules() if isinstance(norm, _NormBase)]
        self._device = device
        self.note()

    def note(self) -> None:
        """Take over the current values."""
        self._good = self._flat()

    def settle(self, taken: Tensor) -> None:
        """Take over the values after a batch whose step was ``taken``, a bool scalar.

        If it was not, or if values are not finite now, the norms get back the values from before.
        """
        now = self._flat()
        good = taken & (now.isfinite() | ~self._good.isfinite()).all()
        self._good = torch.where(good, now, self._good)
        if tensors := self._tensors():
            parts = self._good.split([tensor.numel() for tensor in tensors])
            shaped = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
            torch._foreach_copy_(tensors, shaped)  # one launch on a GPU, for all norms

    def _tensors(self) -> list[Tensor]:
        # Looked up each time, because moving a model replaces its buffers.
        pairs = ((norm.running_mean, norm.running_var) for norm in self._norms)
        return [tensor for pair in pairs for tensor in pair if tensor is not None]

    def _flat(self) -> Tensor:
        tensors = self._tensors()
        if not tensors:
            return torch.ones(0, device=self._device)
        return torch.cat([tensor.flatten() for tensor in tensors])


def _may_not_be_finite(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def not_finite_inputs(inputs: Any, count: int, device: torch.device) -> Tensor:
    """The samples of a batch with a value in ``inputs`` that is not finite, bools ``[count]``."""
    found = torch.zeros(count, dtype=torch.bool, device=device)
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, (list, tuple)):
        for part in inputs:
            found |= not_finite_inputs(part, count, device)
    elif _may_not_be_finite(inputs) and inputs.dim() and len(inputs) == count:
        found |= ~inputs.isfinite().reshape(count, -1).all(1)
    return found
