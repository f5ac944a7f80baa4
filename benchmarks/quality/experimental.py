"""Candidates for the default, tried here before any of them enters the package.

They select from the recorded run, as the rivals do; docs/quality.md says which lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from adapruner.gates import Gates
from adapruner.selection import Selection

from .plans import Adapruner
from .scores import Records
from .static import Select, generator_of, top

EPSILON = 1e-5


def pressure(records: Records, easy_weight: float) -> Tensor:
    """Minus the accumulated pressure on a gate: Σ ℓ − w·log(ℓ + ε) over the epochs."""
    losses = records.losses()
    return -(losses - easy_weight * (losses + EPSILON).log()).sum(0)


def agreement(records: Records) -> Tensor:
    """The sum over the epochs of a gradient's agreement with the mean one."""
    return records.agreement.double().sum(0)


def gumbel(score: Tensor, dose: float, seed: int) -> Tensor:
    """The score in units of its standard deviation, plus so much Gumbel noise."""
    return score / score.std() + dose * gumbel_noise(len(score), seed)


def gumbel_noise(count: int, seed: int) -> Tensor:
    """Float64 ``[count]``: a top-k of logarithms of weights plus this draws in proportion to
    them, without replacement."""
    uniform = torch.rand(count, generator=generator_of(seed), dtype=torch.float64)
    return -(-uniform.clamp(min=1e-300).log()).log()


def by_rank(score: Tensor) -> Tensor:
    """Ranks in (0, 1), equal scores in their order."""
    ranks = torch.empty(len(score), dtype=torch.float64)
    ranks[score.argsort(stable=True)] = torch.arange(len(score), dtype=torch.float64)
    return (ranks + 0.5) / len(score)


def noisy_top(
    score: Callable[[Records], Tensor],
    dose: Callable[[float], float],
    records: Records,
    count: int,
    seed: int,
) -> Tensor:
    """Top-k after Gumbel noise whose dose depends on the keep ratio."""
    value = score(records)
    return top(gumbel(value, dose(count / len(value)), seed), count, seed)


def cut(hard: float, easy: float, records: Records, count: int, seed: int) -> Tensor:
    """Of what is pruned the shares ``hard`` and ``easy`` are the hardest and the easiest, by the
    mean loss; the rest is pruned at random."""
    order = records.losses().mean(0).argsort(stable=True)
    pruned = len(order) - count
    middle = order[int(easy * pruned) : len(order) - int(hard * pruned)]
    chosen = torch.randperm(len(middle), generator=generator_of(seed))[:count]
    return middle[chosen].sort().values


def relative_pressure(records: Records, easy_weight: float) -> Tensor:
    """The same of losses divided by their mean over the epoch."""
    losses = records.losses()
    losses = losses / losses.mean(1, keepdim=True)
    return -(losses - easy_weight * (losses + EPSILON).log()).sum(0)


def tilt(strength: float, records: Records, count: int, seed: int) -> Tensor:
    """Chances that grow evenly with the rank of the mean loss, e^strength to 1 at its ends."""
    key = strength * by_rank(records.losses().mean(0))
    return top(key + gumbel_noise(len(key), seed), count, seed)


def middle(strength: float, records: Records, count: int, seed: int) -> Tensor:
    """Chances that are largest in the middle of the ranks of the mean loss: (4·q·(1 − q))^s."""
    rank = by_rank(records.losses().mean(0))
    key = strength * (4 * rank * (1 - rank)).log()
    return top(key + gumbel_noise(len(key), seed), count, seed)


def gamma(alpha: float, beta: float, records: Records, count: int, seed: int) -> Tensor:
    """Chances in proportion to e^(mean over the epochs of α·log(ℓ + ε) − β·ℓ): those of the pressure
    ℓ − w·log(ℓ + ε) with w = α/β at a temperature of 1/β."""
    losses = records.losses()
    key = (alpha * (losses + EPSILON).log() - beta * losses).mean(0)
    return top(key + gumbel_noise(len(key), seed), count, seed)


def hinge(level: float, records: Records, count: int, seed: int) -> Tensor:
    """Chances e^(−2·max(0, p − level)) of the mean pressure p = ℓ − 0.4·log(ℓ + ε)."""
    mean = -pressure(records, 0.4) / len(records.logits)
    key = -2 * (mean - level).clamp(min=0)
    return top(key + gumbel_noise(len(key), seed), count, seed)


def _noisy(score: Callable[[Records], Tensor], dose: float, power: int = 0) -> Select:
    return partial(noisy_top, score, lambda ratio: dose / ratio**power)


