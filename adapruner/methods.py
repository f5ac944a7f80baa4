"""What drives a gate: the constants of the objective, one entry for each method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Constants of the objective L = L_cls + L_sel + L_cmp (docs/method.md).

    Attributes:
        easy_weight: w, the weight of L_sel: the pressure of a sample is ℓ − w·log(ℓ + ε) + the
            balance term, which is least at ℓ ≈ w. The larger it is, the earlier easy samples go.
        step_size: η, the step of a gate for each visit.
        slope: first and last slope k of the gates.
        balance: C of λ = C + γ·|ρ − r|, the weight of L_cmp.
        balance_gain: γ.
        age_cap: cap of a, the epochs that a visit of a rarely read sample stands for.
    """

    easy_weight: float
    step_size: float = 0.05
    slope: tuple[float, float] = (0.1, 5.0)
    balance: float = 1.0
    balance_gain: float = 50.0
    age_cap: int = 16


METHODS = {
    # As published: an easy sample (ℓ = 0.01) is pressed with 4.6, a wrong one (ℓ = 4) with 2.6.
    "adapruner": Method(easy_weight=1.0),
    # The hardest go first, then the easiest: ℓ = 4 gives 3.4, ℓ = 0.01 gives 1.9, 0.4 gives 0.8.
    "balanced": Method(easy_weight=0.4),
}
DEFAULT_METHOD = "balanced"


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]
