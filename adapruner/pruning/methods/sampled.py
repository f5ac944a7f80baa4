"""The default method: samples are drawn, with chances that fall with the distance of their mean
pressure from a target range."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapruner import ops
from adapruner._util.seeds import Stream, stream_seed
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods.base import NEVER_FINITE, History, Method


@dataclass(frozen=True)
class Sampled(Method):
    """Samples are drawn without replacement, with chances in proportion to e^(−β·d).

    d is the distance of a sample's mean pressure from the target range, and 0 inside the range. The
    slope is constant, there is no balance term, and gates do not weight the training loss. So a
    gate logit is a sum of pressures and gives their mean.

    Attributes:
        sharpness: β.
        target_range: smallest and largest mean pressure of samples that a model learns from. The
            model fits samples below the range early, and does not fit samples above it.
        easy_side_weight: factor of distances below the range.
        distance_cap: largest distance. Larger distances count as this value.
        read_distance_floor: smallest distance in the draw of a read set. Smaller distances count as
            this value, so an epoch reads all samples near the range evenly.
        rotation: power of the age in the draw of a read set. Samples that were not read for long
            get larger weights.
        small_keep_ratio: below this keep ratio, the easy side weight is multiplied by the fourth
            power of keep ratio / ``small_keep_ratio``. Small sets need easy samples too.
        full_step_epochs: runs with more epochs take shorter steps, in proportion. A gate logit is
            a sum of pressures only while it is near its start value.
    """

    sharpness: float = 6.0
    target_range: tuple[float, float] = (0.0, 1.4)
    easy_side_weight: float = 1.0
    distance_cap: float = 1.4
    read_distance_floor: float = 1.2
    rotation: float = 1.0
    small_keep_ratio: float = 0.3
    full_step_epochs: int = 20

    def at(self, keep_ratio: float, epochs: int) -> Sampled:
        small = self.small_keep_ratio
        share = keep_ratio / small if keep_ratio < small else 1.0
        return replace(
            self,
            easy_side_weight=share**4 * self.easy_side_weight,
            step_size=self.step_size * min(1.0, self.full_step_epochs / epochs),
        )

    def logit_per_pressure(self, history: History) -> float:
        """Fall of a gate logit below 1 for each unit of mean pressure.

        Computed with a pressure of 1 in every epoch of ``history`` after the warm-up.
        """
        logit = 1.0
        for entry in history:
            if entry["phase"] == "prune":
                gate = 1 / (1 + math.exp(-entry["slope"] * logit))
                logit -= self.step_size * entry["slope"] * gate * (1 - gate)
        return 1 - logit

    def scores(self, gates: Gates, history: History) -> Tensor:
        """1 minus the distance from the target range, in units of gate logits."""
        unit, logits = self.logit_per_pressure(history), gates.logits
        easiest, hardest = (1 - unit * pressure for pressure in self.target_range)
        scores = logits - hardest
        torch.minimum(scores, (easiest - logits).mul_(self.easy_side_weight), out=scores)
        scores.clamp_(-unit * self.distance_cap, 0).add_(1)
        scores.masked_fill_(logits == 1, NEVER_FINITE)
        return scores.masked_fill_(logits == -torch.inf, -torch.inf)

    def keys(self, gates: Gates, history: History, seed: int, final: bool) -> Tensor | None:
        unit = self.logit_per_pressure(history)
        floor, rotation = (0.0, 0.0) if final else (self.read_distance_floor, self.rotation)
        return ops.sampling_keys(
            self.scores(gates, history),
            gates.age,
            self.sharpness / unit,
            rotation,
            stream_seed(seed, len(history), Stream.DRAW),
            1 - unit * floor,
        )


# A loss of 4 has a pressure of 3, and a loss of 0.01 a pressure of −1.8. Losses from 0.38 to 1.3
# are in the target range.
METHOD = Sampled(
    easy_weight=-0.4,
    pressure_cap=3.0,
    slope=(1.0, 1.0),
    balance=0.0,
    balance_gain=0.0,
    weighs=False,
    chooses_best=False,
)
