"""The losses of held-out samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The cross entropy of each sample, without gates. The host does not wait for the device.

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``.
        target: ``[B]`` or ``[B, ...]``, any integer type.
        weight, ignore_index, label_smoothing: as in :func:`adapruner.ops.masked_cross_entropy`.

    Returns:
        ℓ ``[B]``, the mean over the rows of a sample that are not ignored; and int64 ``[3]``:
        whether a target is out of range, the first such target, and C. Targets out of range are
        ignored.
    """
    target, classes = target.long(), logits.shape[1]
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    # One more place, so that an empty batch has a first place too.
    places = functional.pad(outside.flatten().byte(), (0, 1))
    first = functional.pad(target.flatten(), (0, 1)).gather(0, places.argmax()[None])
    found = torch.cat([outside.any()[None].long(), first, torch.full_like(first, classes)])
    target = target.where(~outside, ignore_index)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = functional.cross_entropy(
        logits,
        target,
        weight=None if weight is None else weight.to(logits.dtype),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    ).reshape(len(target), -1)
    counted = (target.reshape(rows.shape) != ignore_index).sum(1).clamp(min=1)
    return rows.sum(1) / counted, found


def counted_samples(targets: Tensor, ignore_index: int) -> Tensor | None:
    """Places of the samples with a target that is not ignored, int64; None if all have one.

    Args:
        targets: ``[B]`` or ``[B, ...]``.
        ignore_index: the target that is ignored.
    """
    counted = (targets != ignore_index).reshape(len(targets), -1).any(1)
    return None if counted.all() else counted.nonzero().flatten()


def check_targets(found: list[Tensor], ignore_index: int = -100) -> None:
    """Raise IndexError for the first target that is out of range.

    Args:
        found: the second result of :func:`sample_cross_entropy` for each batch.
        ignore_index: the target that is ignored.
    """
    for outside, target, classes in torch.stack(found).tolist() if found else []:
        if outside:
            raise IndexError(
                f"the target of a held-out sample must be a class of the logits, at most "
                f"{classes - 1}, or {ignore_index}; found {target}"
            )