def _pressures() -> dict[str, Select]:
    """By their names in the tables."""
    made = {}
    for w in (0.4, 1.0):
        made[f"pressure {w:g}, Gumbel 1"] = _noisy(partial(pressure, easy_weight=w), 1.0)
    made["pressure 0.4, Gumbel 2"] = _noisy(partial(pressure, easy_weight=0.4), 2.0)
    for w, dose in (
        (0.2, 0.3),
        (0.4, 0.2),
        (0.4, 0.3),
        (0.4, 0.45),
        (0.4, 0.6),
        (0.7, 0.3),
        (1, 0.3),
    ):
        name = f"pressure {w:g}, Gumbel {dose:g} / r"
        made[name] = _noisy(partial(pressure, easy_weight=w), dose, 1)
    for w in (0.4, 1.0, 2.0):
        name = f"relative {w:g}, Gumbel 0.3 / r"
        made[name] = _noisy(partial(relative_pressure, easy_weight=w), 0.3, 1)
    return made


EXPERIMENTAL: dict[str, Select] = {
    "hardest out": partial(cut, 1.0, 0.0),
    "half hardest out": partial(cut, 0.5, 0.0),
    "easiest out": partial(cut, 0.0, 1.0),
    "half easiest out": partial(cut, 0.0, 0.5),
    "both ends out": partial(cut, 0.5, 0.5),
    "half both ends out": partial(cut, 0.25, 0.25),
    **{f"tilt {t:+g}": partial(tilt, t) for t in (-6, -3, -1.5, 1.5, 3, 6)},
    **{f"middle {s:g}": partial(middle, s) for s in (1, 3)},
    **{
        f"chance ℓ^{alpha:g}·e^(−{beta:g}ℓ)": partial(gamma, alpha, beta)
        for beta, alphas in {1: (0, 0.4, 0.8), 2: (0, 0.2, 0.4, 0.8, 2), 4: (0.4, 1.6, 4)}.items()
        for alpha in alphas
    },
    **{f"chance, hinge {level:g}": partial(hinge, level) for level in (1, 1.5, 2)},
    "agreement": _noisy(agreement, 0.0),
    **_pressures(),
}


@dataclass(frozen=True)
class Sampled:
    """A pruning run whose gates have one slope and no balance, so that a gate is a sum of pressures,
    and which samples by the mean pressure: chances ℓ^α·e^(−βℓ), see :func:`gamma`.

    Attributes:
        weighed: the loss is weighted by the gates, divided by their mean, which step ten times as
            far; otherwise the loss is the plain mean.
        once: chance is drawn once for the run, not anew in every epoch.
        read_beta: temperature of what epochs read, in place of β.
        level: pressures below this one count as this one in what epochs read.
        read_easy_weight: epochs read by the pressure of the last loss with this w, where it is given,
            not by the mean pressure.
        turns: chances of an epoch (not those of the final selection) grow with this power of the
            epochs since the last visit, so that samples take turns.
    """

    alpha: float
    beta: float
    weighed: bool = False
    once: bool = False
    turns: float = 0.0
    read_beta: float | None = None
    read_easy_weight: float | None = None
    level: float = 0.0


@dataclass(frozen=True)
class Variant:
    """A pruning run of the package with something changed.

    Attributes:
        method: the package's.
        chance, power: dose of chance, chance / ratio ** power, see :class:`ChanceSelection`.
        even: the loss is divided by the mean gate, so that closing gates do not slow the training.
    """

    method: str = "balanced"
    chance: float = 0.0
    power: int = 1
    even: bool = False


VARIANTS: dict[str, Variant | Sampled] = {
    "adapruner as published, chance 0.3 / r": Variant("adapruner", 0.3),
    "adapruner, chance 0.3 / r": Variant(chance=0.3),
    "adapruner, chance 0.1 / r²": Variant(chance=0.1, power=2),
    "adapruner, chance 0.03 / r²": Variant(chance=0.03, power=2),
    "adapruner, chance 0.01 / r³": Variant(chance=0.01, power=3),
    "adapruner, even": Variant(even=True),
    "adapruner as published, even": Variant("adapruner", even=True),
    "adapruner, chance 0.3 / r, even": Variant(chance=0.3, even=True),
    "adapruner as published, chance 0.3 / r, even": Variant("adapruner", 0.3, even=True),
    **{
        f"sampled w {w:g}, β {beta:g}, turns {turns:g}": Sampled(
            2 * w, 2, turns=turns, read_beta=beta
        )
        for w, beta, turns in (
            *((0.4, 0, 0), (0.4, 0, 1), (0.4, 0, 3), (0.4, 0.5, 1), (0.4, 0.5, 3), (0.4, 2, 1)),
            *((1, 0.25, 0), (1, 0.5, 0)),
            *((1, 0.5, 1), (1, 0.5, 3), (1, 1, 1), (1, 1, 3), (1, 2, 1), (1, 2, 3)),
        )
    },
    **{
        f"sampled, last w {w:g}, β {beta:g}, turns {turns:g}": Sampled(
            0.8, 2, turns=turns, read_beta=beta, read_easy_weight=w
        )
        for w, beta, turns in ((0.4, 1, 1),)
    },
    **{
        f"sampled, level {level:g}, turns {turns:g}": Sampled(0.8, 2, turns=turns, level=level)
        for level, turns in ((1.5, 0), (1.5, 1), (2, 0), (2, 1), (2, 3))
    },
}


