"""What a run saw of each sample: losses, visits, and the class that the model predicted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapruner import ops

NO_CLASS = -1
MOST_VISITS = 32_000  # of a sample; 767 less than int16 holds, for repeats within a batch
_LEAST = 1e-12  # mean loss of an epoch whose losses are all 0


class Record:
    """Visits, relative losses and predicted classes of all samples, on one device.

    It takes 10 bytes a sample. No call waits for the device.

    Args:
        num_samples: N.
        device: device of the tensors.

    Attributes:
        visits: number of visits with a finite loss, int16 ``[N + 1]``. Visits after
            :data:`MOST_VISITS` are not recorded. Place N takes ids that are out of range. The
            operators report such ids, and a GPU must not write outside a tensor.
        relative_sum: sum of the relative losses of these visits, float32 ``[N + 1]``. A relative
            loss is the loss divided by the mean loss of the epoch so far. Losses fall during a run,
            and samples are visited in different epochs, so plain losses cannot be compared.
        predicted: class predicted at the last visit, int32 ``[N + 1]``; −1 where none is known.
    """

    def __init__(self, num_samples: int, device: torch.device | str | None = None) -> None:
        count = num_samples + 1
        self.visits = torch.zeros(count, dtype=torch.int16, device=device)
        self.relative_sum = torch.zeros(count, dtype=torch.float32, device=device)
        self.predicted = torch.full((count,), NO_CLASS, dtype=torch.int32, device=device)

    def note_losses(self, ids: Tensor, losses: ops.MaskedLoss, mean_loss: Tensor) -> None:
        """Count a visit of each sample with a finite loss.

        A sample whose rows are all ignored has no loss, and its pressure is not finite.

        Args:
            ids: ``[B]``, dataset indices.
            losses: losses of the batch.
            mean_loss: mean loss of the epoch so far, a scalar on the device.
        """
        places = self._places(ids)
        finite = losses.pressure.isfinite()
        finite &= self.visits[places] < MOST_VISITS
        relative = losses.sample_loss.detach().to(torch.float32) / mean_loss.clamp(min=_LEAST)
        self.visits.index_add_(0, places, finite.to(torch.int16))
        self.relative_sum.index_add_(0, places, relative.where(finite, 0))

    def note_classes(self, ids: Tensor, predicted: Tensor) -> None:
        """Note the predicted classes, int32 ``[B]``, of a batch."""
        self.predicted[self._places(ids)] = predicted

    def relative_losses(self) -> Tensor:
        """Mean relative loss of each sample, float32 ``[N]``; NaN where no loss was seen."""
        return (self.relative_sum / self.visits)[:-1]

    def _places(self, ids: Tensor) -> Tensor:
        ids = ids.long()
        if not ids.is_cuda:  # the operators of the CPU have raised for ids that are out of range
            return ids
        last = len(self.visits) - 1
        return ids.where((ids >= 0) & (ids < last), last)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, not copied."""
        return {
            "visits": self.visits,
            "relative_sum": self.relative_sum,
            "predicted": self.predicted,
        }


def logits_of_classes(outputs: Any, targets: Any) -> Tensor | None:
    """The outputs ``[B, C]`` if the targets are classes, whole numbers ``[B]``; else None."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return None
    return outputs if outputs.dim() == 2 and targets.shape == outputs.shape[:1] else None


def predicted_classes(logits: Tensor) -> Tensor | None:
    """The class with the largest logit, int32 ``[B]``, of logits ``[B, C]``; else None.

    Logits ``[B, C, ...]`` predict many classes for each sample, so none is noted.
    """
    if logits.dim() != 2 or not logits.shape[1]:
        return None
    return logits.detach().argmax(1).to(torch.int32)
