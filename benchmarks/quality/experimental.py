"""What was tried for the default, on the split: docs/quality.md says which lost.

``EXPERIMENTAL`` select from the recorded run, as the rivals do; ``VARIANTS`` are pruning runs of
the package with other constants, for what is kept in the end or for what epochs read.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adapruner.pruning.methods import DEFAULT_METHOD, METHODS, Method

from .scores import Records
from .static import Select, generator_of, top

EPSILON = 1e-5
DEFAULT = METHODS[DEFAULT_METHOD]


def gumbel_noise(count: int, seed: int) -> Tensor:
    """Float64 ``[count]``: a top-k of logarithms of weights plus this draws in proportion to
    them, without replacement."""
    uniform = torch.rand(count, generator=generator_of(seed), dtype=torch.float64)
    return -(-uniform.clamp(min=1e-300).log()).log()


def drawn(key: Tensor, count: int, seed: int) -> Tensor:
    """Chances in proportion to e^key."""
    return top(key + gumbel_noise(len(key), seed), count, seed)


def by_rank(score: Tensor) -> Tensor:
    """Ranks in (0, 1), equal scores in their order."""
    ranks = torch.empty(len(score), dtype=torch.float64)
    ranks[score.argsort(stable=True)] = torch.arange(len(score), dtype=torch.float64)
    return (ranks + 0.5) / len(score)


def agreement(records: Records, count: int, seed: int) -> Tensor:
    """The largest sums over the epochs of a gradient's agreement with the mean one."""
    return top(records.agreement.double().sum(0), count, seed)


def cut(hard: float, easy: float, records: Records, count: int, seed: int) -> Tensor:
    """Of what is pruned the shares ``hard`` and ``easy`` are the hardest and the easiest, by the
    mean loss; the rest is pruned at random."""
    order = records.losses().mean(0).argsort(stable=True)
    pruned = len(order) - count
    middle = order[int(easy * pruned) : len(order) - int(hard * pruned)]
    chosen = torch.randperm(len(middle), generator=generator_of(seed))[:count]
    return middle[chosen].sort().values


def tilt(strength: float, records: Records, count: int, seed: int) -> Tensor:
    """Chances that grow evenly with the rank of the mean loss, e^strength to 1 at its ends."""
    return drawn(strength * by_rank(records.losses().mean(0)), count, seed)


def gamma(alpha: float, beta: float, cap: float, records: Records, count: int, seed: int) -> Tensor:
    """Chances in proportion to e^(mean over the epochs of α·log(ℓ + ε) − β·ℓ): those of the
    pressure ℓ − w·log(ℓ + ε) with w = α/β at a sharpness of β, where it is below the cap."""
    losses = records.losses()
    pressure = losses - alpha / beta * (losses + EPSILON).log()
    return drawn(-beta * pressure.clamp(max=cap).mean(0), count, seed)


def relative(alpha: float, beta: float, records: Records, count: int, seed: int) -> Tensor:
    """The same of losses divided by their mean over the epoch."""
    losses = records.losses()
    losses = losses / losses.mean(1, keepdim=True)
    return drawn((alpha * (losses + EPSILON).log() - beta * losses).mean(0), count, seed)


EXPERIMENTAL: dict[str, Select] = {
    "hardest out": partial(cut, 1.0, 0.0),
    "half hardest out": partial(cut, 0.5, 0.0),
    "easiest out": partial(cut, 0.0, 1.0),
    "half both ends out": partial(cut, 0.25, 0.25),
    **{f"tilt {t:+g}": partial(tilt, t) for t in (-6, -1.5, 1.5, 6)},
    "agreement": agreement,
    "relative ℓ^1.6·e^(−4ℓ)": partial(relative, 1.6, 4),
    **{
        f"chance ℓ^{alpha:g}·e^(−{beta:g}ℓ)": partial(gamma, alpha, beta, math.inf)
        for alpha, beta in ((0, 2), (0.1, 2), (0.4, 2), (0.8, 2), (2, 2), (1.2, 3), (1.6, 4))
    },
    **{
        f"chance ℓ^{alpha:g}·e^(−{beta:g}ℓ), cap {cap:g}": partial(gamma, alpha, beta, cap)
        for alpha, beta, cap in ((1.2, 3, 2.2), (1.6, 4, 1.8), (1.6, 4, 2.2), (2.4, 6, 2.2))
    },
}


def sampled(**constants: float) -> Method:
    """The default with other constants of its sampling."""
    assert DEFAULT.sampling is not None
    return replace(DEFAULT, sampling=replace(DEFAULT.sampling, **constants))


def both_ends(even_below: float, cap: float, sharpness: float, evenly_read: float) -> Method:
    """A default before, whose pressure ℓ − 0.4·log(ℓ + ε) itself grew to both sides."""
    constants = sampled(
        reach=(-math.inf, even_below),
        farthest=math.inf,
        sharpness=sharpness,
        evenly_read=evenly_read,
    )
    return replace(constants, easy_weight=0.4, pressure_cap=cap)


KEEPING: dict[str, Method] = {
    "top-k, w = 0.4": Method(0.4),
    "both ends, no cap, sharpness 3": both_ends(0.0, math.inf, 3.0, 2.0),
    "both ends, cap 2.2": both_ends(0.0, 2.2, 6.0, 2.0),
    "both ends, cap 2.2, even below 1.6": both_ends(1.6, 2.2, 6.0, 0.4),
    "sampled, reach 0 to 1": sampled(reach=(0.0, 1.0)),
    "sampled, reach 0 to 1.2": sampled(reach=(0.0, 1.2)),
    "sampled, reach 0 to 1.8": sampled(reach=(0.0, 1.8)),
    "sampled, reach −0.3 to 1.4": sampled(reach=(-0.3, 1.4)),
    "sampled, reach −∞ to 1.4": sampled(reach=(-math.inf, 1.4)),
    "sampled, sharpness 4": sampled(sharpness=4.0),
    "sampled, sharpness 10": sampled(sharpness=10.0),
    "sampled, no farthest": sampled(farthest=math.inf),
    "sampled, small ratios alike": sampled(small_ratio=0.0),
}
READING: dict[str, Method] = {
    "sampled, reads by the kept's chances": sampled(evenly_read=0.0, turns=0.0),
    "sampled, reads even below 0.9": sampled(evenly_read=0.9),
    "sampled, turns 0": sampled(turns=0.0),
    "sampled, gates weigh": replace(DEFAULT, weighs=True),
}
VARIANTS = KEEPING | READING
