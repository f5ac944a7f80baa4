"""Makes the result of a run from its pruner."""

from __future__ import annotations

import platform
import warnings
from typing import Any

import numpy as np
import torch

from adapruner._util.tensors import to_cpu
from adapruner._version import __version__
from adapruner.data.sources.base import Source
from adapruner.pruning import bitmask
from adapruner.pruning.pruner import Pruner
from adapruner.pruning.selection import keep_count
from adapruner.results.result import PruneResult


def result_of(pruner: Pruner) -> PruneResult:
    """The outcome of a run.

    Raises:
        RuntimeError: the run has not ended.
    """
    if not pruner.finished:
        raise RuntimeError(
            f"a run has a result after its last epoch; found {pruner.epoch} of {pruner.epochs} "
            "epochs ended. Call step() at the end of each epoch"
        )
    mask, selected_epoch = pruner.selection.kept, None
    if pruner.best is not None:
        selected_epoch, mask = pruner.best.epoch, pruner.best.mask
    indices = bitmask.indices(mask)
    # False if no epoch trained at the final keep ratio.
    pruned = [entry for entry in pruner.history if entry["phase"] == "prune"]
    at_target = any(entry["kept"] == pruner.target_count for entry in pruned)
    wanted = keep_count(pruner.keep_ratio, pruner.num_samples)
    if wanted > len(indices):
        warnings.warn(
            f"expected {wanted} kept samples (keep_ratio {pruner.keep_ratio} of "
            f"{pruner.num_samples}); found {len(indices)}, since no more can be read",
            stacklevel=3,
        )
    samples = pruner.samples
    targets = None if samples is None else samples.targets
    if targets is not None:
        _warn_of_emptied_classes(np.asarray(targets), indices.numpy())
    return PruneResult(
        indices=indices,
        gate_logits=to_cpu(pruner.method.scores(pruner.gates, pruner.history)),
        keep_ratio=pruner.keep_ratio,
        fingerprint=pruner.fingerprint,
        config=dict(pruner.settings),
        dataset={"num_samples": pruner.num_samples} if samples is None else samples.about(),
        history=[dict(entry) for entry in pruner.history],
        selected_epoch=selected_epoch,
        forced=not at_target,
        sample_losses=to_cpu(pruner.gates.last_loss),
        unreadable=pruner.unreadable,
        not_finite=sorted(pruner.not_finite),
        targets=None if targets is None else torch.from_numpy(targets),
        source=samples if isinstance(samples, Source) else None,
        saved=_saved(pruner, indices.numpy()),
        versions={
            "adapruner": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def _warn_of_emptied_classes(targets: np.ndarray, kept: np.ndarray) -> None:
    """Warn if a class has no kept sample, although every class could have one."""
    classes = np.unique(targets)
    emptied = np.setdiff1d(classes, targets[kept])
    if len(emptied) and len(classes) <= len(kept):
        warnings.warn(
            f"expected kept samples of each of the {len(classes)} classes; found none of "
            f"{len(emptied)}, the first is class {emptied[0]}. With balanced classes every class "
            'keeps its share: labels=... of a Pruner, balance="class" of fast_prune',
            stacklevel=4,
        )


def _saved(pruner: Pruner, indices: np.ndarray) -> dict[str, Any]:
    """The savings of the kept set; see :class:`adapruner.PruneResult`."""
    read = sum(entry["samples_read"] + entry["samples_evaluated"] for entry in pruner.history)
    full = pruner.epochs * pruner.num_samples
    seconds = sum(entry["seconds"] for entry in pruner.history)
    saved = {
        "samples": pruner.num_samples - len(indices),
        "samples_read": read,
        "samples_read_full": full,
        "seconds": seconds,
        "seconds_full": seconds / max(read, 1) * full,
    }
    if pruner.samples is not None and (sizes := pruner.samples.sizes) is not None:
        saved["bytes"] = int(sizes.sum() - sizes[indices].sum())
    if isinstance(pruner.samples, Source) and pruner.samples.bytes_read is not None:
        saved["bytes_read"] = pruner.samples.bytes_read
    return saved
