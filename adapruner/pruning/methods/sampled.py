"""The default method: samples are drawn. Chances for the kept set follow the mean pressure of each
sample. Chances for the samples of an epoch follow their last losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapruner import ops
from adapruner._util.seeds import Stream, stream_seed
from adapruner.pruning import bitmask, neighbours
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods.base import NEVER_FINITE, History, Method

# A sample is fitted if its last loss is below this share of the mean loss of the first epoch.
FITTED = 0.1
# Losses are summed as whole multiples of the loss scale / 2²⁰, so that no order of additions
# matters. Larger losses than 2²⁰ times the loss scale count as that.
_SUM_UNIT = 2.0**20
# Logarithms of chances are rounded to multiples of 1/64, so that every device gets the same.
_LOG_STEPS = 64


@dataclass(frozen=True)
class Sampled(Method):
    """Samples are drawn without replacement. All losses are in units of the first epoch's mean.

    The kept set is drawn with chances in proportion to e^(−β·d). d is the distance of a sample's
    mean pressure from the target range, and 0 inside the range. The range ends later where a model
    has fitted few samples: at most ``most_unfit`` of the samples lie above it. β grows with the
    number of epochs that the gates have seen, from 0 after one epoch to ``sharpness``. So a short
    run draws nearly by chance, and a long one nearly ranks.

    The samples of an epoch are drawn with chances in proportion to their last loss over the mean
    last loss, but at least ``least_read``. A sample above the target range has this least chance.

    The slope is constant, there is no balance term, and gates do not weight the training loss. So a
    gate logit is a sum of pressures and gives their mean.

    Attributes:
        sharpness: the largest β.
        few_epochs: after the first epoch and so many more, β is two thirds of ``sharpness``. Before
            that it is smaller still, by the square of the share of them that has passed. A model of
            few epochs has fitted little, and new models learn the samples that it has not fitted
            slowly.
        target_range: smallest and largest mean pressure of samples that a model learns from. The
            model fits samples below the range early, and does not fit samples above it.
        most_unfit: largest share of the samples above the range. The range ends at a quantile of
            the mean pressures, if that is above the end of ``target_range``. A small kept set needs
            fewer samples in the range: see ``small_keep_ratio``.
        unfit_end: where a range ends that a model has fitted little of: see ``unfit_farthest``.
        unfit_farthest: largest distance above a range that ends at ``unfit_end`` or later. Such a
            model does not tell hard samples from wrong ones.
        hard_side_weight: factor of distances above the range.
        small_keep_ratio: below this keep ratio, ``share`` is keep ratio / ``small_keep_ratio``.
        least_read: smallest relative loss in the draw of an epoch's samples. Smaller relative
            losses count as this value.
        share: 1, or less for a small kept set, which needs easy samples. Distances below the range
            count share⁴ times, and the least share of the samples within or below the range,
            1 − ``most_unfit``, counts ``share`` times. :meth:`at` sets it.
    """

    has_floors = True

    sharpness: float = 20.0
    few_epochs: int = 8
    target_range: tuple[float, float] = (-0.15, 0.35)
    most_unfit: float = 0.4
    unfit_end: float = 0.55
    unfit_farthest: float = 0.1
    hard_side_weight: float = 1.5
    small_keep_ratio: float = 0.3
    least_read: float = 0.3
    share: float = 1.0

    def at(self, keep_ratio: float, epochs: int) -> Sampled:
        share = min(1.0, keep_ratio / self.small_keep_ratio)
        # All steps of a run move a gate by a fraction of its start value. So all steps are nearly
        # alike, and a gate logit is a sum of pressures.
        return replace(self, share=share, step_size=1 / epochs)

    def logit_per_pressure(self, history: History) -> float:
        """Fall of a gate logit below 1 for each unit of mean pressure.

        Computed with a pressure of 1 in every epoch of ``history`` after the warm-up; 0 without
        such an epoch.
        """
        logit = 1.0
        for entry in _seen(history):
            gate = 1 / (1 + math.exp(-entry["slope"] * logit))
            logit -= self.step_size * entry["slope"] * gate * (1 - gate)
        return 1 - logit

    def current_sharpness(self, history: History) -> float:
        """β after the epochs of ``history``."""
        more = max(len(_seen(history)) - 1, 0)
        few = self.few_epochs
        return self.sharpness * more / (more + few / 2) * min(1.0, more / few) ** 2

    def scores(self, gates: Gates, history: History) -> Tensor:
        """1 minus the distance from the target range, weighted by its side.

        No distance counts as more than that of the largest pressure from ``target_range``. Above
        a range that ends later it counts as less: ``unfit_farthest`` from ``unfit_end`` on.
        """
        pressures = self._pressures(gates, history)
        easiest, hardest = self.target_range
        farthest = self.pressure_cap - hardest
        scores = (easiest - pressures).mul_(self.share**4).clamp_(0, farthest)
        end = self._range_end(pressures)
        moved = min((end - hardest) / (self.unfit_end - hardest), 1.0)
        farthest += moved * (self.unfit_farthest - farthest)
        pressures.sub_(end).clamp_(max=farthest).mul_(self.hard_side_weight)
        torch.maximum(scores, pressures, out=scores)
        scores.neg_().add_(1)
        scores.masked_fill_(gates.logits == 1, NEVER_FINITE)
        return scores.masked_fill_(gates.logits == -torch.inf, -torch.inf)

    def _range_end(self, pressures: Tensor) -> float:
        """The upper end of the target range. Infinite pressures are of excluded samples."""
        # On the CPU, since torch has no deterministic kthvalue for CUDA.
        known = pressures[pressures != torch.inf].cpu()
        if not len(known):
            return self.target_range[1]
        most = 1 - (1 - self.most_unfit) * self.share
        above = min(int(most * len(known)), len(known) - 1)
        return max(self.target_range[1], known.kthvalue(len(known) - above).values.item())

    def _pressures(self, gates: Gates, history: History) -> Tensor:
        """Mean pressure of each sample, float32 ``[N]``; 0 before the first step of a gate."""
        return (1 - gates.logits).div_(self.logit_per_pressure(history) or 1.0)

    def keys(self, gates: Gates, history: History, seed: int, final: bool) -> Tensor | None:
        logs = self.keep_scores(gates, history) if final else self.read_scores(gates, history)
        key = stream_seed(seed, len(history), Stream.DRAW)
        return ops.sampling_keys(logs, gates.age, 1.0, 0.0, key)

    def keep_scores(self, gates: Gates, history: History) -> Tensor:
        """Logarithm of each sample's chance to be kept, −β·d, float32 ``[N]``.

        Where neighbours are alike, it is 0, or how much lower that is than the mean of the
        neighbours, beyond :data:`~adapruner.pruning.neighbours.TOLERANCE`.
        :data:`NEVER_FINITE` and −inf as in :meth:`scores`.
        """
        return self._keep_scores(gates, history, self.by_neighbours(history))

    def _keep_scores(self, gates: Gates, history: History, by_neighbours: bool) -> Tensor:
        logs = self.scores(gates, history).sub_(1).mul_(self.current_sharpness(history))
        logs.masked_fill_(gates.logits == 1, NEVER_FINITE)
        logs.masked_fill_(gates.logits == -torch.inf, -torch.inf)
        if by_neighbours:
            neighbours.compare(logs, NEVER_FINITE)
        return logs

    def read_scores(self, gates: Gates, history: History) -> Tensor:
        """Logarithm of each sample's chance to be read in the next epoch, float32 ``[N]``.

        The chance of a sample without a finite last loss is that of the mean loss. Without last
        losses (``track_losses=False``) all samples have it. −inf for an excluded sample.
        """
        scores = torch.zeros_like(gates.logits)
        mean = mean_last_loss(gates)
        if gates.last_loss is not None and mean > 0:
            for part, losses in _pieces(scores, gates.last_loss):
                chances = (losses.double() / mean).clamp_(min=self.least_read)
                part.copy_(chances.log_().mul_(_LOG_STEPS).round_().div_(_LOG_STEPS))
                part.masked_fill_(~losses.isfinite(), 0.0)
            unfit = self._pressures(gates, history) > self.target_range[1]
            scores.masked_fill_(unfit, math.log(self.least_read))
        return scores.masked_fill_(gates.logits == -torch.inf, -torch.inf)

    def by_neighbours(self, history: History) -> bool:
        return bool(history) and history[-1].get("neighbours", 0.0) >= neighbours.ALIKE

    def figures(
        self, gates: Gates, history: History, classes: Tensor | None = None
    ) -> dict[str, float]:
        """``fitted``, ``chance`` and ``neighbours``.

        ``fitted`` is the share of samples that the model has fitted. ``neighbours`` tells how alike
        neighbours in the dataset are: the correlation of their gate logits, minus that of samples
        further apart, with the means of the classes taken out. ``chance`` is e^H / N, with the
        entropy H of the chances in a draw of the kept set from N samples: 1 if all chances are
        equal, near 0 if few samples have nearly all.
        """
        told = {"neighbours": round(neighbours.likeness(gates.logits, classes), 3)}
        if gates.last_loss is None:
            return told
        limit, fitted, count = FITTED * gates.real("loss_scale"), 0, 0
        for losses in _finite_losses(gates):
            fitted += int((losses < limit).sum())
            count += len(losses)
        logs_of_all = self._keep_scores(gates, history, self.by_neighbours([told]))
        total, moment = 0.0, 0.0  # of the weights w, and of w·log w
        for (scores,) in _pieces(logs_of_all):
            logs = scores[scores != -torch.inf].double()
            weights = logs.exp()
            total += float(weights.sum())
            moment += float((weights * logs).sum())
        effective = math.exp(math.log(total) - moment / total) if total else 0.0
        return {
            "fitted": round(fitted / max(count, 1), 3),
            "chance": round(effective / max(gates.integer("population"), 1), 3),
        } | told


def mean_last_loss(gates: Gates) -> float:
    """Mean of the finite last losses of samples that are not excluded; 0 without any."""
    scale, total, count = gates.real("loss_scale"), 0, 0
    for losses in _finite_losses(gates):
        multiples = (losses.double() / scale * _SUM_UNIT).round_().clamp_(max=_SUM_UNIT**2)
        total += int(multiples.long().sum())
        count += len(losses)
    return total / _SUM_UNIT * scale / max(count, 1)


def _seen(history: History) -> list[Mapping[str, Any]]:
    """The epochs in which gates stepped."""
    return [entry for entry in history if entry["phase"] == "prune"]


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of N values in pieces, so that temporary values take little memory."""
    return zip(*(tensor.split(bitmask.PIECE) for tensor in tensors), strict=True)


def _finite_losses(gates: Gates) -> Iterator[Tensor]:
    """The finite last losses of samples that are not excluded, piece by piece."""
    if gates.last_loss is not None:
        for losses, logits in _pieces(gates.last_loss, gates.logits):
            yield losses[losses.isfinite() & (logits != -torch.inf)]


# In units of the first epoch's mean loss, losses from 0.14 to 0.46 are in the target range, which
# may end later. All losses above 1 have the same pressure.
METHOD = Sampled(
    easy_weight=-0.15,
    pressure_cap=1.0,
    slope=(1.0, 1.0),
    balance=0.0,
    balance_gain=0.0,
    weighs=False,
    by_first_loss=True,
    chooses_best=False,
)
