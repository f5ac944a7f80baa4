"""The native operators: one typed wrapper each.

Loading this module loads the native library, which registers ``torch.ops.adapruner.*`` with their
CPU kernels and autograd. Their contracts stand in ``csrc/ops.cpp``. B is the batch, N the dataset.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from adapruner import _C
except ImportError as error:
    raise ImportError(
        f"adapruner's native library cannot be loaded ({error}). It is compiled against the torch "
        f"that was there when adapruner was installed; this is torch {torch.__version__}. "
        "Build it anew, in its sources: pip install --no-build-isolation --force-reinstall "
        "--no-deps ."
    ) from error
from adapruner import fake_kernels  # noqa: F401  (registers them)

NEVER_VISITED: int = _C.never_visited
OLDEST: int = _C.oldest
GATE_SUM_ONE = 2**30
KEY_RANGE: tuple[int, int] = (_C.lowest_key, _C.highest_key)
DIGIT_ROUNDS = 3


class MaskedLoss(NamedTuple):
    """What the loss operators give."""

    loss: Tensor  # scalar
    sample_loss: Tensor  # [B]
    pressure: Tensor  # [B] float32


class TopK(NamedTuple):
    """A selection, and what the same pass tells of the gates at the slope given.

    ``selected`` is uint8 ``[ceil(N / 8)]``, bit i % 8 of byte i // 8, from :func:`topk_mask` and
    :func:`segmented_topk`, int64 ``[k]`` from :func:`topk_indices`. ``sums`` is int64 ``[2]``: the
    sum of the gates σ(slope·m), each rounded to a multiple of 2⁻³⁰ (:data:`GATE_SUM_ONE` is one
    gate of 1), and the number of m > 0; it is empty where no slope was given.
    """

    selected: Tensor
    sums: Tensor


class Order(NamedTuple):
    """A stretch of an epoch's order."""

    indices: Tensor  # int64
    position: int  # where the order goes on


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
        state: the run's state, int64, see :class:`adapruner.gates.Gates`.
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
        state: the run's state, int64, see :class:`adapruner.gates.Gates`.
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


def gate_update(
    gate_logits: Tensor,
    age: Tensor,
    state: Tensor,
    last_loss: Tensor | None,
    ids: Tensor,
    pressure: Tensor,
    sample_loss: Tensor,
) -> None:
    """One visit of each distinct id, in place: m, its age, and the sums in the state. O(B).

    Args:
        gate_logits: m, float32 ``[N]``.
        age: epochs since the last visit, uint8 ``[N]``; :data:`NEVER_VISITED` before the first.
        state: int64; in warm-up (its slot "resting") gates and ages stay as they are.
        last_loss: float32 ``[N]`` that takes the last loss of every sample, or None.
        ids: ``[B]``, any integer type; the pressures of a repeated id are summed.
        pressure: ``[B]``, any floating type; where it is not finite the gate is left alone.
        sample_loss: ``[B]``, any floating type.
    """
    torch.ops.adapruner.gate_update(gate_logits, age, state, last_loss, ids, pressure, sample_loss)


def first_loss_scale(pressure: Tensor, state: Tensor, sample_loss: Tensor) -> None:
    """Bring the first batch of an epoch to the scale of its own mean loss, in place.

    Without effect unless the state's slot "scale_running" is set and no loss has been summed since
    the start of the epoch. The loss scale then becomes the mean of the batch's finite losses, if
    that is above 0, and each pressure what it is at that scale. To be called before
    :func:`gate_update`, which has the scale follow the epoch's mean from then on.

    Args:
        pressure: float32 ``[B]``, contiguous; infinite for a sample all of whose rows are ignored.
        state: int64.
        sample_loss: ``[B]``, any floating type.
    """
    torch.ops.adapruner.first_loss_scale(pressure, state, sample_loss)


def gate_drift(gate_logits: Tensor, age: Tensor, state: Tensor, last_loss: Tensor) -> None:
    """The epoch's step of every gate that it did not visit, from the sample's last loss, in place.

    To be called at the end of an epoch, before a top-k (which brings the sums in the state to the
    new gates). O(N).

    Args:
        gate_logits: m, float32 ``[N]``.
        age: epochs since the last visit, uint8 ``[N]``, 0 for those visited in this epoch.
        state: int64.
        last_loss: float32 ``[N]``; where it is not finite the gate is left alone.
    """
    torch.ops.adapruner.gate_drift(gate_logits, age, state, last_loss)


