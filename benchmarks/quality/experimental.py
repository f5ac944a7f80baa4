"""Candidates for the default, tried here before any of them enters the package.

They select from the recorded run, as the rivals do; docs/quality.md says which lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

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


EXPERIMENTAL: dict[str, Select] = {
    "hardest out": partial(cut, 1.0, 0.0),
    "half hardest out": partial(cut, 0.5, 0.0),
    "easiest out": partial(cut, 0.0, 1.0),
    "half easiest out": partial(cut, 0.0, 0.5),
    "both ends out": partial(cut, 0.5, 0.5),
    "half both ends out": partial(cut, 0.25, 0.25),
    "pressure 0.4, Gumbel 1": partial(noisy_top, lambda r: pressure(r, 0.4), lambda ratio: 1.0),
    "pressure 1, Gumbel 1": partial(noisy_top, lambda r: pressure(r, 1.0), lambda ratio: 1.0),
    "agreement": partial(noisy_top, agreement, lambda ratio: 0.0),
}
