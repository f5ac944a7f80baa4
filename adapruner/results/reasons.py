"""Why each sample of a result is kept or pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adapruner.pruning import neighbours
from adapruner.pruning.methods.base import NEVER_FINITE

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

# In the order of a report. A reason is stored as its place in this list.
REASONS = (
    "kept",
    "easy",
    "does not fit",
    "low score",
    "drawn out",
    "quota",
    "unreadable",
    "never seen",
)
MEANINGS = {
    "kept": "The sample is in the kept set.",
    "easy": "Its score is too low, and its losses were at most typical of the kept samples.",
    "does not fit": "Its score is too low, and its losses were above those typical of the kept "
    "samples: a wrong label, an outlier, or a sample too hard for the model.",
    "low score": "Its score is too low. The result holds no loss that says on which side.",
    "drawn out": "Its score is as high as that of kept samples. The draw, its neighbours, a tie, "
    "or the choice of an earlier epoch's selection left it out.",
    "quota": "Its score is high enough among all samples, but not among its class or among the "
    "held-out samples, which have a share of their own.",
    "unreadable": "The run could not read it.",
    "never seen": "The run saw no finite loss of it.",
}
_CODE = {name: code for code, name in enumerate(REASONS)}


def reason_codes(result: PruneResult) -> NDArray[np.int8]:
    """The reason of every sample, int8 ``[N]``, as places in ``REASONS``.

    A score is high enough if it is at least the k-th largest of its group, where k samples of the
    group are kept. If the run compared each sample with its neighbours, scores are taken minus the
    mean of the neighbours. Groups are the classes with ``balance``, each split into trained and
    held-out samples, and otherwise the trained and the held-out samples. Typical of the kept
    samples is the median of their relative losses.
    """
    scores = result.gate_logits.double().numpy()
    kept = result.kept.numpy()
    codes = np.full(len(scores), _CODE["low score"], dtype=np.int8)
    losses = _typical_losses(result)
    if losses is not None and np.isfinite(losses[kept]).any():
        middle = np.median(losses[kept & np.isfinite(losses)])
        codes[losses <= middle] = _CODE["easy"]
        codes[losses > middle] = _CODE["does not fit"]
    groups, ranked = _groups(result), _ranked(result)
    codes[ranked >= _bounds(ranked, kept, np.zeros_like(groups))] = _CODE["quota"]
    codes[ranked >= _bounds(ranked, kept, groups)] = _CODE["drawn out"]
    codes[~_seen(result, scores)] = _CODE["never seen"]
    codes[_unreadable(result, scores)] = _CODE["unreadable"]
    codes[kept] = _CODE["kept"]
    return codes


def reason_counts(result: PruneResult) -> dict[str, int]:
    """Number of samples of each reason that occurs, in the order of ``REASONS``."""
    counts = np.bincount(reason_codes(result), minlength=len(REASONS)).tolist()
    return {name: count for name, count in zip(REASONS, counts, strict=True) if count}


def _typical_losses(result: PruneResult) -> NDArray[np.float64] | None:
    """Relative loss of every sample, or its last loss where that is not known; or None."""
    losses = result.relative_losses if result.relative_losses is not None else result.sample_losses
    return None if losses is None else losses.double().numpy()


def _ranked(result: PruneResult) -> NDArray[np.float64]:
    """The score of each sample, or how far it is below its neighbours where they were compared."""
    scores = result.gate_logits
    if result.config.get("balance") == "neighbours":
        scores = scores.clone()
        neighbours.subtract_local_mean(scores, NEVER_FINITE)
        scores.clamp_(max=0)  # better than its neighbours is no better
    return scores.double().numpy()


def _groups(result: PruneResult) -> NDArray[np.int64]:
    """The group of each sample that has a quota of its own, int64 ``[N]``."""
    groups = np.zeros(result.num_samples, dtype=np.int64)
    if result.quota_labels is not None:
        groups += 2 * result.quota_labels.long().numpy()
    if result.held_out is not None:
        groups[result.held_out.numpy()] += 1
    return groups


def _bounds(
    scores: NDArray[np.float64], kept: NDArray[np.bool_], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The score that is high enough in the group of each sample; +inf if it keeps none."""
    order = np.lexsort((-scores, groups))
    sizes = np.bincount(groups)
    counts = np.bincount(groups[kept], minlength=len(sizes))
    starts = np.cumsum(sizes) - sizes
    last = (
        order[np.minimum(starts + np.maximum(counts, 1) - 1, len(order) - 1)] if len(order) else []
    )
    bounds: NDArray[np.float64] = np.where(counts > 0, scores[last], np.inf)
    return bounds[groups]


def _seen(result: PruneResult, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    if result.visits is not None:
        return result.visits.numpy() > 0
    if result.sample_losses is not None:
        return np.isfinite(result.sample_losses.numpy())
    return scores > NEVER_FINITE


def _unreadable(result: PruneResult, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    unreadable = scores == -np.inf
    unreadable[[index for index, _ in result.unreadable]] = True
    return unreadable


def samples_of(result: PruneResult, reason: str) -> NDArray[np.int64]:
    """The samples with a reason, the clearest cases first, int64.

    "easy" begins with the smallest relative loss, "does not fit" with the largest, and every other
    reason with the highest score. Of equal values the lower index is first.

    Raises:
        ValueError: ``reason`` is not in ``REASONS``.
    """
    if reason not in _CODE:
        raise ValueError(f"reason must be one of {', '.join(REASONS)}; found {reason!r}")
    found = np.flatnonzero(reason_codes(result) == _CODE[reason])
    values = -result.gate_logits.double().numpy()[found]
    losses = _typical_losses(result)
    if losses is not None and reason in ("easy", "does not fit"):
        values = losses[found] if reason == "easy" else -losses[found]
    return found[np.argsort(values, kind="stable")]
