"""Random arguments for every operator of the CPU: shapes, strides, dtypes, overlaps and threads.

An operator must refuse its arguments with a Python error, or give the bits that it gives for plain
copies of them with one thread. ``make sanitize`` runs this under AddressSanitizer and
UndefinedBehaviorSanitizer, which end the process at the first wrong access.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adapruner.ops import _C
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method
from torture.command import Findings, main

Dice = random.Random
FLOATS = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (
    torch.int64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.uint8,
    torch.int8,
    torch.uint64,
)
OTHERS = (torch.bool, torch.complex64, torch.float32, torch.int64, torch.uint8)
SIZES = (0, 1, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 255, 257, 1000)
HUGE = (4095, 4097, 20_000, 70_001)
LARGEST = 300_000  # logits
EDGES = (0.0, -0.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
REFUSALS = (TypeError, ValueError, IndexError, RuntimeError)


def size(dice: Dice) -> int:
    return dice.choice(HUGE if dice.random() < 0.03 else SIZES)


def generator(dice: Dice) -> torch.Generator:
    return torch.Generator().manual_seed(dice.randrange(2**60))


def floats(dice: Dice, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=generator(dice)) * dice.choice((1, 1, 30, 1e-3))
    if x.numel() and dice.random() < 0.15:
        flat = x.view(-1)
        for _ in range(dice.randrange(1, 4)):
            flat[dice.randrange(len(flat))] = dice.choice(EDGES)
    return laid_out(dice, x.to(dtype))


def positive(x: Tensor) -> Tensor:
    return x.abs() if x.is_floating_point() else x


def integers(
    dice: Dice, shape: tuple[int, ...], end: int, dtype: torch.dtype | None = None
) -> Tensor:
    x = torch.randint(0, max(end, 1), shape, generator=generator(dice))
    dtype = dtype or dice.choice(INTEGERS)
    if x.numel() and dice.random() < 0.05:
        x.view(-1)[dice.randrange(x.numel())] = dice.choice((-1, -100, end, 2**31, 2**62, -(2**62)))
    return laid_out(dice, x.to(dtype))


def laid_out(dice: Dice, x: Tensor) -> Tensor:
    """The same values in another layout of memory, or now and then another shape or dtype."""
    kind = dice.randrange(14)
    if kind == 0 and x.dim():
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == 1:
        wide = torch.empty([2 * n + 1 for n in x.shape], dtype=x.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in x.shape)]
        view.copy_(x)
        return view
    if kind == 2 and x.dim() and len(x):
        return x[:1].expand(x.shape)
    if kind == 3:
        held = torch.empty(x.numel() + 3, dtype=x.dtype)
        held[3:].copy_(x.reshape(-1))
        return held[3:].view(x.shape)  # not aligned to a vector
    if kind == 4 and dice.random() < 0.2:
        return x.to(dice.choice(OTHERS))
    if kind == 5 and dice.random() < 0.2:
        return x.unsqueeze(dice.randrange(x.dim() + 1))
    if kind == 6 and dice.random() < 0.2 and x.dim():
        return x[: dice.randrange(len(x) + 1)]
    return x


class Case:
    """Arguments of one call."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.samples = max(1, size(dice))
        method = find_method(dice.choice(("sampled", "published")))
        ratio = dice.choice((0.1, 0.5, 1.0))
        gates = Gates(self.samples, ratio, method, None, True, dice.random() < 0.3)
        self.state = gates.state
        self.state[_C.state_slots["slope"]] = torch.tensor(
            dice.choice((0.1, 1.0, 50.0)), dtype=torch.float64
        ).view(torch.int64)
        self.state[_C.state_slots["resting"]] = dice.randrange(2)
        if dice.random() < 0.05:  # a state that no run has
            self.state[dice.randrange(len(self.state))] = dice.choice((-1, 2**62, -(2**62), 10**6))
        self.state = laid_out(dice, self.state)
        self.logits = floats(dice, (self.samples,))
        self.age = integers(dice, (self.samples,), 256, torch.uint8)
        self.last_loss = floats(dice, (self.samples,))
        self.batch = size(dice)

    def ids(self) -> Tensor:
        return integers(self.dice, (self.batch,), self.samples)

    def mask(self) -> Tensor:
        bits = torch.randint(0, 256, ((self.samples + 7) // 8,), generator=generator(self.dice))
        if self.samples % 8 and self.dice.random() < 0.9:
            bits[-1] &= 2 ** (self.samples % 8) - 1
        return laid_out(self.dice, bits.to(torch.uint8))


def cross_entropy(case: Case) -> tuple[Any, ...]:
    dice = case.dice
    rows = (case.batch, *(dice.choice((1, 2, 3, 5)) for _ in range(dice.choice((0, 0, 1, 2)))))
    classes = size(dice)
    if case.batch * classes > LARGEST:
        classes = dice.choice((1, 2, 10))
    logits = floats(dice, (rows[0], classes, *rows[1:]), dice.choice(FLOATS))
    weight = positive(floats(dice, (classes,))) if dice.random() < 0.2 else None
    smoothing = dice.choice((0.0, 0.0, 0.1, 1.0, -0.1, float("nan")))
    target = integers(dice, rows, classes)
    return (
        logits,
        target,
        case.ids(),
        case.logits,
        case.state,
        weight,
        dice.choice((-100, 0)),
        smoothing,
    )


def linear(case: Case) -> tuple[Any, ...]:
    dice, dtype = case.dice, case.dice.choice(FLOATS)
    case.batch = min(case.batch, 100)
    rows = (case.batch, *(dice.choice((1, 3)) for _ in range(dice.choice((0, 1)))))
    classes, features = dice.choice((0, 1, 2, 9, 33, 300)), dice.choice((0, 1, 3, 17))
    bias = floats(dice, (classes,), dtype) if dice.random() < 0.5 else None
    return (
        *(floats(dice, (*rows, features), dtype), floats(dice, (classes, features), dtype), bias),
        *(integers(dice, rows, classes), case.ids(), case.logits, case.state),
    )


def losses(case: Case) -> tuple[Any, ...]:
    sample_loss = floats(case.dice, (case.batch,), case.dice.choice(FLOATS))
    return (
        (positive(sample_loss) if case.dice.random() < 0.9 else sample_loss),
        case.ids(),
        case.logits,
        case.state,
    )


def update(case: Case) -> tuple[Any, ...]:
    dice = case.dice
    last = case.last_loss if dice.random() < 0.7 else None
    if dice.random() < 0.05:  # two arguments in the same memory
        last = case.logits
    pressure = floats(dice, (case.batch,))
    sample_loss = positive(floats(dice, (case.batch,), dice.choice(FLOATS)))
    return case.logits, case.age, case.state, last, case.ids(), pressure, sample_loss


def segments(case: Case) -> tuple[Any, ...]:
    dice, count = case.dice, case.dice.choice((0, 1, 2, 10, 1000))
    return (
        case.logits,
        integers(dice, (case.samples,), count),
        integers(dice, (count,), max(case.samples // max(count, 1), 1), torch.int64),
        dice.choice((None, 0.5)),
    )


def whole(dice: Dice, end: int) -> int:
    return (
        dice.choice((0, 1, end // 2, end, end + 1, -1, 2**62))
        if dice.random() < 0.3
        else dice.randrange(end + 1)
    )


OPERATORS: dict[str, Callable[[Case], tuple[Any, ...]]] = {
    "masked_cross_entropy": cross_entropy,
    "masked_cross_entropy_": cross_entropy,
    "masked_linear_cross_entropy": linear,
    "masked_loss": losses,
    "gate_update": update,
    "first_loss_scale": lambda case: (
        floats(case.dice, (case.batch,)),
        case.state,
        positive(floats(case.dice, (case.batch,))),
    ),
    "gate_drift": lambda case: (case.logits, case.age, case.state, case.last_loss),
    "topk_mask": lambda case: (
        case.logits,
        whole(case.dice, case.samples),
        case.dice.choice((None, 0.5)),
    ),
    "segmented_topk": segments,
    "masked_order": lambda case: (
        case.mask(),
        case.samples if case.dice.random() < 0.95 else whole(case.dice, case.samples),
        case.dice.randrange(2**62),
        whole(case.dice, case.samples),
        whole(case.dice, case.samples),
    ),
    "oldest_mask": lambda case: (
        case.mask(),
        case.age,
        whole(case.dice, case.samples),
        case.dice.randrange(2**62),
    ),
    "sampling_keys": lambda case: (
        case.logits,
        case.age,
        case.dice.choice((0.0, 1.0, 1e30, float("nan"))),
        case.dice.choice((0.0, 1.0)),
        case.dice.randrange(2**62),
        case.dice.choice((float("inf"), 1.0, float("nan"))),
    ),
    "scale_gradient": lambda case: (
        floats(case.dice, (size(case.dice), 3), case.dice.choice(FLOATS)),
        floats(case.dice, ()),
    ),
}


def outcome(name: str, arguments: tuple[Any, ...], threads: int) -> tuple[Any, list[Tensor]]:
    """What an operator returns, or the type of its error; and the tensors that it was given."""
    torch.set_num_threads(threads)
    given = [x for x in arguments if isinstance(x, Tensor)]
    try:
        found = getattr(torch.ops.adapruner, name)(*arguments)
    except REFUSALS as error:
        if not str(error).strip():
            raise
        return type(error), given
    finally:
        torch.set_num_threads(1)
    return [x for x in (found if isinstance(found, tuple) else (found,)) if x is not None], given


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits. Every NaN counts as the same."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    raw = [torch.empty(x.shape, dtype=x.dtype).copy_(x.detach()).view(-1) for x in (a, b)]
    if a.is_floating_point():
        nans = [x.isnan() for x in raw]
        for x, nan in zip(raw, nans, strict=True):
            x[nan] = 0
        if not torch.equal(*nans):
            return False
    return torch.equal(*(x.view(torch.uint8) for x in raw))


def overlapping(arguments: tuple[Any, ...]) -> bool:
    """Whether tensors share memory, with others or within themselves."""
    tensors = [x for x in arguments if isinstance(x, Tensor) and x.numel()]
    storages = [x.untyped_storage().data_ptr() for x in tensors]
    within = any(0 in x.stride() and x.numel() > 1 for x in tensors)
    return within or len(set(storages)) < len(storages)


def compare(name: str, dice: Dice) -> str:
    """Try one call. Returns "refused", "equal", "overlap" or what is wrong."""
    arguments = OPERATORS[name](Case(dice))
    plain = tuple(
        x.detach().clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x
        for x in arguments
    )
    shared = overlapping(arguments)
    found, given = outcome(name, arguments, dice.randint(1, 16))
    expected, copies = outcome(name, plain, 1)
    if shared:
        return "overlap"
    if isinstance(found, type):  # an operator may refuse a layout
        return "refused"
    if isinstance(expected, type):
        return f"{expected} for plain copies alone"
    pairs = [*zip(found, expected, strict=True), *zip(given, copies, strict=True)]
    tolerant = "cross_entropy" in name  # its sums depend on how rows lie in memory
    for place, (a, b) in enumerate(pairs):
        close = tolerant and torch.allclose(a.double(), b.double(), 2e-2, 1e-3, equal_nan=True)
        if not same_bits(a, b) and not close:
            return f"tensor {place} differs by layout or threads"
    return "equal"


def run(seconds: float, seed: int, findings: Findings) -> dict[str, Any]:
    """Try calls of every operator in turns for ``seconds``."""
    counts: dict[str, int] = {}
    end, number = time.monotonic() + seconds, 0
    while number < 20 * len(OPERATORS) or time.monotonic() < end:
        name = list(OPERATORS)[number % len(OPERATORS)]
        # Written first, so that the report of a sanitizer tells which call it was.
        os.environ["TORTURE_CALL"] = place = f"{name} {seed} {number}"
        try:
            told = compare(name, Dice(place))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        if told not in ("equal", "refused", "overlap"):
            findings.note(f"native, {name}", f"{place}: {told}")
            told = "wrong"
        counts[told] = counts.get(told, 0) + 1
        number += 1
    return {
        "calls": number,
        "outcomes": counts,
        "sanitizers": os.environ.get("TORTURE_SANITIZERS", ""),
    }


if __name__ == "__main__":
    main(run)
