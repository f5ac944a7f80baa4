"""Losses of each sample for common tasks, for ``fast_prune(loss=…)`` and ``Pruner.custom_loss``.

Each takes the outputs of a model and the targets, and returns ℓ ``[B]``, unreduced and at least 0.
Segmentation and token classification need none of them: the default loss takes logits
``[B, C, …]``, and ``ignore_index`` leaves out pixels or tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def multi_label(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy, the mean over the classes.

    Args:
        outputs: one logit for each class, ``[B, C]``.
        targets: 0 or 1 for each class, or shares in between, ``[B, C]``.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(outputs, targets)
    losses = functional.binary_cross_entropy_with_logits(
        outputs.float(), targets.float(), reduction="none"
    )
    return losses.flatten(1).mean(1)


def soft_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the predicted from the given distribution.

    It is the cross entropy with soft targets, less their entropy. So it is 0 for a perfect fit, and
    a sample with an unsure target does not look hard.

    Args:
        outputs: logits, ``[B, C]``.
        targets: probabilities that sum to 1, ``[B, C]``.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(outputs, targets)
    targets = targets.float()
    losses = functional.kl_div(outputs.float().log_softmax(1), targets, reduction="none")
    return losses.sum(1).clamp(min=0)  # rounding may leave it just below 0


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, the mean over all values of a sample; for regression and reconstruction.

    Args:
        outputs, targets: ``[B, …]``.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(outputs, targets)
    losses = functional.mse_loss(outputs.float(), targets.float(), reduction="none")
    return losses.reshape(len(losses), -1).mean(1)


def focal(outputs: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """A loss with the gradient of focal loss and the value of cross entropy.

    So focal loss trains the model, and cross entropy judges the samples.

    The focal loss (1 − p)^γ · −log p nearly vanishes for samples that are half right, so its values
    tell less about a label (docs/tasks.md has figures).

    Args:
        outputs: logits, ``[B, C]`` or ``[B, C, …]``.
        targets: classes, integers ``[B]`` or ``[B, …]``.
        gamma: γ, at least 0; 2 as in RetinaNet (Lin et al., arXiv 1708.02002). 0 is cross entropy.
    """
    judge = functional.cross_entropy(outputs.float(), targets, reduction="none")
    wrong = -torch.expm1(-judge)  # 1 − p
    loss = wrong.clamp(min=torch.finfo(wrong.dtype).eps) ** gamma * judge
    value = judge.detach() + loss - loss.detach()
    return value.reshape(len(value), -1).mean(1)


def _check_shapes(outputs: Tensor, targets: Tensor) -> None:
    if not isinstance(targets, torch.Tensor) or outputs.shape != targets.shape:
        found = list(targets.shape) if isinstance(targets, torch.Tensor) else type(targets).__name__
        raise ValueError(f"targets must have the shape {list(outputs.shape)}; found {found}")