def topk_mask(gate_logits: Tensor, k: int, slope: float | None = None) -> TopK:
    """The k largest gate logits as a bit mask; equal ones go to the lower index. Exact.

    Args:
        gate_logits: m, float32 ``[N]``; +0 and −0 are equal.
        k: how many, in ``[0, N]``.
        slope: slope at which the sums are taken; None: no sums, in less time.

    Raises:
        TypeError: ``gate_logits`` is not float32.
        ValueError: ``k`` is out of range, ``slope`` not finite, or a gate logit is NaN; the message
            names the first.

    Example:
        >>> import torch
        >>> topk_mask(torch.tensor([0.5, 2.0, -1.0, 0.5]), k=2).selected  # 1 and, of equals, 0
        tensor([3], dtype=torch.uint8)
    """
    return TopK(*torch.ops.adapruner.topk_mask(gate_logits, k, slope))


def topk_indices(gate_logits: Tensor, k: int, slope: float | None = None) -> TopK:
    """The same as ascending int64 indices ``[k]``; arguments and errors are :func:`topk_mask`'s."""
    return TopK(*torch.ops.adapruner.topk_indices(gate_logits, k, slope))


def segmented_topk(
    gate_logits: Tensor, segments: Tensor, quotas: Tensor, slope: float | None = None
) -> TopK:
    """The ``quotas[j]`` largest gate logits of each segment j as a bit mask.

    Args:
        gate_logits: m, float32 ``[N]``.
        segments: ``[N]``, any integer type; −1 is in no segment and never kept. Narrow types are
            faster: there is less to read.
        quotas: ``[S]``, any integer type, each at most the size of its segment.
        slope: slope at which the sums are taken; None: no sums, in less time.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, a segment or quota is out of range, ``slope`` is
            not finite, or a gate logit is NaN; the message names the first.
    """
    return TopK(*torch.ops.adapruner.segmented_topk(gate_logits, segments, quotas, slope))


def digit_histogram(gate_logits: Tensor, key_range: Tensor) -> Tensor:
    """How many values there are by one digit of their keys: a rank's part of a shared top-k.

    Keys are integers in the order of the numbers, −0 and +0 as one, from ``KEY_RANGE[0]`` for −inf
    to ``KEY_RANGE[1]`` for +inf. Ranks that each hold a part of the values add up their histograms,
    16 KB each, and narrow the range with :func:`narrowed_range`; after :data:`DIGIT_ROUNDS` rounds
    it is the threshold's key. Nothing waits for a GPU.

    Args:
        gate_logits: m, float32 ``[N]``; NaN is counted nowhere, so that what the first histogram of
            all ranks lacks tells all of them of one.
        key_range: int64 ``[3]``, on the device of ``gate_logits``: the lowest and the highest key
            that the threshold may have, and its rank (from 1, from the largest) among the values
            with keys in between; at first ``[*KEY_RANGE, k]``.

    Returns:
        int64 ``[2049]``: of the values with keys in the range, by their next digit, the smallest
        first; and last the number of those with larger keys.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, or (CPU) the range is not one of keys.

    Example:
        >>> import torch
        >>> parts = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 0.5, 0.5])
        >>> key_range = torch.tensor([*KEY_RANGE, 2])  # k = 2
        >>> for _ in range(DIGIT_ROUNDS):
        ...     own = [digit_histogram(m, key_range) for m in parts]
        ...     below, key_range = key_range, narrowed_range(key_range, own[0] + own[1])
        >>> digit = int(key_range[0] - below[0])
        >>> [int(histogram[digit + 1 :].sum()) for histogram in own]  # kept: larger ones
        [1, 0]
        >>> [int(histogram[digit]) for histogram in own], int(key_range[2])  # equal; of them kept
        ([1, 2], 1)
    """
    return torch.ops.adapruner.digit_histogram(gate_logits, key_range)


