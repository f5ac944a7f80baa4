"""Sample inputs of the operators: one list for reference, gradient and ``opcheck`` tests.

Each table maps the name of a sample to its description. ``cross_entropy_sample(name, dtype)`` and
similar functions build it on the default device, always with the same values. N is 50.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from adapruner.ops import NEVER_VISITED
from adapruner.ops.reference import ReferenceGates
from adapruner.pruning.gates import Gates
from adapruner.pruning.objective import Objective

NUM_SAMPLES = 50
IGNORED = -100
SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
INTEGERS = SIGNED + UNSIGNED
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


Made = TypeVar("Made")


def same_values(make: Callable[..., Made]) -> Callable[..., Made]:
    """Let ``make`` draw its numbers on the CPU, and pass it the device for them."""

    @functools.wraps(make)
    def made(*arguments: Any, device: torch.device | str | None = None, **options: Any) -> Made:
        device = device or torch.get_default_device()
        with torch.device("cpu"):
            return make(*arguments, device=device, **options)

    return made


def generator(name: str) -> torch.Generator:
    """A generator on the default device that depends only on the name."""
    return torch.Generator(torch.get_default_device()).manual_seed(zlib.crc32(name.encode()))


@same_values
def reference_gates(name: str, device: torch.device, **constants: Any) -> ReferenceGates:
    """Gates in the middle of a run: logits of either sign, ages from never visited to 20 epochs."""
    random = generator(name)
    m = torch.randn(NUM_SAMPLES, generator=random) * 2
    age = torch.randint(-1, 21, (NUM_SAMPLES,), generator=random).tolist()
    settings: dict[str, Any] = {"keep_ratio": 0.7, "slope": 1.3} | constants
    return ReferenceGates(m=m.to(device), age=[None if a < 0 else a for a in age], **settings)


def constants_of(objective: Objective) -> dict[str, Any]:
    """The constants of an objective, with the names of the reference."""
    return {
        "plain": not objective.weighs,
        "balance": objective.balance,
        "balance_gain": objective.balance_gain,
        "easy_weight": objective.easy_weight,
        "pressure_cap": objective.pressure_cap,
        "step_size": objective.step_size,
    }


def native_gates(reference: ReferenceGates, track_losses: bool = True) -> Gates:
    """Native gates in the state of the reference's, whose logits must be float32 values."""
    objective = Objective(
        easy_weight=reference.easy_weight,
        pressure_cap=reference.pressure_cap,
        step_size=reference.step_size,
        slope=(reference.slope, reference.slope),
        balance=reference.balance,
        balance_gain=reference.balance_gain,
        age_cap=reference.age_cap,
    )
    gates = Gates(
        len(reference.m), reference.keep_ratio, objective, reference.m.device, track_losses
    )
    gates.logits.copy_(reference.m)
    assert torch.equal(gates.logits.double(), reference.m), "m must hold float32 values"
    ages = [NEVER_VISITED if age is None else age for age in reference.age]
    gates.age.copy_(torch.tensor(ages, dtype=torch.uint8))
    gates.set_integer("age_cap", reference.age_cap)  # with last losses it is 1
    gates.set_slope(reference.slope)
    gates.set_integer("resting", int(reference.resting))
    gates.set_integer("plain", int(reference.plain))
    gates.set_real("loss_scale", reference.loss_scale)
    return gates


@dataclass(frozen=True)
class CrossEntropySample:
    """Arguments of ``masked_cross_entropy``, and the reference gates."""

    logits: Tensor  # [B, C] or [B, C, ...]
    target: Tensor  # [B] or [B, ...]
    ids: Tensor  # [B]
    gates: ReferenceGates
    options: dict[str, Any]  # weight, ignore_index, label_smoothing

    def arguments(self, gates: Gates) -> tuple[Tensor, ...]:
        return self.logits, self.target, self.ids, gates.logits, gates.state