class ChanceSelection(Selection):
    """An exact top-k over the gate logits in units of their standard deviation plus Gumbel noise,
    drawn anew each time."""

    variant = Variant()
    draws = 0

    def select(self, gates: Gates, ratio: float, slope: float) -> None:
        logits = gates.logits.clone()
        spread = logits.std().item()
        if spread > 0 and ratio < 1:
            generator = torch.Generator().manual_seed(7000 + self.seed * 1009 + self.draws)
            uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
            noise = -(-uniform.clamp(min=1e-300).log()).log()
            dose = self.variant.chance / ratio**self.variant.power
            gates.logits += (dose * spread * noise).float()
        self.draws += 1
        super().select(gates, ratio, slope)
        gates.logits.copy_(logits)
        gates.set_slope(slope)


class SampledSelection(Selection):
    """An exact top-k over (m − 1)/U·β plus Gumbel noise; U, the step of a gate that a pressure of 1
    in every epoch gives."""

    sampled = Sampled(0, 0)
    warmup = epochs = ends = 0

    def select(self, gates: Gates, ratio: float, slope: float) -> None:
        self.ends += 1
        epochs = self.ends - self.warmup
        if ratio == 1 or epochs < 1:
            return super().select(gates, ratio, slope)
        logits = gates.logits.clone()
        gate = 1 / (1 + math.exp(-1.0))
        unit = gates.real("step_size") * gate * (1 - gate) * epochs
        draw = 0 if self.sampled.once else self.ends
        generator = torch.Generator().manual_seed(7000 + self.seed * 1009 + draw)
        uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
        noise = -(-uniform.clamp(min=1e-300).log()).log()
        beta = self.sampled.beta
        if self.ends < self.epochs:
            noise += self.sampled.turns * gates.age.clamp(1).double().log()
            beta = beta if self.sampled.read_beta is None else self.sampled.read_beta
        wanted = (logits - 1) / unit
        if self.ends < self.epochs and (w := self.sampled.read_easy_weight) is not None:
            losses = gates.last_loss.double()
            wanted = w * (losses + EPSILON).log() - losses
        if self.ends < self.epochs and self.sampled.level:
            wanted = wanted.clamp(max=-self.sampled.level)
        gates.logits.copy_(wanted * beta + noise)
        super().select(gates, ratio, slope)
        gates.logits.copy_(logits)
        gates.set_slope(slope)


class VariantPlan(Adapruner):
    """A run of a variant."""

    def __init__(
        self,
        count: int,
        ratio: float,
        epochs: int,
        variant: Variant | Sampled,
        seed: int,
        device: torch.device,
    ) -> None:
        if isinstance(variant, Sampled):
            super().__init__(count, ratio, epochs, "balanced", seed, device)
            self._sample(variant)
            return
        super().__init__(count, ratio, epochs, variant.method, seed, device)
        self._even, self._plain = variant.even, False
        if variant.chance:
            old = self.pruner.selection
            self.pruner.selection = ChanceSelection(
                count, ratio, seed=old.seed, explore=old.explore
            )
            self.pruner.selection.variant = variant

    def _sample(self, sampled: Sampled) -> None:
        pruner, gates = self.pruner, self.pruner.gates
        self._even, self._plain = sampled.weighed, not sampled.weighed
        gates.set_real("easy_weight", sampled.alpha / sampled.beta)
        gates.set_real("step_size", 0.5 if sampled.weighed else 0.05)
        gates.set_real("balance", 0.0)
        gates.set_real("balance_gain", 0.0)
        gates.set_slope(1.0)
        pruner.controller.slope = (1.0, 1.0)
        old = pruner.selection
        pruner.selection = SampledSelection(
            old.num_samples, old.keep_ratio, seed=old.seed, explore=old.explore
        )
        pruner.selection.sampled = sampled
        pruner.selection.warmup, pruner.selection.epochs = pruner.warmup_epochs, pruner.epochs

    def loss(self, logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        loss = super().loss(logits, targets, ids)
        if self._plain:
            return functional.cross_entropy(logits, targets)
        gates = self.pruner.gates
        resting = gates.integer("resting")
        return loss / gates.mean_gate if self._even and not resting else loss
