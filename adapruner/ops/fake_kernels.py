"""Shapes and dtypes of the native operators' results, with which ``torch.compile`` traces them.

:mod:`adapruner.ops` imports this module after the native library has registered the operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapruner.ops import native  # noqa: F401  (registers the operators)


def _loss_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check_devices(first: Tensor, **others: Tensor | None) -> None:
    # A meta tensor among others brings the call here. The results would be memory without values.
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"{name} must be on {first.device}, the device of the first argument; found "
                f"{tensor.device}"
            )


@torch.library.register_fake("adapruner::masked_cross_entropy")
def _(  # type: ignore[no-untyped-def]
    logits, target, ids, gate_logits, state, weight=None, ignore_index=-100, label_smoothing=0.0,
    compute_gradient=True,
):  # fmt: skip
    _check_devices(
        logits, target=target, ids=ids, gate_logits=gate_logits, state=state, weight=weight
    )
    losses = logits.new_empty(logits.shape[:1], dtype=_loss_dtype(logits))
    if not compute_gradient:
        gradient = logits.new_empty(0)
    elif (
        logits.is_contiguous()
        and logits.dtype != torch.float64
        and logits.numel() > logits.shape[0] * logits.shape[1]
    ):
        gradient = logits.new_empty(logits.shape)  # the kernel keeps the layout of such logits
    else:
        gradient = logits.new_empty(logits.movedim(1, -1).shape).movedim(-1, 1)
    return (
        losses.new_empty(()),
        losses,
        logits.new_empty(logits.shape[:1], dtype=torch.float32),
        gradient,
    )


@torch.library.register_fake("adapruner::masked_cross_entropy_")
def _(  # type: ignore[no-untyped-def]
    logits, target, ids, gate_logits, state, weight=None, ignore_index=-100, label_smoothing=0.0
):  # fmt: skip
    _check_devices(
        logits, target=target, ids=ids, gate_logits=gate_logits, state=state, weight=weight
    )
    losses = logits.new_empty(logits.shape[:1], dtype=_loss_dtype(logits))
    return losses.new_empty(()), losses, logits.new_empty(logits.shape[:1], dtype=torch.float32)


@torch.library.register_fake("adapruner::masked_linear_cross_entropy")
def _(  # type: ignore[no-untyped-def]
    input, linear_weight, linear_bias, target, ids, gate_logits, state, weight=None,
    ignore_index=-100, label_smoothing=0.0, compute_input_gradient=True,
    compute_weight_gradient=True, compute_bias_gradient=True,
):  # fmt: skip
    _check_devices(
        input, linear_weight=linear_weight, linear_bias=linear_bias, target=target, ids=ids,
        gate_logits=gate_logits, state=state, weight=weight,
    )  # fmt: skip
    losses = input.new_empty(input.shape[:1], dtype=_loss_dtype(input))
    bias_gradient = compute_bias_gradient and linear_bias is not None
    dtype = torch.float32 if input.dtype == torch.float16 else input.dtype
    return (
        losses.new_empty(()),
        losses,
        input.new_empty(input.shape[:1], dtype=torch.float32),
        input.new_empty(input.shape if compute_input_gradient else 0, dtype=dtype),
        input.new_empty(linear_weight.shape if compute_weight_gradient else 0, dtype=dtype),
        input.new_empty(linear_weight.shape[:1] if bias_gradient else 0, dtype=dtype),
    )


@torch.library.register_fake("adapruner::masked_loss")
def _(sample_loss, ids, gate_logits, state):  # type: ignore[no-untyped-def]
    _check_devices(sample_loss, ids=ids, gate_logits=gate_logits, state=state)
    return (
        sample_loss.new_empty((), dtype=_loss_dtype(sample_loss)),
        sample_loss.new_empty(sample_loss.shape, dtype=torch.float32),
        sample_loss.new_empty(sample_loss.shape, dtype=_loss_dtype(sample_loss)),
    )


@torch.library.register_fake("adapruner::scale_gradient")
def _(gradient, upstream):  # type: ignore[no-untyped-def]
    return torch.empty_like(gradient)


@torch.library.register_fake("adapruner::scale_gradient_")
def _(gradient, upstream):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("adapruner::gate_update")
def _(gate_logits, age, state, last_loss, ids, pressure, sample_loss):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("adapruner::first_loss_scale")
def _(pressure, state, sample_loss):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("adapruner::gate_drift")
def _(gate_logits, age, state, last_loss):  # type: ignore[no-untyped-def]
    return None


def _fake_sums(gate_logits: Tensor, slope: float | None) -> Tensor:
    return gate_logits.new_empty(0 if slope is None else 2, dtype=torch.int64)


def _fake_mask(gate_logits: Tensor, slope: float | None) -> tuple[Tensor, Tensor]:
    size = (gate_logits.shape[0] + 7) // 8
    return gate_logits.new_empty(size, dtype=torch.uint8), _fake_sums(gate_logits, slope)


@torch.library.register_fake("adapruner::topk_mask")
def _(gate_logits, k, slope=None):  # type: ignore[no-untyped-def]
    return _fake_mask(gate_logits, slope)


@torch.library.register_fake("adapruner::segmented_topk")
def _(gate_logits, segments, quotas, slope=None):  # type: ignore[no-untyped-def]
    return _fake_mask(gate_logits, slope)


@torch.library.register_fake("adapruner::masked_order")
def _(mask, num_samples, key, position, count):  # type: ignore[no-untyped-def]
    size = torch.library.get_ctx().new_dynamic_size()
    return mask.new_empty(size, dtype=torch.int64), mask.new_empty((), dtype=torch.int64)


@torch.library.register_fake("adapruner::oldest_mask")
def _(candidates, age, count, key):  # type: ignore[no-untyped-def]
    return torch.empty_like(candidates)


@torch.library.register_fake("adapruner::sampling_keys")
def _(gate_logits, age, scale, turns, key, ceiling):  # type: ignore[no-untyped-def]
    return gate_logits.new_empty(gate_logits.shape)