@dataclass(frozen=True)
class CrossEntropySpec:
    """How a sample is made.

    Attributes:
        shape: of the logits.
        values: "random", "huge" (±1e4), "tiny" (1e-6), "equal", "masked" (some −inf).
        layout: "contiguous"; "transposed" ([B, T, C] seen as [B, C, T]); "sliced"; "expanded".
        ignore: share of rows ignored; the first and the last sample then have no other rows.
    """

    shape: tuple[int, ...]
    values: str = "random"
    layout: str = "contiguous"
    weight: bool = False
    smoothing: float = 0.0
    ignore: float = 0.0
    ignore_index: int = IGNORED
    integers: torch.dtype = torch.int64
    repeats: bool = False
    gates: dict[str, Any] = field(default_factory=dict)


CROSS_ENTROPY = {
    "plain": CrossEntropySpec((256, 10), repeats=True),
    "one class": CrossEntropySpec((7, 1)),
    "one sample": CrossEntropySpec((1, 2)),
    "odd": CrossEntropySpec((5, 33)),
    "vocabulary": CrossEntropySpec((3, 130000)),
    "smooth vocabulary": CrossEntropySpec((3, 130000), smoothing=0.1),
    "rows": CrossEntropySpec((6, 4, 5), ignore=0.4),
    "image": CrossEntropySpec((4, 3, 5, 6), ignore=0.3, ignore_index=1),
    "pixels": CrossEntropySpec((3, 70, 19, 16), weight=True, smoothing=0.1, ignore=0.3),
    "masked pixels": CrossEntropySpec((3, 5, 7, 41), values="masked"),
    "huge pixels": CrossEntropySpec((2, 21, 300), values="huge", smoothing=0.1),
    "columns of a vocabulary": CrossEntropySpec((2, 2100, 37), ignore=0.2),
    "tokens": CrossEntropySpec((5, 17, 8), layout="transposed", ignore=0.2, smoothing=0.1),
    "sliced": CrossEntropySpec((5, 9), layout="sliced"),
    "expanded": CrossEntropySpec((5, 9), layout="expanded"),
    "weight": CrossEntropySpec((9, 6), weight=True),
    "smoothing": CrossEntropySpec((9, 6), smoothing=0.3),
    "smoothing 1": CrossEntropySpec((9, 6), smoothing=1.0),
    "weight and smoothing": CrossEntropySpec(
        (6, 5, 3), weight=True, smoothing=0.2, ignore=0.3, layout="transposed"
    ),
    "huge": CrossEntropySpec((16, 100), values="huge"),
    "tiny": CrossEntropySpec((16, 100), values="tiny"),
    "equal": CrossEntropySpec((16, 100), values="equal"),
    "masked": CrossEntropySpec((16, 100), values="masked"),
    "huge smoothing": CrossEntropySpec((16, 100), values="huge", smoothing=0.1, weight=True),
    "repeats": CrossEntropySpec((12, 4), repeats=True, integers=torch.int32),
    "unsigned": CrossEntropySpec((9, 7, 2), integers=torch.uint16),
    "empty": CrossEntropySpec((0, 10)),
    "empty rows": CrossEntropySpec((0, 10, 3)),
    "no rows": CrossEntropySpec((2, 10, 0)),
    "warm-up": CrossEntropySpec((8, 5), gates={"resting": True}),
    "plain mean": CrossEntropySpec((8, 5), gates={"plain": True}),
    "plain mean of rows": CrossEntropySpec((6, 5, 3), ignore=0.3, gates={"plain": True}),
    "scaled": CrossEntropySpec((8, 5), gates={"loss_scale": 2.5, "easy_weight": 0.2}),
    "capped": CrossEntropySpec((40, 5), gates={"pressure_cap": 1.1, "easy_weight": 0.4}),
}
# Small samples that together reach every branch, for checks that run an operator many times.
FEW = ("odd", "unsigned", "rows", "weight and smoothing", "one class", "empty", "warm-up")


