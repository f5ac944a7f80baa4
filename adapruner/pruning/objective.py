"""The constants of the objective that the gates descend."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """Constants of L = L_cls + L_sel + L_cmp, as the gates use them.

    docs/method.md has the formulas.

    Attributes:
        easy_weight: w, the weight of L_sel. The pressure of a sample is ℓ − w·log(ℓ + ε) + the
            balance term; it is least at ℓ ≈ w. With w below 0 it grows with the loss throughout.
        pressure_cap: c, the largest value that ℓ − w·log(ℓ + ε) counts as.
        step_size: η, the step of a gate for each visit.
        slope: first and last slope k of the gates.
        balance: C of λ = C + γ·|ρ − r|, the weight of L_cmp.
        balance_gain: γ.
        age_cap: cap of a, the number of epochs that a visit of a rarely read sample stands for.
        weighs: whether gates weigh the training loss; otherwise that is the plain mean.
        by_first_loss: whether ℓ in the pressure is in units of the mean loss of the first epoch.
    """

    easy_weight: float
    pressure_cap: float = math.inf
    step_size: float = 0.05
    slope: tuple[float, float] = (0.1, 5.0)
    balance: float = 1.0
    balance_gain: float = 50.0
    age_cap: int = 16
    weighs: bool = True
    by_first_loss: bool = False
