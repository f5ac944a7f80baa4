"""A call of every operator with each of its sample inputs: for opcheck, and beside a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from support.linear_inputs import FEW_LINEAR, linear_sample
from support.sample_inputs import (
    FEW,
    LOSSES,
    TOP_K,
    UPDATES,
    cross_entropy_sample,
    loss_sample,
    native_gates,
    oldest_sample,
    order_sample,
    sampling_sample,
    segmented_topk_sample,
    topk_sample,
    update_sample,
)

# Operators without a CUDA kernel.
CPU_ONLY = frozenset({"masked_order"})


def calls() -> Iterator[tuple[str, str, tuple[Any, ...], dict[str, Any]]]:
    """Operator, name of the sample, arguments."""
    for name in FEW:
        for dtype in (torch.float32, torch.bfloat16):
            sample = cross_entropy_sample(name, dtype)
            arguments = sample.arguments(native_gates(sample.gates))
            yield "masked_cross_entropy_", f"{name} {dtype}", arguments, sample.options
            arguments = (sample.logits.clone().requires_grad_(), *arguments[1:])
            yield "masked_cross_entropy", f"{name} {dtype}", arguments, sample.options
            evaluation = sample.options | {"compute_gradient": False}
            arguments = (sample.logits, *arguments[1:])
            yield "masked_cross_entropy", f"{name} {dtype} evaluation", arguments, evaluation
    for name in FEW_LINEAR:
        for dtype in (torch.float32, torch.bfloat16):
            linear = linear_sample(name, dtype)
            arguments = linear.arguments(linear.leaves())
            yield "masked_linear_cross_entropy", f"{name} {dtype}", arguments, linear.options
            none = {f"compute_{of}_gradient": False for of in ("input", "weight", "bias")}
            arguments = linear.arguments([leaf.detach() for leaf in linear.leaves()])
            options = linear.options | none
            yield "masked_linear_cross_entropy", f"{name} {dtype} evaluation", arguments, options
    for name in LOSSES:
        losses = loss_sample(name)
        gates = native_gates(losses.gates)
        x = losses.sample_loss.requires_grad_()
        yield "masked_loss", name, (x, losses.ids, gates.logits, gates.state), {}
    for name in UPDATES:
        update = update_sample(name)
        for track in (False, True):
            gates = native_gates(update.gates, track_losses=track)
            yield "gate_update", f"{name} {track}", update.arguments(gates), {}
            if gates.last_loss is not None:
                arguments = (gates.logits, gates.age, gates.state, gates.last_loss)
                yield "gate_drift", name, arguments, {}
        for running in (0, 1):
            gates = native_gates(update.gates)
            gates.set_integer("scale_running", running)
            arguments = (update.pressure, gates.state, update.sample_loss)
            yield "first_loss_scale", f"{name} {running}", arguments, {}
    for name in TOP_K:
        for sums, end in (("", None), (" without sums", -1)):  # the slope comes last
            yield "topk_mask", name + sums, topk_sample(name)[:end], {}
            yield "segmented_topk", name + sums, segmented_topk_sample(name)[:end], {}
        yield "masked_order", name, order_sample(name), {}
        yield "oldest_mask", name, oldest_sample(name), {}
        arguments = sampling_sample(name)
        yield "sampling_keys", name, arguments, {}
        yield "sampling_keys", name + " no ceiling", (*arguments[:-1], torch.inf), {}
    for operator in ("scale_gradient", "scale_gradient_"):
        yield operator, "matrix", (torch.ones(3, 4), torch.tensor(2.0)), {}


@functools.cache
def calls_on(device: str) -> dict[str, tuple[Any, ...]]:
    with torch.device(device):
        return {f"{operator}: {name}": (operator, *rest) for operator, name, *rest in calls()}
