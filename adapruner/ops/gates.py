"""Operators that step the gates."""

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
    """Count one visit of each distinct id, in place: step m, reset the age, update the sums. O(B).

    Args:
        gate_logits: m, float32 ``[N]``.
        age: epochs since the last visit, uint8 ``[N]``; :data:`NEVER_VISITED` before the first.
        state: the run's state, int64. While gates are frozen (slot "resting"), gates and ages do
            not change.
        last_loss: float32 ``[N]``, or None. The losses of the batch are written to it.
        ids: ``[B]``, any integer type. The pressures of a repeated id are summed.
        pressure: ``[B]``, any floating type. A pressure that is not finite does not step its gate.
        sample_loss: ``[B]``, any floating type.
    """
    torch.ops.adapruner.gate_update(gate_logits, age, state, last_loss, ids, pressure, sample_loss)


def first_loss_scale(pressure: Tensor, state: Tensor, sample_loss: Tensor) -> None:
    """Set the loss scale to the mean loss of an epoch's first batch, in place.

    The operator acts only if the state's slot "scale_running" is set and the epoch has summed no
    loss yet. Then the loss scale becomes the mean of the batch's finite losses, if that is above 0,
    and the pressures are computed again with it. Call the operator before :func:`gate_update`,
    which makes the scale follow the mean of the epoch.

    Args:
        pressure: float32 ``[B]``, contiguous; infinite for a sample with only ignored rows.
        state: the run's state, int64.
        sample_loss: ``[B]``, any floating type.
    """
    torch.ops.adapruner.first_loss_scale(pressure, state, sample_loss)


def gate_drift(gate_logits: Tensor, age: Tensor, state: Tensor, last_loss: Tensor) -> None:
    """Step each gate that the epoch did not visit, from the last loss of its sample, in place.

    Call it at the end of an epoch, before the top-k. The top-k then updates the sums in the state.
    O(N).

    Args:
        gate_logits: m, float32 ``[N]``.
        age: epochs since the last visit, uint8 ``[N]``; 0 for a sample visited in this epoch.
        state: the run's state, int64.
        last_loss: float32 ``[N]``. A loss that is not finite does not step its gate.
    """
    torch.ops.adapruner.gate_drift(gate_logits, age, state, last_loss)
