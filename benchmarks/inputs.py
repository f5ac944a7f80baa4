"""What the suites are given."""

from __future__ import annotations

import torch

from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

EPSILON = 1e-5  # of log(ℓ + ε)
BALANCE = 0.1  # 2λ·(s̄ − r): a constant for rivals, who would need a pass over all gates for it
OURS, EAGER, COMPILED = "adapruner", "eager torch", "torch.compile"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_gates(num_samples: int) -> Gates:
    """Gates in the middle of a run: normal logits, slope 1, the published objective."""
    gates = Gates(num_samples, 0.7, find_method("published"))
    torch.randn(num_samples, generator=generator(0), out=gates.logits)
    gates.set_slope(1.0)
    return gates


def masked(loss: torch.Tensor, gates: Gates, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The masked loss and the pressure of per-sample losses, in torch's operators."""
    detached = loss.detach()
    pressure = detached - torch.log(detached + EPSILON) + BALANCE
    return (torch.sigmoid(gates.logits[ids]) * loss).mean(), pressure
