"""Typed wrappers of the native operators.

Importing this package loads the native library, which registers ``torch.ops.adapruner.*`` with
their kernels and autograd. The contract of each operator is in ``csrc/ops.cpp``. B is the size of a
batch, N the number of samples.
"""

from adapruner.ops import fake_kernels  # noqa: F401  (registers them)
from adapruner.ops.gates import NEVER_VISITED, OLDEST, first_loss_scale, gate_drift, gate_update
from adapruner.ops.losses import (
    MaskedLoss,
    masked_cross_entropy,
    masked_linear_cross_entropy,
    masked_loss,
    mean_weight,
)
from adapruner.ops.native import _C
from adapruner.ops.order import Order, masked_order
from adapruner.ops.selection import (
    GATE_SUM_ONE,
    TopK,
    oldest_mask,
    sampling_keys,
    segmented_topk,
    topk_mask,
)

__all__ = [
    "GATE_SUM_ONE",
    "NEVER_VISITED",
    "OLDEST",
    "_C",
    "MaskedLoss",
    "Order",
    "TopK",
    "first_loss_scale",
    "gate_drift",
    "gate_update",
    "masked_cross_entropy",
    "masked_linear_cross_entropy",
    "masked_loss",
    "masked_order",
    "mean_weight",
    "oldest_mask",
    "sampling_keys",
    "segmented_topk",
    "topk_mask",
]
