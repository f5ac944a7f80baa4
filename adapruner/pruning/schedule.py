"""The controller (the paper's PPC): it slows a run down when the held-out loss falls behind.

The controller sets the pace of the run: how fast the slope k rises and the keep ratio comes down.
Methods that choose the best selection choose it by the held-out loss too.
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
        warmup_epochs: epochs at the start in which gates are frozen.
        keep_ratio: r.
        slope: first and last k.
        descent: share of the epochs after the warm-up in which the keep ratio comes down to r. The
            other epochs train at r, so their selections can be compared.
        tolerance: the held-out loss has fallen behind if it is above the best loss by more than
            this share of the best loss, and by more than twice the standard error.

    Attributes:
        progress: 0 at the end of the warm-up, 1 at the end of the run.
        best: the lowest held-out loss so far.
        behind: whether the held-out loss of the last epoch had fallen behind.
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
        # Rounding: 1 − (1 − r) may differ from r, and a sum of strides from 1.
        return self.keep_ratio if share > 1 - 1e-9 else 1 - (1 - self.keep_ratio) * share

    @property
    def slope_now(self) -> float:
        """The slope k."""
        first, last = self.slope
        return first + (last - first) * self.progress

    def step(self, epoch: int, validation_loss: float | None, standard_error: float = 0.0) -> str:
        """Set the pace of the next epoch.

        Args:
            epoch: the epoch that has ended, from 0.
            validation_loss: mean held-out loss, or None without held-out samples.
            standard_error: standard error of ``validation_loss``.

        Returns:
            "warm-up", "advance", "pause" (the loss has fallen behind) or "back off" (the loss was
            behind already in the epoch before).
        """
        was_behind, self.behind = self.behind, self._falls_behind(validation_loss, standard_error)
        if epoch < self.warmup_epochs:
            return "warm-up"
        # With this stride the last epoch has progress 1.
        stride = 1.0 / max(self.epochs - self.warmup_epochs - 1, 1)
        if not self.behind:
            self.progress = min(1.0, self.progress + stride)
            return "advance"
        if not was_behind:
            return "pause"
        self.progress = max(0.0, self.progress - stride)
        return "back off"

    def planned_ratios(self, epoch: int) -> list[float]:
        """Keep ratio of each epoch after ``epoch``, if the run never pauses."""
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
    """The best selection so far, by the held-out loss."""

    loss: float  # the lowest held-out loss
    bound: float  # one standard error above that loss
    epoch: int
    mask: Tensor


def choose_best(
    best: Best | None, loss: float, standard_error: float, epoch: int, mask: Tensor
) -> Best:
    """The best selection among ``best`` and a later selection.

    The best selection is the latest one with a loss within a standard error of the lowest loss. A
    smaller difference is chance, and a later selection has seen more losses.

    Args:
        best: the best selection so far, or None.
        loss, standard_error, epoch, mask: the later selection and its held-out loss.
    """
    if best is None or loss < best.loss:
        return Best(loss, loss + standard_error, epoch, mask)
    return best._replace(epoch=epoch, mask=mask) if loss <= best.bound else best
