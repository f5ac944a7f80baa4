"""A method for tests. It keeps the samples with the largest last losses."""

from __future__ import annotations

import torch
from torch import Tensor

from adapruner.pruning.gates import Gates
from adapruner.pruning.methods.base import NEVER_FINITE, History, Method


class LargestLosses(Method):
    """Samples are ranked by their last losses. Gates do not weight the training loss."""

    def scores(self, gates: Gates, history: History) -> Tensor:
        assert gates.last_loss is not None
        scores = gates.last_loss.nan_to_num(NEVER_FINITE)
        return scores.masked_fill(gates.logits == -torch.inf, -torch.inf)

    def keys(self, gates: Gates, history: History, seed: int, final: bool) -> Tensor:
        return self.scores(gates, history)


METHOD = LargestLosses(easy_weight=1.0, weighs=False, chooses_best=False)
