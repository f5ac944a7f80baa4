"""Losses weighted by the gates, and the pressure of each sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class MaskedLoss(NamedTuple):
    """The result of a loss operator."""

    loss: Tensor  # scalar
    sample_loss: Tensor  # [B]
    pressure: Tensor  # [B] float32


def masked_cross_entropy(
    logits: Tensor,
    target: Tensor,
    ids: Tensor,
    gate_logits: Tensor,
    state: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    overwrite_logits: bool = False,
) -> MaskedLoss:
    """Cross entropy weighted by the gates, and the pressure of each sample, in one pass.

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``, float32, float64, bfloat16 or float16.
        target: ``[B]`` or ``[B, ...]``, any integer type: classes in ``[0, C)`` or
            ``ignore_index``.
        ids: ``[B]``, any integer type: dataset indices in ``[0, N)``; repeats are allowed.
        gate_logits: m, float32 ``[N]``.
        state: the run's state, int64; see :class:`adapruner.pruning.gates.Gates`.
        weight: class weights ``[C]``, as in :func:`torch.nn.functional.cross_entropy`, but at
            least 0. Weights on a GPU are not checked.
        ignore_index: target value of rows that do not count.
        label_smoothing: in ``[0, 1]``.
        overwrite_logits: allow the forward pass to write the gradient over ``logits``. This saves
            a tensor of their size. Autograd then refuses a backward pass in which an earlier
            operation, a softmax for example, needs the logits, and backward runs once. Logits that
            need no gradient are not overwritten, nor are traced logits (``torch.compile`` plans
            memory itself), nor float16 logits with class weights, which are converted to float32.

    Returns:
        ``loss`` = 1/B · Σ s_i·ℓ_i; ``sample_loss`` ℓ ``[B]``, the mean over the rows of a sample
        that are not ignored; ``pressure`` ``[B]``. ``sample_loss`` and ``pressure`` are not
        differentiable.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit together, ``label_smoothing`` is out of range, or
            a class weight is below 0.
        IndexError: a target or an id is out of range. The message names the first.
    """
    differentiable = logits.requires_grad and torch.is_grad_enabled()
    if weight is not None and logits.dtype == torch.float16:
        # A gradient waits for the upstream one multiplied by 1024, which leaves float16 no room for
        # large weights.
        logits, overwrite_logits = logits.float(), False
    if overwrite_logits and differentiable and not torch.compiler.is_compiling():
        return MaskedLoss(
            *torch.ops.adapruner.masked_cross_entropy_(
                logits, target, ids, gate_logits, state, weight, ignore_index, label_smoothing
            )
        )
    loss, sample_loss, pressure, _ = torch.ops.adapruner.masked_cross_entropy(
        logits,
        target,
        ids,
        gate_logits,
        state,
        weight,
        ignore_index,
        label_smoothing,
        differentiable,
    )
    return MaskedLoss(loss, sample_loss, pressure)


def masked_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    gate_logits: Tensor,
    state: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> MaskedLoss:
    """:func:`masked_cross_entropy` of ``linear(input, linear_weight, linear_bias)``, in chunks.

    This operator is for large vocabularies. It never holds all logits at once: they go through a
    buffer of at most 32 MiB, or 64 rows if these take more (on a GPU 256 MiB or 512 rows). The
    forward pass computes the gradients of ``input``, ``linear_weight`` and ``linear_bias`` that are
    needed. Ignored rows cost no time on a CPU.

    Args:
        input: ``[B, H]`` or ``[B, ..., H]``, float32, float64, bfloat16 or float16: the last hidden
            states, for a language model ``[B, T, H]``.
        linear_weight: ``[C, H]``, of the dtype of ``input``.
        linear_bias: ``[C]``, of the dtype of ``input``, or None.
        target: ``[B]`` or ``[B, ...]``, any integer type: classes in ``[0, C)`` or
            ``ignore_index``.
        ids: ``[B]``, any integer type: dataset indices in ``[0, N)``; repeats are allowed.
        gate_logits: m, float32 ``[N]``.
        state: the run's state, int64; see :class:`adapruner.pruning.gates.Gates`.
        weight: class weights ``[C]``, as in :func:`torch.nn.functional.cross_entropy`, but at
            least 0. Weights on a GPU are not checked.
        ignore_index: target value of rows that do not count.
        label_smoothing: in ``[0, 1]``.

    Under autocast, the floating arguments are first cast to its dtype, as
    :func:`torch.nn.functional.linear` does. With bfloat16, the gradient of ``linear_weight`` is
    rounded for each chunk and summed over chunks in float32. With float16, all products are
    computed in float32, with a float32 copy of ``linear_weight``.

    Returns:
        The same as :func:`masked_cross_entropy`.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit together, ``label_smoothing`` is out of range, or
            a class weight is below 0.
        IndexError: a target or an id is out of range. The message names the first.
    """
    grad = torch.is_grad_enabled()
    loss, sample_loss, pressure, *_ = torch.ops.adapruner.masked_linear_cross_entropy(
        input,
        linear_weight,
        linear_bias,
        target,
        ids,
        gate_logits,
        state,
        weight,
        ignore_index,
        label_smoothing,
        grad and input.requires_grad,
        grad and linear_weight.requires_grad,
        grad and linear_bias is not None and linear_bias.requires_grad,
    )
    return MaskedLoss(loss, sample_loss, pressure)


def masked_loss(sample_loss: Tensor, ids: Tensor, gate_logits: Tensor, state: Tensor) -> MaskedLoss:
    """The loss of any task, weighted by the gates, and the pressure of each sample.

    Args:
        sample_loss: ℓ ≥ 0, ``[B]``, unreduced, with its graph; any floating type. A loss that
            rounding made negative counts as 0: down to −1e−6, in float16 to −2⁻⁷, in bfloat16 to
            −2⁻⁴.
        ids: ``[B]``, any integer type.
        gate_logits: m, float32 ``[N]``.
        state: the run's state, int64.

    Returns:
        The same as :func:`masked_cross_entropy`.

    Raises:
        ValueError: shapes do not fit, or a loss is negative. The message names the first.
        IndexError: an id is out of range.
    """
    loss, pressure, _ = torch.ops.adapruner.masked_loss(sample_loss, ids, gate_logits, state)
    return MaskedLoss(loss, sample_loss.detach().clamp(min=0), pressure)


def mean_weight(target: Tensor, weight: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean class weight of a batch: the mean over its samples of the mean over a sample's rows.

    A loss with class weights, divided by this mean, is a weighted mean over the samples.

    Args:
        target: ``[B]`` or ``[B, ...]``, classes or ``ignore_index``.
        weight: class weights ``[C]``, of at least 0.
        ignore_index: target value of rows that do not count.

    Returns:
        Scalar of the dtype of ``weight``. A sample without counted rows counts as 0.
    """
    rows = target.reshape(len(target), math.prod(target.shape[1:])).long()
    counted = rows != ignore_index
    # A target out of range is reported by the loss. A GPU must not read outside the weights.
    weights = weight[rows.clamp(0, len(weight) - 1)].where(counted, 0)
    return (weights.sum(1) / counted.sum(1).clamp(min=1)).mean()
