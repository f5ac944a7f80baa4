"""The loss of the best constant prediction, which a model reaches that knows only the targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

SampleLoss: TypeAlias = Callable[[Any, Any], Tensor]

# Samples whose targets tell the loss of a constant, and steps to find it.
ENOUGH_SAMPLES = 1024
_MOST_STEPS = 50
# So many targets do not tell it better.
_MARGIN = 1.1


class ConstantLoss:
    """Notes the first targets of a run, and finds the constant with the smallest mean loss.

    Attributes:
        value: that mean loss; None before :meth:`close`, or where it is not known.
        doubt: why it is not known, or None.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self.doubt: str | None = None
        self._closed = False
        self._loss: SampleLoss | None = None
        self._device = torch.device("cpu")
        self._batches: list[tuple[torch.Size, Any]] = []  # shapes of outputs, and targets

    def note(self, loss: SampleLoss, shape: torch.Size, targets: Any, device: torch.device) -> None:
        """Note the targets of a batch. The host does not wait for the device.

        Args:
            loss: function of (outputs, targets) that returns ℓ ``[B]``.
            shape: of the outputs. Only ``[B]`` and ``[B, C]`` are noted.
            targets: of the batch.
            device: of the outputs.
        """
        if self._closed or self._noted >= ENOUGH_SAMPLES or len(shape) not in (1, 2):
            return
        if isinstance(targets, Tensor):
            targets = targets.detach().clone()  # a loop may use the memory again
        self._loss, self._device = loss, device
        self._batches.append((shape, targets))

    def close(self, value: float | None = None) -> None:
        """Find the loss, or take one that is known. Later batches do not change it."""
        if value is not None:
            self.value = value
        elif self._loss is None:
            return
        else:
            try:
                self.value = self._least_mean(self._loss)
            except Exception as error:  # of the user's function, which never saw a constant
                self.doubt = f"{type(error).__name__}: {error}"
        self._closed, self._loss, self._batches = True, None, []

    def limited(self, mean_loss: float) -> float:
        """The unit of losses for a mean loss of the first epoch."""
        if self.value is None or mean_loss <= _MARGIN * self.value:
            return mean_loss
        return self.value

    @property
    def _noted(self) -> int:
        return sum(shape[0] for shape, _ in self._batches)

    def _least_mean(self, loss: SampleLoss) -> float | None:
        """The smallest mean loss of a constant that L-BFGS finds, from 0."""
        constant = torch.zeros(self._batches[0][0][1:], device=self._device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [constant], max_iter=_MOST_STEPS, line_search_fn="strong_wolfe"
        )
        least = math.inf

        def mean_loss() -> Tensor:
            nonlocal least
            total = torch.zeros((), device=self._device)
            for shape, targets in self._batches:
                # A copy for each sample, because a loss may work in place.
                total = total + loss(constant.expand(shape).clone(), targets).sum()
            mean = total / self._noted
            # Not by backward(): a loss may have parameters of its own, which must get no gradient.
            (constant.grad,) = torch.autograd.grad(mean, constant)
            least = min(least, mean.item())
            return mean

        with torch.enable_grad(), torch.autocast(self._device.type, enabled=False):
            optimizer.step(mean_loss)
        return least if math.isfinite(least) and least > 0 else None


def cross_entropy_of(
    weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> SampleLoss:
    """The cross entropy of each sample, for logits ``[B, C]`` and any targets ``[B]``."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        counted = (targets >= 0) & (targets < logits.shape[1]) & (targets != ignore_index)
        losses = functional.cross_entropy(
            logits,
            torch.where(counted, targets, 0).long(),
            weight=None if weight is None else weight.to(logits),
            label_smoothing=label_smoothing,
            reduction="none",
        )
        return losses * counted

    return loss
