"""Sample inputs of ``masked_linear_cross_entropy``; see tests/support/sample_inputs.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapruner import ops
from adapruner.ops.reference import ReferenceGates
from support.sample_inputs import (
    IGNORED,
    NUM_SAMPLES,
    generator,
    native_gates,
    reference_gates,
    same_values,
)


@dataclass(frozen=True)
class LinearSample:
    """Arguments of ``masked_linear_cross_entropy``, and the reference gates."""

    input: Tensor  # [B, ..., H]
    linear_weight: Tensor  # [C, H]
    linear_bias: Tensor | None  # [C]
    target: Tensor  # [B, ...]
    ids: Tensor  # [B]
    gates: ReferenceGates
    options: dict[str, Any]  # weight, ignore_index, label_smoothing

    def leaves(self) -> list[Tensor]:
        """The tensors that can take a gradient, as leaves that require it."""
        given = [self.input, self.linear_weight, self.linear_bias]
        return [tensor.detach().requires_grad_() for tensor in given if tensor is not None]

    def arguments(self, leaves: list[Tensor]) -> tuple[Any, ...]:
        """Arguments of the operator, with the given leaves first."""
        gates = native_gates(self.gates)
        bias = leaves[2] if self.linear_bias is not None else None
        return *leaves[:2], bias, self.target, self.ids, gates.logits, gates.state


@dataclass(frozen=True)
class LinearSpec:
    """How a sample is made.

    Attributes:
        rows: [B, ...].
        layout: "contiguous"; "transposed" (weight and input stored the other way round); "sliced".
        ignore: share of rows ignored; the first and the last sample then have no other rows.
    """

    rows: tuple[int, ...]
    features: int
    classes: int
    layout: str = "contiguous"
    bias: bool = False
    weight: bool = False
    smoothing: float = 0.0
    ignore: float = 0.0
    ignore_index: int = IGNORED
    integers: torch.dtype = torch.int64
    repeats: bool = False
    gates: dict[str, Any] = field(default_factory=dict)


LINEAR = {
    "plain": LinearSpec((16,), 5, 10, repeats=True),
    "bias": LinearSpec((16,), 5, 10, bias=True),
    "one class": LinearSpec((7,), 3, 1, bias=True),
    "one feature": LinearSpec((7,), 1, 9),
    "no feature": LinearSpec((4,), 0, 9, bias=True),
    "one sample": LinearSpec((1,), 2, 2),
    "odd": LinearSpec((5,), 17, 33, bias=True),
    "tokens": LinearSpec((6, 9), 13, 71, ignore=0.3),
    "grid": LinearSpec((4, 3, 2), 6, 7, bias=True, ignore=0.3, ignore_index=1),
    "all counted": LinearSpec((3, 7), 6, 300, bias=True),
    "all ignored": LinearSpec((4, 5), 6, 7, bias=True, ignore=2.0),
    "weight": LinearSpec((9,), 4, 6, weight=True),
    "smoothing": LinearSpec((9,), 4, 6, smoothing=0.3),
    "everything": LinearSpec(
        (6, 5), 8, 19, bias=True, weight=True, smoothing=0.2, ignore=0.3, integers=torch.int32
    ),
    "transposed": LinearSpec((6, 5), 8, 19, layout="transposed", ignore=0.2),
    "sliced": LinearSpec((6, 5), 8, 19, layout="sliced", bias=True),
    "empty": LinearSpec((0,), 4, 10, bias=True),
    "empty rows": LinearSpec((0, 3), 4, 10),
    "no rows": LinearSpec((2, 0), 4, 10),
    "warm-up": LinearSpec((8,), 4, 5, gates={"resting": True}),
    "plain mean": LinearSpec((8,), 4, 5, gates={"plain": True}),
    # A chunk has 64 rows here; with two bytes a value, 128 rows.
    "chunks": LinearSpec((50, 3), 3, 131_072, bias=True, smoothing=0.1, ignore=0.05),
}
# Small samples that together reach every branch, for checks that run an operator many times.
FEW_LINEAR = ("odd", "tokens", "everything", "one class", "empty", "warm-up")


@same_values
def linear_sample(
    name: str, dtype: torch.dtype = torch.float32, *, device: torch.device
) -> LinearSample:
    """The sample with a name in :data:`LINEAR`. Its values are always the same."""
    spec = LINEAR[name]
    random = generator("linear " + name)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(device)

    target = torch.randint(0, spec.classes, spec.rows, generator=random)
    if spec.ignore:
        ignored = torch.rand(target.shape, generator=random) < spec.ignore
        ignored[[0, -1]] = True
        target[ignored] = spec.ignore_index
    options: dict[str, Any] = {"ignore_index": spec.ignore_index} if spec.ignore else {}
    if spec.weight:
        options["weight"] = torch.rand(spec.classes, generator=random).to(device) + 0.1
    if spec.smoothing:
        options["label_smoothing"] = spec.smoothing
    if spec.repeats:
        ids = torch.randint(0, NUM_SAMPLES, spec.rows[:1], generator=random)
    else:
        ids = torch.randperm(NUM_SAMPLES, generator=random)[: spec.rows[0]]
    return LinearSample(
        input=_laid_out(normal(*spec.rows, spec.features).to(dtype), spec.layout),
        linear_weight=_laid_out(normal(spec.classes, spec.features).to(dtype), spec.layout),
        linear_bias=normal(spec.classes).to(dtype) if spec.bias else None,
        target=target.to(spec.integers).to(device),
        ids=ids.to(spec.integers).to(device),
        gates=reference_gates("linear " + name, device=device, **spec.gates),
        options=options,
    )


def losses_of(sample: LinearSample, leaves: list[Tensor]) -> ops.MaskedLoss:
    return ops.masked_linear_cross_entropy(*sample.arguments(leaves), **sample.options)


def found_of(sample: LinearSample) -> tuple[ops.MaskedLoss, list[Tensor]]:
    """Losses, and the gradient of every leaf."""
    leaves = sample.leaves()
    losses = losses_of(sample, leaves)
    return losses, list(torch.autograd.grad(losses.loss, leaves))


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another layout of memory."""
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        wide = x.new_full((x.shape[0] * 2, *x.shape[1:-1], x.shape[-1] * 2), 7.0)
        wide[::2, ..., ::2] = x
        return wide[::2, ..., ::2]
    return x
