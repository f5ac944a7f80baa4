"""The calls of the smoke stage, for every operator with a CUDA kernel: small ones, then large ones.

The small ones are the sample inputs of the tests. The large ones take other kernels or more blocks
than the samples do; the last ones pass 2³¹ elements, so that an index of 32 bits would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from support.operator_calls import CPU_ONLY, calls_on

from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

SHAPES = ((64, 1000), (16, 32000), (6, 128256), (4, 21, 64, 64), (8, 32000, 3))
LENGTHS = (16_384, 100_003, 3_000_001)
BATCHES = (4096, 100_000)
GATES = 5000
SLOPE = 1.7


class Call(NamedTuple):
    """One call of an operator.

    Attributes:
        operator: its name in ``torch.ops.adapruner``.
        name: what it is called with, in words.
        make: gives positional and named arguments, on the CPU.
        bytes: about how much memory the arguments take.
    """

    operator: str
    name: str
    make: Callable[[], Arguments]
    bytes: int


def calls() -> list[Call]:
    """All of them, the smallest first."""
    return [*sorted(samples(), key=lambda call: call.bytes), *larger(), *beyond_32_bits()]


def samples() -> Iterator[Call]:
    """The sample inputs of the tests, in tests/support, for the operators with a CUDA kernel."""
    for title, (operator, arguments, options) in calls_on("cpu").items():
        if operator in CPU_ONLY:
            continue
        size = sum(x.nbytes for x in (*arguments, *options.values()) if torch.is_tensor(x))
        made = partial(tuple, (arguments, options))
        yield Call(operator, title.removeprefix(f"{operator}: "), made, size)


def larger() -> Iterator[Call]:
    """What the samples of the tests are too small for."""
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for smoothing in (0.0, 0.1):
                name = f"{list(shape)} {str(dtype).removeprefix('torch.')}, smoothing {smoothing}"
                make = partial(_cross_entropy, shape, dtype, smoothing)
                yield Call("masked_cross_entropy", name, make, 4 * torch.Size(shape).numel())
    for n in LENGTHS:
        for k in (0, 1, n // 3, n):
            yield Call("topk_mask", f"{k} of {n}", partial(_topk, n, k), 4 * n)
        yield Call("topk_mask", f"{n // 2} of {n} equal", partial(_topk_of_equal, n), 4 * n)
        for classes in (10, 1000):
            make = partial(_segmented_topk, n, classes)
            yield Call("segmented_topk", f"{n} in {classes} segments", make, 6 * n)
        yield Call("oldest_mask", f"{n // 9} of {n}", partial(_oldest_mask, n), n)
        yield Call("sampling_keys", f"of {n}", partial(_sampling_keys, n), 5 * n)
        yield Call("gate_drift", f"of {n}", partial(_gate_drift, n), 9 * n)
    for batch in BATCHES:
        yield Call("gate_update", f"{batch} of 2**20", partial(_gate_update, batch), 9 * 2**20)
        yield Call("first_loss_scale", f"{batch}", partial(_first_loss_scale, batch), 8 * batch)


def beyond_32_bits() -> Iterator[Call]:
    """More than 2³¹ elements."""
    n = 2**31 + 11
    yield Call("topk_mask", f"{n // 3} of {n}", partial(_topk, n, n // 3), 4 * n)
    shape = (2**31 // 128_256 + 2, 128_256)
    make = partial(_cross_entropy, shape, torch.bfloat16, 0.0)
    yield Call("masked_cross_entropy", f"{list(shape)} bfloat16", make, 2 * shape[0] * shape[1])


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers; those of the largest lengths repeat, with a period of no power of two."""
    period = min(n, 4_000_037)
    drawn = torch.randn(period, generator=_random(1)).to(dtype)
    return drawn if n == period else drawn.repeat(-(-n // period))[:n]


def _gates(n: int, track_losses: bool = False) -> Gates:
    """Gates in the middle of a run."""
    gates = Gates(n, 0.7, find_method("published"), "cpu", track_losses=track_losses)
    gates.logits.normal_(generator=_random(2))
    gates.set_slope(1.0)
    return gates


def _cross_entropy(shape: tuple[int, ...], dtype: torch.dtype, smoothing: float) -> Arguments:
    gates = _gates(GATES)
    logits = _normal(torch.Size(shape).numel(), dtype).view(shape)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=_random(3))
    ids = torch.randint(GATES, (shape[0],), generator=_random(4))
    arguments = (logits, target, ids, gates.logits, gates.state)
    return arguments, {"label_smoothing": smoothing}


def _topk(n: int, k: int) -> Arguments:
    return (_normal(n), k, SLOPE), {}


def _topk_of_equal(n: int) -> Arguments:
    return (torch.ones(n), n // 2, None), {}


def _segmented_topk(n: int, classes: int) -> Arguments:
    segments = torch.randint(-1, classes, (n,), generator=_random(5), dtype=torch.int16)
    quotas = torch.bincount(segments[segments >= 0].long(), minlength=classes) // 2
    return (_normal(n), segments, quotas, SLOPE), {}


def _mask(n: int) -> torch.Tensor:
    mask = torch.randint(256, (-(-n // 8),), generator=_random(6)).to(torch.uint8)
    mask[-1] &= (1 << (n % 8 or 8)) - 1
    return mask


def _age(n: int) -> torch.Tensor:
    return torch.randint(5, (n,), generator=_random(7)).to(torch.uint8)


def _oldest_mask(n: int) -> Arguments:
    return (_mask(n), _age(n), n // 9, 7), {}


def _sampling_keys(n: int) -> Arguments:
    return (_normal(n), _age(n), 1.5, 0.5, 7, 0.3), {}


def _gate_drift(n: int) -> Arguments:
    gates = _gates(n, track_losses=True)
    return (gates.logits, _age(n), gates.state, _normal(n).abs()), {}


def _gate_update(batch: int) -> Arguments:
    gates = _gates(2**20, track_losses=True)
    ids = torch.randint(2**20, (batch,), generator=_random(8))
    pressure = torch.randn(batch, generator=_random(9))
    arguments = (gates.logits, gates.age, gates.state, gates.last_loss, ids, pressure)
    return (*arguments, pressure.abs()), {}


def _first_loss_scale(batch: int) -> Arguments:
    """Losses of another task, far from the scale of cross entropy."""
    gates = _gates(batch)
    gates.set_integer("scale_running", 1)
    sample_loss = 40 * torch.rand(batch, generator=_random(10))
    pressure = torch.randn(batch, generator=_random(11))
    return (pressure, gates.state, sample_loss), {}
