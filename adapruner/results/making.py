"""Makes the result of a run from its pruner."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from adapruner._util.tensors import to_cpu
from adapruner._version import __version__
from adapruner.data.sources.base import Source
from adapruner.pruning import bitmask, doubts
from adapruner.pruning.pruner import Pruner
from adapruner.pruning.run import Run
from adapruner.results.other_ratio import warn_of_few
from adapruner.results.result import PruneResult


def result_of(pruner: Pruner) -> PruneResult:
    """The outcome of a run. Before the end of the run, the outcome if it ended now.

    Raises:
        RuntimeError: the run has not ended, and has learned nothing yet.
    """
    partial = not pruner.finished
    if not partial and not any(_losses_of(entry) for entry in pruner.history):
        raise RuntimeError(
            "nothing was learned: no batch of the run was given to pruner.loss, linear_loss, "
            "custom_loss or weigh"
        )
    run = pruner.ended_early() if partial else pruner
    mask, selected_epoch = run.selection.kept, None
    if run.best is not None:
        selected_epoch, mask = run.best.epoch, run.best.mask
    indices = bitmask.indices(mask)
    # False if no epoch trained at the final keep ratio.
    pruned = [entry for entry in run.history if entry["phase"] == "prune"]
    at_target = any(entry["kept"] == run.target_count for entry in pruned)
    warn_of_few(run.keep_ratio, run.num_samples, len(indices))
    samples, gates = run.samples, run.gates
    targets = None if samples is None else samples.targets
    record, held_out, balance = gates.record, run.selection.held_out, run.balance
    doubtful = list(_doubts(run, targets, indices.numpy()))
    for text in doubtful:
        pruner.tell(text, stacklevel=4)
    keys = run.method.keys(gates, run.history, run.seed, final=True)
    return PruneResult(
        indices=indices,
        gate_logits=to_cpu(run.method.scores(run.gates, run.history)),
        keep_ratio=run.keep_ratio,
        fingerprint=run.fingerprint,
        config=run.settings | {"balance": balance},
        dataset={"num_samples": run.num_samples} if samples is None else samples.about(),
        history=[dict(entry) for entry in run.history],
        selected_epoch=selected_epoch,
        forced=not at_target,
        partial=partial,
        sample_losses=to_cpu(gates.last_loss),
        relative_losses=None if record is None else record.relative_losses().cpu(),
        visits=None if record is None else to_cpu(record.visits[:-1]),
        predicted=None if record is None else to_cpu(record.predicted[:-1]),
        draw_keys=to_cpu(keys),
        quota_labels=run.selection.labels if balance in ("class", "floor") else None,
        held_out=None if held_out is None else bitmask.indices(held_out),
        paths=None if (paths := getattr(samples, "paths", None)) is None else list(paths),
        unreadable=run.unreadable,
        not_finite=sorted(run.not_finite),
        warnings=[*pruner.warnings.values(), *doubtful],
        targets=None if targets is None else torch.from_numpy(targets),
        source=samples if isinstance(samples, Source) else None,
        saved=_saved(run, indices.numpy()),
        versions={
            "adapruner": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def _doubts(run: Run, targets: np.ndarray | None, indices: np.ndarray) -> Iterator[str]:
    """The warnings about this result, beside those of the run."""
    if not run.finished:
        yield _partial(run)
    if (text := doubts.unreadable_samples(run.unreadable, run.num_samples)) is not None:
        yield text
    if run.balance == "neighbours":
        yield doubts.alike_neighbours(run.history[-1]["neighbours"])
    if (text := doubts.small_classes(targets, indices, run.balance)) is not None:
        yield text


def _partial(run: Run) -> str:
    text = f"the run ended in epoch {len(run.history)} of {run.epochs}, so its result is partial"
    if run.gates.any_unvisited():
        text += "; samples that were never given to a loss are kept last"
    return text


def _saved(run: Run, indices: np.ndarray) -> dict[str, Any]:
    """The savings of the kept set; see :class:`adapruner.PruneResult`."""
    read = sum(map(_losses_of, run.history))
    full = run.epochs * run.num_samples
    if not run.finished:  # of the epochs so far, the last of which may be a part
        full = round(sum(_share_read(entry) for entry in run.history) * run.num_samples)
    seconds = sum(entry["seconds"] for entry in run.history)
    saved = {
        "samples": run.num_samples - len(indices),
        "samples_read": read,
        "samples_read_full": full,
        "seconds": seconds,
        "seconds_full": seconds / max(read, 1) * full,
    }
    if run.samples is not None and (sizes := run.samples.sizes) is not None:
        saved["bytes"] = int(sizes.sum() - sizes[indices].sum())
    if run.bytes_read is not None:
        saved["bytes_read"] = run.bytes_read
    return saved


def _losses_of(entry: Mapping[str, Any]) -> int:
    return int(entry["samples_read"] + entry["samples_evaluated"])


def _share_read(entry: Mapping[str, Any]) -> float:
    """The share of its planned samples that an epoch read."""
    planned = entry["samples_read"] + entry["samples_skipped"]
    return entry["samples_read"] / planned if planned else 1.0
