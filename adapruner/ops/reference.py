"""A slow and simple float64 version of every operator: the oracle of tests and benchmarks.

It follows docs/method.md, works one sample at a time where that is clearer, and shares no code with
the native core.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-5


@dataclass
class ReferenceGates:
    """Gates in float64, with the names of docs/method.md.

    Attributes:
        m: gate logits, float64 ``[N]``.
        age: epochs since the last visit of each sample, None before the first.
    """

    m: Tensor
    keep_ratio: float
    slope: float
    balance: float = 1.0
    balance_gain: float = 50.0
    easy_weight: float = 1.0
    pressure_cap: float = math.inf
    step_size: float = 0.05
    age_cap: int = 16
    resting: bool = False
    plain: bool = False
    loss_scale: float = 1.0
    age: list[int | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.m = self.m.double()
        self.age = self.age or [None] * self.m.numel()

    @property
    def gates(self) -> Tensor:
        """s, float64 ``[N]``."""
        return torch.sigmoid(self.slope * self.m)

    @property
    def mean_gate(self) -> float:
        return self.gates.mean().item()

    @property
    def open_share(self) -> float:
        return (self.m > 0).double().mean().item()

    def balance_term(self) -> float:
        """2λ·(s̄ − r)."""
        weight = self.balance + self.balance_gain * abs(self.open_share - self.keep_ratio)
        return 2 * weight * (self.mean_gate - self.keep_ratio)

    def pressure(self, sample_loss: Tensor) -> Tensor:
        """min(ℓ' − w·log(ℓ' + ε), cap) + 2λ·(s̄ − r), float64 ``[B]``.

        NaN where ℓ is not finite.
        """
        scaled = sample_loss.detach().double() / self.loss_scale
        value = scaled - self.easy_weight * torch.log(scaled + EPSILON)
        value = value.clamp(max=self.pressure_cap) + self.balance_term()
        return torch.where(scaled.isfinite(), value, torch.nan)

    def update(self, ids: list[int], pressure: list[float]) -> None:
        """One visit of each distinct id. Steps use the values before the call."""
        if self.resting:
            return
        m, s = self.m.clone(), self.gates
        total: dict[int, float] = {}
        for i, value in zip(ids, pressure, strict=True):
            if math.isfinite(value):
                total[i] = total.get(i, 0.0) + value
            elif self.age[i] is None:
                self.age[i] = 1
        for i, value in total.items():
            span = min(max(self.age[i] or 1, 1), self.age_cap)
            self.m[i] = m[i] - self.step_size * span * self.slope * s[i] * (1 - s[i]) * value
            self.age[i] = 0

    def drift(self, last_loss: list[float]) -> None:
        """Step the gates that the epoch did not visit, from the last losses of their samples."""
        if self.resting:
            return
        m, s = self.m.clone(), self.gates
        pressure = self.pressure(torch.tensor(last_loss, dtype=torch.float64))
        for i, age in enumerate(self.age):
            if age not in (0, None) and math.isfinite(last_loss[i]):
                step = self.step_size * self.slope * s[i] * (1 - s[i]) * pressure[i]
                self.m[i] = m[i] - step

    def end_epoch(self) -> None:
        self.age = [None if age is None else age + 1 for age in self.age]


def sample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """ℓ, float64 ``[B]``; and whether a sample has a row that is not ignored, bool ``[B]``."""
    loss = functional.cross_entropy(
        logits.double(),
        target.long(),
        weight=None if weight is None else weight.double(),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    rows = (target != ignore_index).reshape(target.shape[0], math.prod(target.shape[1:]))
    loss = loss.reshape(rows.shape)
    count = rows.sum(1)
    total = torch.where(rows, loss, torch.zeros_like(loss)).sum(1)
    return total / count.clamp(min=1), count > 0


def masked_cross_entropy(
    gates: ReferenceGates,
    logits: Tensor,
    target: Tensor,
    ids: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (with its graph on the logits), ℓ and pressures, all float64."""
    sample_loss, any_row = sample_cross_entropy(
        logits, target, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    loss = masked_loss(gates, sample_loss, ids)
    pressure = torch.where(any_row, gates.pressure(sample_loss), torch.inf)
    return loss, sample_loss.detach(), pressure


def masked_linear_cross_entropy(
    gates: ReferenceGates,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`masked_cross_entropy` of a linear layer. The loss has its graph on all arguments."""
    bias = None if linear_bias is None else linear_bias.double()
    logits = functional.linear(input.double(), linear_weight.double(), bias)
    return masked_cross_entropy(
        gates,
        logits.movedim(-1, 1),
        target,
        ids,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


def masked_loss(gates: ReferenceGates, sample_loss: Tensor, ids: Tensor) -> Tensor:
    """1/B · Σ s_i·ℓ_i, float64; 0 for an empty batch."""
    s = torch.ones_like(gates.gates) if gates.resting or gates.plain else gates.gates
    weighted = s[ids.long()] * sample_loss.double()
    return weighted.sum() / max(len(ids), 1)


def largest(m: Tensor, k: int) -> Tensor:
    """The k largest as ascending int64 indices. Of equal values the lower index wins."""
    values = (m.double() + 0.0).tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return torch.tensor(sorted(order[:k]), dtype=torch.int64)


def segmented_topk(m: Tensor, segments: Tensor, quotas: list[int]) -> Tensor:
    """The quotas[j] largest of each segment j, as ascending int64 indices."""
    chosen: list[int] = []
    for segment, quota in enumerate(quotas):
        members = torch.nonzero(segments == segment).flatten()
        chosen += members[largest(m[members], quota)].tolist()
    return torch.tensor(sorted(chosen), dtype=torch.int64)


_WORD, _LONG = 2**32 - 1, 2**64 - 1


def _mixed(x: int) -> int:
    """The finaliser of SplitMix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _LONG
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _LONG
    return x ^ x >> 31


def sample_hash(i: int, key: int) -> int:
    """The 64-bit hash of sample i under a key."""
    return _mixed(i * 0x9E3779B97F4A7C15 + key & _LONG)


def permutation(num_samples: int, key: int) -> Callable[[int], int]:
    """The permutation π of a key: a function from a position in [0, N) to the sample there.

    It is a generalised Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
    2002) on a grid of at least N cells, applied until the cell is below N.
    """
    rows = math.isqrt(num_samples - 1) + 1
    columns = -(-num_samples // rows)
    sides = rows, columns + columns % 2
    words = [
        _mixed(key + (i + 1) * 0x9E3779B97F4A7C15 & _LONG)
        for i in range(32 if num_samples <= 1024 else 6)
    ]

    def walk(position: int) -> int:
        while True:
            cell = list(divmod(position, sides[1]))
            for number, word in enumerate(words):
                to, of = number % 2, 1 - number % 2
                x = ((cell[of] ^ word) & _WORD) * 0x9E3779B1 & _WORD
                x = (x ^ x >> 15) * (word >> 32 | 1) & _WORD
                cell[to] = (cell[to] + (x * sides[to] >> 32)) % sides[to]
            position = cell[0] * sides[1] + cell[1]
            if position < num_samples:
                return position

    return walk


def masked_order(kept: list[bool], key: int) -> list[int]:
    """The whole order of the kept samples."""
    pi = permutation(len(kept), key)
    return [i for i in map(pi, range(len(kept))) if kept[i]]


def oldest(candidates: list[int], age: list[int], count: int, key: int) -> list[int]:
    """The ``count`` candidates with the largest age, ascending. The hash orders equal ages."""

    def rank(i: int) -> tuple[int, int]:
        return -age[i], sample_hash(i, key)

    return sorted(sorted(candidates, key=rank)[:count])


def sampling_keys(
    m: list[float],
    age: list[int],
    scale: float,
    turns: float,
    key: int,
    ceiling: float = math.inf,
) -> Tensor:
    """scale·min(m, ceiling) + turns·log(max(age, 1)) + noise from the hash, float64 ``[N]``."""

    def one(i: int) -> float:
        if m[i] == -math.inf:
            return -math.inf
        unit = ((sample_hash(i, key) >> 12) + 0.5) / 2**52
        capped = ceiling if m[i] > ceiling else m[i]
        return scale * capped + turns * math.log(max(age[i], 1)) - math.log(-math.log(unit))

    return torch.tensor([one(i) for i in range(len(m))], dtype=torch.float64)