def narrowed_range(key_range: Tensor, histogram: Tensor) -> Tensor:
    """The range of keys of the digit that the rank lies in, and its rank there.

    Args:
        key_range: int64 ``[3]``, that of the histogram.
        histogram: int64 ``[2049]`` from :func:`digit_histogram`, the sum of those of all ranks.

    Returns:
        int64 ``[3]``. Once it is one key, its last number says how many of the values with that key
        are among the k.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit, or (CPU) the range is not one of keys, or the
            histogram has fewer values than the rank.
    """
    return torch.ops.adapruner.narrowed_range(key_range, histogram)


def masked_order(mask: Tensor, num_samples: int, key: int, position: int, count: int) -> Order:
    """The next samples of an epoch's order, which is computed as it goes and stored nowhere.

    A permutation of all N samples that ``key`` fixes, without those that ``mask`` leaves out: each
    sample comes once, and the order of a part is a subsequence of that of all. The same at any
    number of threads, and however it is cut into calls.

    Args:
        mask: bit mask of the samples to come, uint8 ``[ceil(N / 8)]``.
        num_samples: N.
        key: in [0, 2⁶³).
        position: place to go on from in the permutation of all N, in [0, N]; 0 at the start.
        count: how many samples are wanted.

    Returns:
        ``indices``, int64 ``[count]`` or fewer at the order's end, and the ``position`` after them.

    Raises:
        ValueError: the mask has not the shape of N samples, or a number is out of range.
    """
    indices, after = torch.ops.adapruner.masked_order(mask, num_samples, key, position, count)
    return Order(indices, int(after))


def oldest_mask(candidates: Tensor, age: Tensor, count: int, key: int) -> Tensor:
    """Of some samples the ``count`` with the largest age, as a bit mask; all if there are no more.

    Equal ones go in the order of a hash that ``key`` fixes. Exact.

    Args:
        candidates: bit mask of the samples to choose from, uint8 ``[ceil(N / 8)]``.
        age: uint8 ``[N]``.
        count: at least 0.
        key: in [0, 2⁶³).
    """
    return torch.ops.adapruner.oldest_mask(candidates, age, count, key)


def sampling_keys(
    gate_logits: Tensor,
    age: Tensor,
    scale: float,
    turns: float,
    key: int,
    ceiling: float = math.inf,
) -> Tensor:
    """Random keys by whose top-k samples are drawn without replacement.

    The k largest are k draws, one after another, each with chances in proportion to
    exp(``scale``·min(m, ``ceiling``))·max(age, 1)^``turns`` among the samples that are left: the
    Gumbel-top-k trick (Kool, van Hoof and Welling, *Stochastic Beams and Where to Find Them*, ICML
    2019, arXiv 1903.06059). Keys are found in float64 and rounded once; the same bits at any number
    of threads, on every instruction set and device.

    Args:
        gate_logits: m, float32 ``[N]``.
        age: uint8 ``[N]``; :data:`NEVER_VISITED` counts as the 255 that it is.
        scale: factor of m, finite; 0 draws whatever m is.
        turns: power of the age, finite; 0 draws whatever the age is.
        key: in [0, 2⁶³); another one gives other draws. Noise is a function of it and the index.
        ceiling: m above it counts as it; finite, or +inf for none.

    Returns:
        float32 ``[N]``: ``scale``·min(m, ``ceiling``) + ``turns``·log(max(age, 1)) + standard
        Gumbel noise. −inf where m is −inf, whatever ``scale``, so that an excluded sample stays so;
        NaN where m is.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes or devices do not fit together, ``scale`` or ``turns`` is not finite,
            ``key`` is negative, or ``ceiling`` is NaN or −inf.

    Example:
        >>> import torch
        >>> m, age = torch.tensor([0.5, -torch.inf, 1.0]), torch.ones(3, dtype=torch.uint8)
        >>> keys = sampling_keys(m, age, scale=2.0, turns=1.0, key=7)
        >>> topk_indices(keys, k=2).selected  # of those that are not excluded
        tensor([0, 2])
    """
    return torch.ops.adapruner.sampling_keys(gate_logits, age, scale, turns, key, ceiling)
