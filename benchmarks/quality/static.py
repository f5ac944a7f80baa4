"""Static selection: from scores to exactly K samples.

Every method is a function ``(records, count, seed)`` to int64 indices, ascending. Random numbers
come from the seed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adapruner.pruning.selection import largest_remainder

from . import scores
from .scores import Records

Select = Callable[[Records, int, int], Tensor]
STRATA = 50
# Share of the recorded run that a method looks at; all of it, where not named.
RECORDED = {"random": 0.0, "random of each class": 0.0, "EL2N": 0.25, "DUAL": 0.5}


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(4000 + seed)


def top(score: Tensor, count: int, seed: int) -> Tensor:
    """The largest scores; equal ones in a seeded order."""
    shuffled = torch.randperm(len(score), generator=generator_of(seed))
    order = score[shuffled].argsort(descending=True, stable=True)
    return shuffled[order[:count]].sort().values


def random(records: Records, count: int, seed: int) -> Tensor:
    order = torch.randperm(len(records.labels), generator=generator_of(seed))
    return order[:count].sort().values


def random_of_each_class(records: Records, count: int, seed: int) -> Tensor:
    """At random, every class with its share."""
    sizes = records.labels.bincount().numpy()
    quotas = largest_remainder(count, sizes, sizes)
    order = torch.randperm(len(records.labels), generator=generator_of(seed))
    parts = [order[records.labels[order] == c][:quota] for c, quota in enumerate(quotas.tolist())]
    return torch.cat(parts).sort().values


def el2n(records: Records, count: int, seed: int) -> Tensor:
    """The longest error vectors early in training (Paul et al., NeurIPS 2021): the mean over the
    first epochs of one network, where the paper has one early epoch of ten."""
    early = max(1, int(RECORDED["EL2N"] * len(records.logits)))
    return top(scores.el2n(records, early), count, seed)


def moderate(records: Records, count: int, seed: int) -> Tensor:
    """Those whose distance to the center of their class is nearest to the median in rank."""
    order = scores.to_class_center(records).argsort(stable=True)
    begin = (len(order) - count + 1) // 2
    return order[begin : begin + count].sort().values


def ccs_cutoff(ratio: float) -> float:
    """Share of the hardest that CCS leaves out: its authors' choice for CIFAR-10 (table 7)."""
    return 0.0 if ratio >= 0.5 else 0.1 if ratio >= 0.2 else 0.3


def ccs(records: Records, count: int, seed: int) -> Tensor:
    """Coverage-centric selection over AUM (Zheng et al., ICLR 2023)."""
    cutoff = ccs_cutoff(count / len(records.labels))
    return stratified(scores.aum(records), count, cutoff, seed)


def stratified(difficulty: Tensor, count: int, cutoff: float, seed: int) -> Tensor:
    """The hardest share left out, the rest cut into strata of equal width, the smallest served
    first, each with an equal part of what is left; at random within a stratum."""
    kept = difficulty.argsort(stable=True)[: len(difficulty) - int(cutoff * len(difficulty))]
    values = difficulty[kept]
    width = (values.max() - values.min()).item() / STRATA or 1.0
    stratum = ((values - values.min()) / width).long().clamp(max=STRATA - 1)
    sizes = stratum.bincount(minlength=STRATA).tolist()
    generator, left, chosen = generator_of(seed), count, []
    for served, s in enumerate(sorted(range(STRATA), key=lambda s: sizes[s])):
        budget = min(sizes[s], left // (STRATA - served))
        members = kept[stratum == s]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:budget]])
        left -= budget
    return torch.cat(chosen).sort().values


def dual(records: Records, count: int, seed: int, steepness: float = 5.5) -> Tensor:
    """DUAL with its sampling by a Beta distribution; steepness c_D of its authors for CIFAR-10.

    The score is of the first half of the epochs (the authors': 30 of 200, too few here).
    """
    early = records.probabilities()[: max(2, int(RECORDED["DUAL"] * len(records.logits)))]
    window = max(2, len(early) // 2)
    score = scores.dual(early, window)
    mean = early.mean(0)
    weights = score * beta_density(
        mean, mean[score.argsort()[-10:]].mean().item(), 1 - count / len(mean), steepness
    )
    # Without replacement in proportion to weights: the largest of u^(1/weight), in logarithms.
    u = torch.rand(len(weights), generator=generator_of(seed), dtype=torch.float64)
    keys = u.log() / weights.clamp(min=1e-300)
    return keys.argsort(descending=True)[:count].sort().values


def beta_density(mean: Tensor, anchor: float, pruned: float, steepness: float) -> Tensor:
    """Density of Beta(16 − b, b) at the mean prediction, b = 15·(1 − anchor)·(1 − pruned^c_D):
    the more is pruned, the more it favours what is predicted well."""
    b = 15 * (1 - anchor) * (1 - pruned**steepness)
    b = max(b, 1e-6)  # the anchor may be predicted perfectly
    a, x = 16 - b, mean.clamp(1e-6, 1 - 1e-6)
    beta = torch.distributions.Beta(torch.tensor(a, dtype=x.dtype), torch.tensor(b, dtype=x.dtype))
    return beta.log_prob(x).exp()


STATIC: dict[str, Select] = {
    "random": random,
    "random of each class": random_of_each_class,
    "EL2N": el2n,
    "forgetting": lambda records, count, seed: top(scores.forgetting(records), count, seed),
    "AUM": lambda records, count, seed: top(scores.aum(records), count, seed),
    "AUM as published": lambda records, count, seed: top(-scores.aum(records), count, seed),
    "Moderate": moderate,
    "CCS": ccs,
    "DUAL": dual,
}
