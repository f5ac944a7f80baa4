"""The entry of an epoch in the history of a run."""

from __future__ import annotations

from typing import Any

from adapruner.pruning import bitmask
from adapruner.pruning.gates import Gates
from adapruner.pruning.selection import Selection


def entry_of(
    epoch: int,
    warming_up: bool,
    gates: Gates,
    selection: Selection,
    validation_loss: float | None,
) -> dict[str, Any]:
    """The entry of an epoch at its end. :class:`adapruner.PruneResult` explains the names.

    Args:
        epoch: from 0.
        warming_up: whether the epoch belongs to the warm-up.
        gates, selection: their state at the end of the epoch, before the next selection.
        validation_loss: mean loss on held-out data, or None.
    """
    kept, planned = selection.kept_count, bitmask.count(selection.read & gates.readable())
    read = min(gates.visits(), planned)
    return {
        "epoch": epoch,
        "phase": "warm-up" if warming_up else "prune",
        "samples_read": read,
        "samples_skipped": planned - read,
        "samples_evaluated": gates.evaluated,
        "kept": kept,
        "explored": bitmask.count(selection.explored()),
        "keep_ratio": kept / selection.num_samples,
        "slope": gates.real("slope"),
        "mean_gate": gates.mean_gate,
        "open_share": gates.open_share,
        "training_loss": gates.training_loss(),
        "validation_loss": validation_loss,
    }
