"""The steps of gates."""

from __future__ import annotations

import torch
from torch import Tensor

from adapruner.ops.native import _C

NEVER_VISITED: int = _C.never_visited
OLDEST: int = _C.oldest


def gate_update(
    gate_logits: Tensor,
    age: Tensor,
    state: Tensor,
    last_loss: Tensor | None,
    ids: Tensor,
    pressure: Tensor,
    sample_loss: Tensor,
) -> None:
    """One visit of each distinct id, in place: m, its age, and the sums in the state. O(B).

    Args:
        gate_logits: m, float32 ``[N]``.
        age: epochs since the last visit, uint8 ``[N]``; :data:`NEVER_VISITED` before the first.
        state: int64; in warm-up (its slot "resting") gates and ages stay as they are.
        last_loss: float32 ``[N]`` that takes the last loss of every sample, or None.
        ids: ``[B]``, any integer type; the pressures of a repeated id are summed.
        pressure: ``[B]``, any floating type; where it is not finite the gate is left alone.
        sample_loss: ``[B]``, any floating type.
    """
    torch.ops.adapruner.gate_update(gate_logits, age, state, last_loss, ids, pressure, sample_loss)


def gate_drift(gate_logits: Tensor, age: Tensor, state: Tensor, last_loss: Tensor) -> None:
    """The epoch's step of every gate that it did not visit, from the sample's last loss, in place.

    To be called at the end of an epoch, before a top-k (which brings the sums in the state to the
    new gates). O(N).

    Args:
        gate_logits: m, float32 ``[N]``.
        age: epochs since the last visit, uint8 ``[N]``, 0 for those visited in this epoch.
        state: int64.
        last_loss: float32 ``[N]``; where it is not finite the gate is left alone.
    """
    torch.ops.adapruner.gate_drift(gate_logits, age, state, last_loss)
