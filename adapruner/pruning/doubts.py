"""Texts of the warnings about a run: what makes its selection doubtful."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from adapruner.pruning import bitmask
from adapruner.pruning.constant import Noted
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods.base import Method
from adapruner.pruning.methods.published import Published

# Selections of runs with fewer epochs were no better than a random set: see docs/quality.md.
FEW_EPOCHS = 10
# A class with fewer kept samples is hardly learned.
FEW_OF_A_CLASS = 5

OTHER_DATASET = (
    "a later loader of this pruner has another dataset than the first one: their fingerprints "
    "differ. An id must mean the same sample in both. A random split that is made anew in each "
    "epoch breaks this; make it once"
)


def few_epochs(epochs: int, keep_ratio: float) -> str | None:
    """The warning for a run that is too short to learn a selection, or None."""
    if epochs >= FEW_EPOCHS or keep_ratio == 1:
        return None
    return (
        f"a selection needs about {FEW_EPOCHS} epochs to be better than a random set; found "
        f"epochs={epochs}"
    )


def other_constants(found: Any, method: Method) -> str | None:
    """The warning for a state whose method had other constants, or None.

    Args:
        found: repr of the method of the state; None for a state of version 0.1.0, whose published
            method was the same.
        method: the method of the run that loads the state.
    """
    if found == repr(method) or (found is None and isinstance(method, Published)):
        return None
    return (
        "the state is of a version of adapruner whose method had other constants. The run goes on "
        "with those of this version, so its kept set is that of neither version"
    )


def no_constant(reason: str | None) -> str | None:
    """The warning for a loss of which no constant prediction is known, or None.

    Args:
        reason: the error of the loss function, or None.
    """
    if reason is None:
        return None
    return (
        "the loss function failed for a constant prediction, so the unit of losses is their mean "
        f"in the first epoch, which may be too large: {reason}"
    )


def other_targets(classes: Any, noted: Noted | None) -> str | None:
    """The warning for a dataset that names other classes than its batches have, or None.

    Args:
        classes: class of each sample as the dataset names it, integers ``[N]``; None if unknown.
        noted: samples with the targets that batches had.
    """
    if classes is None or noted is None or not _are_classes(noted.targets):
        return None
    named = np.asarray(classes)[noted.ids.cpu().numpy()].tolist()
    target_of: dict[int, int] = {}
    for name, target in zip(named, noted.targets.tolist(), strict=True):
        if target_of.setdefault(name, target) != target:
            break
    else:
        return None
    return (
        "the dataset names other classes than the targets of its items: found the targets "
        f"{target_of[name]} and {target} for samples of class {name}. Floors of classes, shares of "
        "classes and suspects go by the classes that it names. If its attribute `targets`, "
        "`labels` or `y` is about something else, say where an item has its target (target=)"
    )


def _are_classes(targets: Tensor) -> bool:
    return targets.dim() == 1 and not (targets.is_floating_point() or targets.is_complex())


def unread_samples(entry: Mapping[str, Any], may_drop: int) -> str | None:
    """The warning for samples of an epoch that were never given to a loss, or None.

    Args:
        entry: the epoch's entry of the history.
        may_drop: number of samples that loaders leave out of an epoch on purpose.
    """
    unread = entry["samples_skipped"]
    if unread <= (may_drop if entry["samples_read"] else 0):
        return None
    return (
        f"epoch {entry['epoch']} was to train on {entry['samples_read'] + unread} samples; found "
        f"{unread} of them without a loss. Give every batch of the loader to pruner.loss, "
        "linear_loss or weigh. Samples whose targets are all ignored have no loss either"
    )


def repeated_visits(
    epoch: int, losses: int, planned: int, evaluated: int, held_out: int
) -> str | None:
    """The warning for samples that had several losses in an epoch, or None.

    Args:
        epoch: the epoch.
        losses: number of finite losses of training batches in it.
        planned: number of samples that it was to train on, the unreadable ones included.
        evaluated: number of losses that were observed in it.
        held_out: number of held-out samples of the dataset.
    """
    counts = ((losses, planned, "were read"), (evaluated, held_out, "are held out"))
    for found, expected, what in counts:
        if found > expected:
            return (
                f"epoch {epoch} has {found} losses of {expected} samples that {what}. A gate steps "
                "with each loss, so scores shift: give each sample to pruner.loss, weigh or "
                "observe once in an epoch"
            )
    return None


def unobserved_samples(held_out: int) -> str | None:
    """The warning for held-out samples of the dataset that no evaluation has seen, or None."""
    if not held_out:
        return None
    return (
        f"{held_out} samples are held out, and none of them had a loss yet. Give their losses to "
        "pruner.observe in each epoch; without them, which of them are kept means nothing"
    )


def not_finite_validation(epoch: int, loss: float | None) -> str | None:
    """The warning for a held-out loss that is not finite, or None."""
    if loss is None or math.isfinite(loss):
        return None
    return (
        f"the held-out loss of epoch {epoch} is {loss}. It counts as one that has fallen behind, "
        "so the keep ratio goes back towards 1 while it stays so"
    )


def ids_like_positions(gates: Gates) -> str | None:
    """The warning for ids that are places in a batch, or None.

    They are if only the samples 0 to B − 1 had losses since the start of the run, and each of them
    had several in this epoch.
    """
    seen = gates.seen()
    count = bitmask.count(seen)
    if not 0 < 2 * count <= min(gates.visits(), len(gates.logits)):
        return None
    if len(bitmask.indices_between(seen, 0, count)) < count:
        return None
    return (
        f"ids look like places in a batch: found losses for the ids 0 to {count - 1} again and "
        f"again, and for no others of {len(gates.logits)} samples. Give the dataset index of each "
        "sample, as adapruner.with_ids does"
    )


def unreadable_samples(unreadable: Sequence[tuple[int, str]], num_samples: int) -> str | None:
    """The warning for samples that cannot be read, or None.

    Args:
        unreadable: (index, reason) of each.
        num_samples: number of samples of the dataset.
    """
    if not unreadable:
        return None
    index, reason = unreadable[0]
    return (
        f"{len(unreadable)} of {num_samples} samples cannot be read and are not kept; the first is "
        f"sample {index}: {reason}"
    )


def small_classes(targets: Any, indices: Any, balance: str | None) -> str | None:
    """The warning for classes that lost all or nearly all of their samples, or None.

    Args:
        targets: class of each sample, integers ``[N]``; None if unknown.
        indices: the kept samples, integers ``[K]``.
        balance: "class" if every class has its share already.
    """
    if targets is None:
        return None
    classes, of_sample = np.unique(np.asarray(targets), return_inverse=True)
    before = np.bincount(of_sample, minlength=len(classes))
    after = np.bincount(of_sample[np.asarray(indices)], minlength=len(classes))
    few = (after < FEW_OF_A_CLASS) & (after < before)
    if not few.any():
        return None
    shown = ", ".join(map(str, classes[few][:10].tolist())) + (", …" if few.sum() > 10 else "")
    advice = 'Every class keeps its share with balance="class" of fast_prune, or labels= of Pruner'
    if balance == "class":
        advice = "Every class has its share already, so only a higher keep ratio keeps more of them"
    return (
        f"{int(few.sum())} of {len(classes)} classes keep fewer than {FEW_OF_A_CLASS} samples, and "
        f"{int((after == 0).sum())} of them keep none: classes {shown}. {advice}"
    )


def alike_neighbours(likeness: float) -> str:
    """The warning for a dataset whose neighbours have about the same losses.

    Args:
        likeness: as in :mod:`adapruner.pruning.neighbours`.
    """
    return (
        "neighbours in the dataset have about the same losses, as frames of a video have (their "
        f"correlation is larger by {likeness:.2f} than that of samples further apart). So the kept "
        "set compares each sample with its neighbours. If you know which samples belong together, "
        "give them as groups, and keep no group on both sides of a split"
    )
