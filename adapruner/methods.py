"""What drives a gate, and what its logit decides: the constants of a method."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn by their gates (docs/method.md).

    A draw is without replacement, with chances in proportion to e^(−β·d), d the distance of the
    mean pressure on a sample's gate so far from the reach, 0 within it.

    Attributes:
        sharpness: β.
        reach: the least and the greatest mean pressure of what a model learns from. What is below
            was fitted long since, what is above no model fits.
        easy_side: factor of distances below the reach.
        farthest: distances above this one count as this one.
        evenly_read: distances below this one count as this one in what an epoch reads, so that all
            but what is far off is read evenly.
        turns: chances of what an epoch reads also grow with this power of the epochs since the
            last visit, so that samples take turns.
        small_ratio: below this keep ratio distances below the reach count for less, by its fourth
            power: small sets are to have easy samples too.
        long_run: epochs, beyond which gates take shorter steps: a gate logit tells the sum of its
            pressures only while it is not far from where it began.
    """

    sharpness: float = 6.0
    reach: tuple[float, float] = (0.0, 1.4)
    easy_side: float = 1.0
    farthest: float = 1.4
    evenly_read: float = 1.2
    turns: float = 1.0
    small_ratio: float = 0.3
    long_run: int = 20


@dataclass(frozen=True)
class Method:
    """Constants of the objective L = L_cls + L_sel + L_cmp (docs/method.md).

    Attributes:
        easy_weight: w, the weight of L_sel: the pressure of a sample is ℓ − w·log(ℓ + ε) + the
            balance term, which is least at ℓ ≈ w. Below 0 it grows with the loss throughout.
        pressure_cap: c, what ℓ − w·log(ℓ + ε) counts as at most.
        step_size: η, the step of a gate for each visit.
        slope: first and last slope k of the gates.
        balance: C of λ = C + γ·|ρ − r|, the weight of L_cmp.
        balance_gain: γ.
        age_cap: cap of a, the epochs that a visit of a rarely read sample stands for.
        weighs: whether gates weigh the training loss; otherwise it is the plain mean.
        sampling: how samples are drawn; the largest gate logits are taken where None.
    """

    easy_weight: float
    pressure_cap: float = math.inf
    step_size: float = 0.05
    slope: tuple[float, float] = (0.1, 5.0)
    balance: float = 1.0
    balance_gain: float = 50.0
    age_cap: int = 16
    weighs: bool = True
    sampling: Sampling | None = None

    def at(self, keep_ratio: float, epochs: int) -> Method:
        """This method for a run of that keep ratio and so many epochs."""
        if self.sampling is None:
            return self
        small = self.sampling.small_ratio
        share = keep_ratio / small if keep_ratio < small else 1.0
        sampling = replace(self.sampling, easy_side=share**4 * self.sampling.easy_side)
        step_size = self.step_size * min(1.0, self.sampling.long_run / epochs)
        return replace(self, sampling=sampling, step_size=step_size)


METHODS = {
    # As published: an easy sample (ℓ = 0.01) is pressed with 4.6, a wrong one (ℓ = 4) with 2.6.
    "adapruner": Method(easy_weight=1.0),
    # ℓ = 4 gives 3, ℓ = 0.01 gives −1.8; the reach is from 0.38 to 1.3. With one slope and no
    # balance, a gate logit is a sum of such pressures.
    "sampled": Method(
        easy_weight=-0.4,
        pressure_cap=3.0,
        slope=(1.0, 1.0),
        balance=0.0,
        balance_gain=0.0,
        weighs=False,
        sampling=Sampling(),
    ),
}
DEFAULT_METHOD = "sampled"


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]