@same_values
def cross_entropy_sample(
    name: str, dtype: torch.dtype = torch.float32, *, device: torch.device
) -> CrossEntropySample:
    """The sample with a name in :data:`CROSS_ENTROPY`."""
    spec = CROSS_ENTROPY[name]
    random = generator(name)
    batch, classes, *rows = spec.shape
    target = torch.randint(0, classes, (batch, *rows), generator=random)
    ignored = torch.rand(target.shape, generator=random) < spec.ignore
    if spec.ignore:
        ignored[[0, -1]] = True
        target[ignored] = spec.ignore_index
    options: dict[str, Any] = {"ignore_index": spec.ignore_index} if spec.ignore else {}
    if spec.weight:
        options["weight"] = torch.rand(classes, generator=random).to(device) + 0.1
    if spec.smoothing:
        options["label_smoothing"] = spec.smoothing
    return CrossEntropySample(
        logits=laid_out(_logits(spec, target, random).to(dtype), spec.layout, device),
        target=target.to(spec.integers).to(device),
        ids=_ids(batch, spec.repeats, random).to(spec.integers).to(device),
        gates=reference_gates(name, device=device, **spec.gates),
        options=options,
    )


def _logits(spec: CrossEntropySpec, target: Tensor, random: torch.Generator) -> Tensor:
    x = torch.randn(spec.shape, generator=random, dtype=torch.float64) * 3
    if spec.values == "huge":
        x = (torch.rand(spec.shape, generator=random, dtype=torch.float64) - 0.5) * 2e4
    elif spec.values == "tiny":
        x *= 1e-6
    elif spec.values == "equal":
        x[:] = x[:, :1] * 1000
    elif spec.values == "masked":
        masked = torch.rand(spec.shape, generator=random) < 0.3
        masked.scatter_(1, target.unsqueeze(1), False)
        x[masked] = -torch.inf
    return x


def laid_out(x: Tensor, layout: str, device: torch.device | str = "cpu") -> Tensor:
    """The same values (expanded: those of the first sample) in another layout of memory."""
    x = x.to(device)
    if layout == "transposed":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        wide = x.new_full((x.shape[0] * 2, x.shape[1] + 3, *x.shape[2:]), 7.0)
        wide[::2, 2:-1] = x
        return wide[::2, 2:-1]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x


def _ids(batch: int, repeats: bool, random: torch.Generator) -> Tensor:
    if repeats:
        return torch.randint(0, NUM_SAMPLES, (batch,), generator=random)
    return torch.randperm(NUM_SAMPLES, generator=random)[:batch]


@dataclass(frozen=True)
class LossSample:
    """Arguments of ``masked_loss``, and the reference gates."""

    sample_loss: Tensor  # [B]
    ids: Tensor  # [B]
    gates: ReferenceGates


LOSSES: dict[str, tuple[int, dict[str, Any]]] = {  # B, constants of the gates
    "plain": (16, {}),
    "one": (1, {}),
    "empty": (0, {}),
    "repeats": (200, {"slope": 5.0, "keep_ratio": 0.3}),
    "warm-up": (16, {"resting": True}),
    "plain mean": (16, {"plain": True}),
    "scaled": (16, {"loss_scale": 40.0, "easy_weight": 0.2}),
    "capped": (64, {"pressure_cap": 2.2, "easy_weight": 0.4}),
}


@same_values
def loss_sample(
    name: str, dtype: torch.dtype = torch.float32, *, device: torch.device
) -> LossSample:
    """The sample with a name in :data:`LOSSES`. Its losses are from 0 to about 100."""
    batch, constants = LOSSES[name]
    random = generator("loss " + name)
    loss = torch.exp(torch.randn(batch, generator=random, dtype=torch.float64) * 2)
    loss[:1] = 0.0
    ids = _ids(batch, batch > NUM_SAMPLES, random)
    gates = reference_gates("loss " + name, device=device, **constants)
    return LossSample(loss.to(dtype).to(device), ids.to(device), gates)


