"""The objective of the AdaPruner paper (arXiv 2312.05599): the largest gate logits are kept."""

from __future__ import annotations

from torch import Tensor

from adapruner.pruning import bitmask
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods.base import NEVER_FINITE, History, Method


class Published(Method):
    """Gate logits rank the samples, and gates weight the training loss."""

    def scores(self, gates: Gates, history: History) -> Tensor:
        return gates.logits if _all_stepped(gates) else _ranked(gates)

    def keys(self, gates: Gates, history: History, seed: int, final: bool) -> Tensor | None:
        return None if _all_stepped(gates) else _ranked(gates)


def _all_stepped(gates: Gates) -> bool:
    """Whether every gate has left its start value, 1."""
    return not any((part == 1).any() for part in gates.logits.split(bitmask.PIECE))


def _ranked(gates: Gates) -> Tensor:
    return gates.logits.masked_fill(gates.logits == 1, NEVER_FINITE)


# The constants of the paper. An easy sample (ℓ = 0.01) has a pressure of 4.6, and a wrong sample
# (ℓ = 4) a pressure of 2.6.
METHOD = Published(easy_weight=1.0)
