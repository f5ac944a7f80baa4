"""Samples whose labels are likely wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapruner.pruning.arguments import check_classes
from adapruner.pruning.record import NO_CLASS

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult


class Suspects(NamedTuple):
    """Samples whose labels are likely wrong, the likeliest first.

    Attributes:
        indices: dataset indices, int64 ``[S]``.
        labels: given classes, int64 ``[S]``.
        predicted: classes that the model predicted at the last visit, int64 ``[S]``.
        doubts: relative loss, plus the last loss as a multiple of the mean last loss, float32
            ``[S]``, descending.
    """

    indices: Tensor
    labels: Tensor
    predicted: Tensor
    doubts: Tensor

    def __repr__(self) -> str:
        first = self.indices[:10].tolist()
        return f"Suspects({len(self.indices)} samples, the likeliest first: {first})"


def find_suspects(result: PruneResult, targets: Any | None = None) -> Suspects:
    """The suspects of a result; :meth:`adapruner.PruneResult.suspects` documents it."""
    if targets is not None:
        classes = check_classes("targets", targets, result.num_samples)
    elif result.targets is not None:
        classes = result.targets
    else:
        raise ValueError(
            "suspects need the class of every sample; found a result without targets, because the "
            "dataset of the run does not list them: pass them as suspects(targets)"
        )
    if result.predicted is None or not (result.predicted != NO_CLASS).any():
        raise ValueError(
            "suspects need the classes that the model predicted; found a result without them. "
            "A loss of logits [B, C] and classes [B] notes them; Pruner.weigh takes logits="
        )
    if result.relative_losses is None or result.sample_losses is None:
        raise ValueError("suspects need the losses of the run; found a result without them")
    labels = classes.long().numpy()
    predicted = result.predicted.long().numpy()
    relative = result.relative_losses.double().numpy()
    known = (predicted != NO_CLASS) & np.isfinite(relative)
    above = relative > _class_means(relative, labels, known)
    found = np.flatnonzero(known & (predicted != labels) & above)
    doubts = doubt(result)[found]
    order = np.argsort(-doubts, kind="stable")
    found = found[order]
    return Suspects(
        torch.from_numpy(found),
        torch.from_numpy(labels[found]),
        torch.from_numpy(predicted[found]),
        torch.from_numpy(doubts[order].astype(np.float32)),
    )


def doubt(result: PruneResult) -> np.ndarray:
    """The rank of each sample among suspects, float64 ``[N]``; NaN where no loss was seen."""
    assert result.relative_losses is not None
    assert result.sample_losses is not None
    last = result.sample_losses.double().numpy()
    mean = last[np.isfinite(last)].mean() if np.isfinite(last).any() else 1.0
    values: np.ndarray = result.relative_losses.double().numpy() + last / max(mean, 1e-12)
    return values


def _class_means(relative: np.ndarray, labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """For each sample the average of ``relative`` over its class, float64 ``[N]``."""
    _, place = np.unique(labels, return_inverse=True)
    sums = np.bincount(place[known], weights=relative[known], minlength=place.max() + 1)
    counts = np.bincount(place[known], minlength=place.max() + 1)
    averages: np.ndarray = sums / np.maximum(counts, 1)
    return averages[place]