@dataclass(frozen=True)
class UpdateSample:
    """Arguments of ``gate_update``, and the reference gates before it."""

    ids: Tensor  # [B]
    pressure: Tensor  # [B]
    sample_loss: Tensor  # [B]
    gates: ReferenceGates

    def arguments(self, gates: Gates) -> tuple[Tensor | None, ...]:
        batch = self.ids, self.pressure, self.sample_loss
        return gates.logits, gates.age, gates.state, gates.last_loss, *batch


UPDATES: dict[str, dict[str, Any]] = {
    "plain": {"batch": 16},
    "one": {"batch": 1},
    "empty": {"batch": 0},
    "repeats": {"batch": 300},
    "steep": {"batch": 40, "slope": 5.0, "step_size": 0.5},
    "capped": {"batch": 40, "age_cap": 3},
    "not finite": {"batch": 40, "not_finite": True},
    "warm-up": {"batch": 40, "not_finite": True, "resting": True},
    "plain mean": {"batch": 40, "not_finite": True, "plain": True},
}


@same_values
def update_sample(
    name: str, dtype: torch.dtype = torch.float32, *, device: torch.device
) -> UpdateSample:
    """The sample of that name in :data:`UPDATES`.

    "not finite": of the first ids, two have a NaN pressure (an infinite and a NaN loss), two +inf
    (every row ignored).
    """
    constants = dict(UPDATES[name])
    batch, not_finite = constants.pop("batch"), constants.pop("not_finite", False)
    random = generator("update " + name)
    pressure = torch.randn(batch, generator=random) * 3 + 1
    loss = torch.rand(batch, generator=random) * 5
    if not_finite:
        pressure[:4] = torch.tensor([torch.nan, torch.nan, torch.inf, torch.inf])
        loss[:4] = torch.tensor([torch.inf, torch.nan, 0.0, 0.0])
    ids = _ids(batch, batch > NUM_SAMPLES, random)
    gates = reference_gates("update " + name, device=device, **constants)
    return UpdateSample(ids.to(device), pressure.to(dtype).to(device), loss.to(device), gates)


TOP_K = {"some": (50, 20), "none": (9, 0), "all": (8, 8), "no gates": (0, 0)}  # N, k


@same_values
def topk_sample(name: str, *, device: torch.device) -> tuple[Tensor, int, float]:
    """Gate logits with ties, k and slope."""
    size, k = TOP_K[name]
    m = torch.randint(-5, 5, (size,), generator=generator("top-k " + name)).float() / 2
    return m.to(device), k, 1.3


@same_values
def segmented_topk_sample(
    name: str, *, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Gate logits with ties, segments (some −1), quotas and slope."""
    m, k, slope = topk_sample(name)
    segments = torch.arange(len(m)) % 4 - 1
    sizes = torch.bincount(segments[segments >= 0], minlength=3)
    quotas = torch.minimum(sizes, torch.tensor([k // 3, k, k // 5]))
    return m.to(device), segments.to(device), quotas.to(device), slope


@same_values
def order_sample(name: str, *, device: torch.device) -> tuple[Tensor, int, int, int, int]:
    """Bit mask, N, key, position and count."""
    size, count = TOP_K[name]
    bits = torch.randint(256, ((size + 7) // 8,), generator=generator("order " + name))
    return bits.to(torch.uint8).to(device), size, 12345, size // 5, count


@same_values
def oldest_sample(name: str, *, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Bit mask of candidates, ages with ties, count and key."""
    candidates, size, key, _, count = order_sample(name, device=device)
    age = torch.arange(size).remainder(5).to(torch.uint8)
    return candidates, age.to(device), count, key


@same_values
def sampling_sample(
    name: str, *, device: torch.device
) -> tuple[Tensor, Tensor, float, float, int, float]:
    """Gate logits, ages, scale, turns, key and ceiling."""
    m, _, _ = topk_sample(name)
    age = torch.arange(len(m)).remainder(5).to(torch.uint8)
    return m.to(device), age.to(device), 1.5, 0.5, 12345, 0.25
