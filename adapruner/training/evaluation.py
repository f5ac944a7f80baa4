"""The losses of held-out samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy of each sample, without gates. The host does not wait for the device.

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``.
        target: ``[B]`` or ``[B, ...]``, any integer type; −100 is ignored.

    Returns:
        ℓ ``[B]``, the mean over the rows of a sample that are not ignored; and int64 ``[3]``:
        whether a target is out of range, the first such target, and C. Targets out of range are
        ignored.
    """
    target, classes = target.long(), logits.shape[1]
    outside = ((target < 0) | (target >= classes)) & (target != -100)
    # One more place, so that an empty batch has a first place too.
    places = functional.pad(outside.flatten().byte(), (0, 1))
    first = functional.pad(target.flatten(), (0, 1)).gather(0, places.argmax()[None])
    found = torch.cat([outside.any()[None].long(), first, torch.full_like(first, classes)])
    target = target.where(~outside, -100)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = functional.cross_entropy(logits, target, reduction="none").reshape(len(target), -1)
    counted = (target.reshape(rows.shape) != -100).sum(1).clamp(min=1)
    return rows.sum(1) / counted, found


def check_targets(found: list[Tensor]) -> None:
    """Raise IndexError for the first target that is out of range.

    Args:
        found: the second result of :func:`sample_cross_entropy` for each batch.
    """
    for outside, target, classes in torch.stack(found).tolist() if found else []:
        if outside:
            raise IndexError(
                f"the target of a held-out sample must be a class of the logits, at most "
                f"{classes - 1}, or -100; found {target}"
            )
