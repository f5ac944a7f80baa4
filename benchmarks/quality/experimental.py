"""Candidates for the default, tried here before any of them enters the package.

They select from the recorded run, as the rivals do; docs/quality.md says which lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import adapruner
from adapruner.gates import Gates
from adapruner.selection import Selection

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
    uniform = torch.rand(len(score), generator=generator_of(seed), dtype=torch.float64)
    return score / score.std() - dose * (-uniform.clamp(min=1e-300).log()).log()


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


def _falling(dose: float) -> Callable[[float], float]:
    """More chance, the less is kept."""
    return lambda ratio: dose / ratio


def _with_pressure(easy_weight: float, dose: float) -> Select:
    return partial(noisy_top, lambda r: pressure(r, easy_weight), _falling(dose))


EXPERIMENTAL: dict[str, Select] = {
    "hardest out": partial(cut, 1.0, 0.0),
    "half hardest out": partial(cut, 0.5, 0.0),
    "easiest out": partial(cut, 0.0, 1.0),
    "half easiest out": partial(cut, 0.0, 0.5),
    "both ends out": partial(cut, 0.5, 0.5),
    "agreement": partial(noisy_top, agreement, lambda ratio: 0.0),
    "relative 1, Gumbel 0.3 / r": partial(
        noisy_top, lambda r: relative_pressure(r, 1.0), _falling(0.3)
    ),
} | {
    f"pressure {w:g}, Gumbel {dose:g} / r": _with_pressure(w, dose)
    for w, dose in ((0.2, 0.3), (0.4, 0.2), (0.4, 0.3), (0.4, 0.45), (0.7, 0.3), (1.0, 0.3))
}


class ChanceSelection(Selection):
    """An exact top-k over the gate logits in units of their standard deviation plus Gumbel noise,
    drawn anew each time, of ``dose`` divided by the ratio."""

    dose = 0.0

    def select(self, gates: Gates, ratio: float, slope: float) -> None:
        logits = gates.logits.clone()
        spread = logits.std().item()
        if spread > 0 and ratio < 1:
            generator = torch.Generator().manual_seed(7000 + self.seed * 1009 + self.draws)
            uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64)
            noise = -(-uniform.clamp(min=1e-300).log()).log()
            gates.logits += (self.dose / ratio * spread * noise).float()
        self.draws += 1
        super().select(gates, ratio, slope)
        gates.logits.copy_(logits)
        gates.set_slope(slope)

    draws = 0


def give_chance(pruner: adapruner.Pruner, dose: float) -> None:
    """Have a pruner select with chance."""
    old = pruner.selection
    pruner.selection = ChanceSelection(
        old.num_samples, old.keep_ratio, seed=old.seed, explore=old.explore
    )
    pruner.selection.dose = dose
