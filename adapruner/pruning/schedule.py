"""Pruning performance controller (PPC): keeps the model good enough for its losses to count.

It sets the pace at which the gates sharpen (slope k) and the keep ratio comes down, and holds it
back when the held-out loss falls behind its best. Where samples are ranked, not drawn, that loss
also says which selection to return.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor


@dataclass
class Controller:
    """The pace of a run.

    Args:
        epochs: epochs of the run.
        warmup_epochs: epochs at the start in which gates rest.
        keep_ratio: r.
        slope: first and last k.
        descent: share of the epochs after the warm-up in which the keep ratio comes down to r. The
            other epochs train at r, where selections can be compared.
        tolerance: the held-out loss has fallen behind when it is above its best by more than this
            share of it, and by more than twice its standard error.

    Attributes:
        progress: from 0 at the end of the warm-up to 1.
        best: the lowest held-out loss so far.
    """

    epochs: int
    warmup_epochs: int
    keep_ratio: float
    slope: tuple[float, float]
    descent: float = 0.5
    tolerance: float = 0.1
    progress: float = 0.0
    best: float | None = None
    behind: bool = False

    @property
    def ratio_now(self) -> float:
        """The scheduled keep ratio, from 1 down to r."""
        share = self.progress / self.descent
        # r itself at the end: 1 − (1 − r) is not r to the last bit, nor a sum of strides exactly ½.
        return self.keep_ratio if share > 1 - 1e-9 else 1 - (1 - self.keep_ratio) * share

    @property
    def slope_now(self) -> float:
        """The slope k."""
        first, last = self.slope
        return first + (last - first) * self.progress

    def step(self, epoch: int, validation_loss: float | None, standard_error: float = 0.0) -> str:
        """Take in the end of ``epoch`` and set the pace of the next one.

        Args:
            epoch: the one that has ended, from 0.
            validation_loss: mean held-out loss, or None where there is none.
            standard_error: of that mean.

        Returns:
            "warm-up", "advance", "pause" (behind for the first epoch) or "back off" (still behind).
        """
        was_behind, self.behind = self.behind, self._falls_behind(validation_loss, standard_error)
        if epoch < self.warmup_epochs:
            return "warm-up"
        # The last epoch ends the way, whatever the number of them.
        stride = 1.0 / max(self.epochs - self.warmup_epochs - 1, 1)
        if not self.behind:
            self.progress = min(1.0, self.progress + stride)
            return "advance"
        if not was_behind:
            return "pause"
        self.progress = max(0.0, self.progress - stride)
        return "back off"

    def planned_ratios(self, epoch: int) -> list[float]:
        """Keep ratio of each epoch after ``epoch``, if the pace is never held back."""
        planned, ratios = replace(self), []
        for ending in range(epoch, self.epochs - 1):
            planned.step(ending, None)
            ratios.append(planned.ratio_now if ending >= self.warmup_epochs else 1.0)
        return ratios

    def _falls_behind(self, loss: float | None, standard_error: float) -> bool:
        if loss is None:
            return False
        if not math.isfinite(loss):
            return True
        if self.best is None or loss < self.best:
            self.best = loss
            return False
        return loss > self.best + max(self.tolerance * self.best, 2 * standard_error)

    def state_dict(self) -> dict[str, Any]:
        state = asdict(self)
        return {name: state[name] for name in ("progress", "best", "behind")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress, self.best, self.behind = state["progress"], state["best"], state["behind"]


class Best(NamedTuple):
    """The selection to return, as far as held-out losses tell."""

    loss: float  # the lowest
    bound: float  # one standard error above it
    epoch: int
    mask: Tensor


def choose_best(
    best: Best | None, loss: float, standard_error: float, epoch: int, mask: Tensor
) -> Best:
    """The best one with a later selection, whose held-out loss is given.

    The latest one within a standard error of the lowest loss: a difference below that is chance,
    and a later selection has seen more.
    """
    if best is None or loss < best.loss:
        return Best(loss, loss + standard_error, epoch, mask)
    return best._replace(epoch=epoch, mask=mask) if loss <= best.bound else best
