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


def first_loss_scale(pressure: Tensor, state: Tensor, sample_loss: Tensor) -> None:
    """Bring the first batch of an epoch to the scale of its own mean loss, in place.

    Without effect unless the state's slot "scale_running" is set and no loss has been summed since
    the start of the epoch. The loss scale then becomes the mean of the batch's finite losses, if
    that is above 0, and each pressure what it is at that scale. To be called before
    :func:`gate_update`, which has the scale follow the epoch's mean from then on.

    Args:
        pressure: float32 ``[B]``, contiguous; infinite for a sample all of whose rows are ignored.
        state: int64.
        sample_loss: ``[B]``, any floating type.
    """
    torch.ops.adapruner.first_loss_scale(pressure, state, sample_loss)


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
