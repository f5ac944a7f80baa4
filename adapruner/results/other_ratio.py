"""The kept set of another keep ratio, from the scores of a run that has ended."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapruner.errors import PruningWarning
from adapruner.pruning import bitmask, doubts
from adapruner.pruning.gates import Gates
from adapruner.pruning.objective import Objective
from adapruner.pruning.selection import Selection, check_keep_ratio, keep_count

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

_TOP = torch.finfo(torch.float32).max


def at(result: PruneResult, keep_ratio: float) -> PruneResult:
    """``result`` at another ratio; :meth:`adapruner.PruneResult.at` documents it."""
    count = result.num_samples
    keep_ratio = check_keep_ratio(keep_ratio, count)
    keys = (result.gate_logits if result.draw_keys is None else result.draw_keys).clone()
    unreadable = (result.gate_logits == -torch.inf).nonzero().flatten()
    # A smaller set is part of the kept set, and a larger set contains it, as far as shares allow.
    smaller = keep_count(keep_ratio, count) <= len(result.indices)
    if smaller:
        keys[~result.kept] = -_TOP
    else:
        keys[result.indices] = _TOP
    keys[unreadable] = -torch.inf
    selection = Selection(
        count,
        keep_ratio,
        labels=result.quota_labels,
        balance=result.config.get("balance") or "class",
        held_out=result.held_out,
    )
    gates = Gates(count, keep_ratio, Objective(easy_weight=0.0), "cpu")
    gates.exclude(unreadable)
    # The floors of classes in the kept set hold in a larger set, which contains it.
    selection.select(gates, keep_ratio, 1.0, keys, floors=smaller)
    indices = bitmask.indices(selection.kept)
    warn_of_few(keep_ratio, count, len(indices))
    return replace(
        result,
        indices=indices,
        keep_ratio=keep_ratio,
        config=result.config | {"run_keep_ratio": result.run_keep_ratio},
        warnings=_warnings(result, indices),
        saved=_saved(result, indices),
    )


def _warnings(result: PruneResult, indices: Tensor) -> list[str]:
    """The warnings about the run, and about the classes of the new kept set."""
    balance = result.config.get("balance")
    before, now = (
        doubts.small_classes(result.targets, kept, balance) for kept in (result.indices, indices)
    )
    told = [text for text in result.warnings if text != before]
    if now is None:
        return told
    if now != before:
        warnings.warn(now, PruningWarning, stacklevel=4)
    return [*told, now]


def _saved(result: PruneResult, indices: Tensor) -> dict[str, Any]:
    """The savings of the new kept set, and the costs of the run."""
    saved = {**result.saved, "samples": result.num_samples - len(indices)}
    if not torch.equal(indices, result.indices):
        saved.pop("bytes", None)
        if (sizes := getattr(result.source, "sizes", None)) is not None:
            saved["bytes"] = int(sizes.sum() - sizes[indices.numpy()].sum())
    return saved


def warn_of_few(keep_ratio: float, num_samples: int, kept: int) -> None:
    """Warn if fewer samples are kept than asked for, because others cannot be read."""
    wanted = keep_count(keep_ratio, num_samples)
    if wanted > kept:
        warnings.warn(
            f"expected {wanted} kept samples (keep_ratio {keep_ratio} of {num_samples}); found "
            f"{kept}, since no more can be read",
            stacklevel=4,
        )
