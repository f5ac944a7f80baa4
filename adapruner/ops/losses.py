"""Losses that the gates weigh, and the pressure of each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MaskedLoss(NamedTuple):
    """What the loss operators give."""

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
    """Cross entropy weighted by the gates, and the selection pressure, in one pass.

    Args:
        logits: ``[B, C]`` or ``[B, C, ...]``, float32, float64, bfloat16 or float16.
        target: ``[B]`` or ``[B, ...]``, any integer type: classes in ``[0, C)``, ``ignore_index``.
        ids: ``[B]``, any integer type, dataset indices in ``[0, N)``; repeats are allowed.
        gate_logits: m, float32 ``[N]``.
        state: the run's state, int64, see :class:`adapruner.pruning.gates.Gates`.
        weight: class weights ``[C]``, as in :func:`torch.nn.functional.cross_entropy`.
        ignore_index: target value of rows that do not count.
        label_smoothing: in ``[0, 1]``.
        overwrite_logits: allow the gradient to be written over ``logits`` in the forward pass,
            which saves a tensor of their size. Autograd then refuses the backward pass where an
            earlier operation (a softmax, say) needs the logits' values, and backward runs once.
            Logits that need no gradient, and traced ones (``torch.compile`` plans memory itself),
            stay as they are.

    Returns:
        ``loss`` = 1/B · Σ s_i·ℓ_i; ``sample_loss`` ℓ ``[B]``, the mean over a sample's rows that
        are not ignored; ``pressure`` ``[B]``. The last two are not differentiable.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit together, or ``label_smoothing`` is out of range.
        IndexError: a target or id is out of range; the message names the first.
    """
    differentiable = logits.requires_grad and torch.is_grad_enabled()
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

    For large vocabularies: the logits, a row of C for each of ``input``, are never held whole. They
    go through a scratch of at most 32 MiB (or 64 rows, where these take more; on a GPU 256 MiB or
    512 rows), and the gradients of ``input``, ``linear_weight`` and ``linear_bias`` are made in the
    forward pass, those of them that are needed. Rows that are ignored cost nothing on a CPU.

    Args:
        input: ``[B, H]`` or ``[B, ..., H]``, float32, float64, bfloat16 or float16: the last hidden
            states, for a language model ``[B, T, H]``.
        linear_weight: ``[C, H]``, of the dtype of ``input``.
        linear_bias: ``[C]``, of the dtype of ``input``, or None.
        target: ``[B]`` or ``[B, ...]``, any integer type: classes in ``[0, C)``, ``ignore_index``.
        ids: ``[B]``, any integer type, dataset indices in ``[0, N)``; repeats are allowed.
        gate_logits: m, float32 ``[N]``.
        state: the run's state, int64, see :class:`adapruner.pruning.gates.Gates`.
        weight: class weights ``[C]``, as in :func:`torch.nn.functional.cross_entropy`.
        ignore_index: target value of rows that do not count.
        label_smoothing: in ``[0, 1]``.

    Under autocast the floating arguments are cast to its dtype first, as those of
    :func:`torch.nn.functional.linear` are. bfloat16: each chunk's part of the gradient of
    ``linear_weight`` is rounded, their sum is taken in float32. float16: all products are taken in
    float32, on a float32 copy of ``linear_weight``.

    Returns:
        As of :func:`masked_cross_entropy`: ``sample_loss`` is the mean over a sample's rows.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit together, or ``label_smoothing`` is out of range.
        IndexError: a target or id is out of range; the message names the first.
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
    """The same for any task, from its per-sample losses.

    Args:
        sample_loss: ℓ ≥ 0, ``[B]``, unreduced, with its graph; any floating type.
        ids: ``[B]``, any integer type.
        gate_logits: m, float32 ``[N]``.
        state: the run's state, int64.

    Raises:
        ValueError: shapes do not fit, or a loss is negative; the message names the first.
        IndexError: an id is out of range.
    """
    loss, pressure, _ = torch.ops.adapruner.masked_loss(sample_loss, ids, gate_logits, state)
    return MaskedLoss(loss, sample_loss.detach(), pressure)
