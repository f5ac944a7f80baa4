"""The loss operators on a GPU: long rows in blocks, alignment, streams, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.sample_inputs import (
    CrossEntropySample,
    cross_entropy_sample,
    generator,
    loss_sample,
    native_gates,
    reference_gates,
)
from test_masked_cross_entropy import check, distance, expected_of, found_of
from torch import Tensor

from adapruner import ops

pytestmark = pytest.mark.cuda

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def on_cuda() -> Any:
    with torch.device("cuda"):
        yield


def sample_of(rows: int, classes: int, dtype: torch.dtype, **options: Any) -> CrossEntropySample:
    random = generator(f"{rows} rows of {classes}")
    x = torch.randn(rows, classes, generator=random) * 3
    target = torch.randint(0, classes, (rows,), generator=random)
    return CrossEntropySample(
        x.to(dtype), target, torch.arange(rows) % 50, reference_gates("cuda"), options
    )


# Rows for a warp, for a block, in registers, in shared memory, and longer ones, up to 1 MB.
@pytest.mark.parametrize(
    "classes", [300, 2047, 4096, 16384, 16391, 32000, 50257, 65537, 128256, 256003]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_of_every_kind(classes: int, dtype: torch.dtype, smoothing: float) -> None:
    check(sample_of(5, classes, dtype, label_smoothing=smoothing), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("offset", range(8))
def test_any_alignment(dtype: torch.dtype, offset: int) -> None:
    sample = sample_of(7, 1013, dtype)
    memory = torch.zeros(7 * 1020 + offset, dtype=dtype)
    wide = memory[offset:].view(7, 1020)[:, :1013]
    wide.copy_(sample.logits)
    gates = sample.gates
    aside = CrossEntropySample(wide, sample.target, sample.ids, gates, {})
    check(aside, dtype)
    before = memory.clone()
    native = native_gates(gates)
    _, target, ids, m, state = aside.arguments(native)
    torch.ops.adapruner.masked_cross_entropy_(wide, target, ids, m, state)
    around = torch.ones_like(memory, dtype=torch.bool)
    around[offset:].view(7, 1020)[:, :1013] = False
    assert torch.equal(memory[around], before[around])
    scale = 1024 if dtype == torch.float16 else 1
    found = wide.double() / scale
    assert distance(found, expected_of(sample)[3], 1 / 7) <= 5e-3


@pytest.mark.parametrize("name", ["plain", "odd", "rows", "image", "tokens", "smooth vocabulary"])
def test_the_same_as_on_the_cpu(name: str) -> None:
    found = found_of(cross_entropy_sample(name))
    with torch.device("cpu"):
        expected = found_of(cross_entropy_sample(name))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-6, atol=1e-6)
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize(
    "shape", [(300, 10), (64, 1000), (9, 40000), (6, 700, 50), (3, 21, 40, 30)]
)
def test_the_same_bits_every_time(shape: tuple[int, ...]) -> None:
    random = generator("bits")
    x = torch.randn(shape, generator=random)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=random)
    ids = torch.arange(shape[0]) % 50
    sample = CrossEntropySample(x, target, ids, reference_gates("bits"), {})
    first = found_of(sample)
    for _ in range(5):
        for ours, theirs in zip(found_of(sample), first, strict=True):
            assert torch.equal(ours, theirs)


def test_a_stream_of_ones_own() -> None:
    sample = sample_of(64, 5000, torch.float32)
    expected = found_of(sample)
    for _ in range(3):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(5_000_000)
            late = CrossEntropySample(
                sample.logits * 1, sample.target, sample.ids, sample.gates, {}
            )
            found = found_of(late)
        stream.synchronize()
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def replayed(step: Any) -> Any:
    """Results of a captured step, from its second replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    return results


@pytest.mark.parametrize("name", ["plain", "rows", "image", "weight and smoothing", "vocabulary"])
def test_graphs_of_the_cross_entropy(name: str) -> None:
    sample = cross_entropy_sample(name)
    gates = native_gates(sample.gates)
    x = sample.logits.clone().requires_grad_()
    _, target, ids, m, state = sample.arguments(gates)

    def step() -> tuple[Tensor, ...]:
        losses = ops.masked_cross_entropy(x, target, ids, m, state, **sample.options)
        return (*losses, *torch.autograd.grad(losses.loss, x))

    for ours, theirs in zip(replayed(step), found_of(sample), strict=True):
        assert torch.equal(ours, theirs)


def test_graphs_of_the_linear_operator_and_of_given_losses() -> None:
    random = generator("linear graph")
    hidden = torch.randn(6, 20, 16, generator=random).requires_grad_()
    weight = torch.randn(300, 16, generator=random).requires_grad_()
    target = torch.randint(0, 300, (6, 20), generator=random)
    gates = native_gates(reference_gates("graph"))
    ids = torch.arange(6)

    def step() -> tuple[Tensor, ...]:
        losses = ops.masked_linear_cross_entropy(
            hidden, weight, None, target, ids, gates.logits, gates.state
        )
        given = ops.masked_loss(losses.sample_loss, ids, gates.logits, gates.state)
        return (*losses, *torch.autograd.grad(losses.loss, (hidden, weight)), *given)

    expected = [result.clone() for result in step()]
    for ours, theirs in zip(replayed(step), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_slope_set_later_is_seen_by_a_captured_graph() -> None:
    sample = loss_sample("plain")
    gates = native_gates(sample.gates)
    x = sample.sample_loss
    graph = torch.cuda.CUDAGraph()
    ops.masked_loss(x, sample.ids, gates.logits, gates.state)
    with torch.cuda.graph(graph):
        loss = ops.masked_loss(x, sample.ids, gates.logits, gates.state).loss
    gates.set_slope(4.0)
    graph.replay()
    assert torch.equal(loss, ops.masked_loss(x, sample.ids, gates.logits, gates.state).loss)


@pytest.mark.parametrize("shape", [(8, 10), (8, 1000), (8, 10, 6), (3, 5, 4, 40)])
def test_bad_labels_and_ids_take_no_part(shape: tuple[int, ...]) -> None:
    random = generator("bad")
    x = torch.randn(shape, generator=random).requires_grad_()
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=random)
    gates = native_gates(reference_gates("bad"))
    ids = torch.arange(shape[0])
    good = ops.masked_cross_entropy(x, target, ids, gates.logits, gates.state)
    target.view(shape[0], -1)[1] = shape[1]
    ids[2] = 50
    found = ops.masked_cross_entropy(x, target, ids, gates.logits, gates.state)
    (gradient,) = torch.autograd.grad(found.loss, x)
    assert found.pressure[[1, 2]].tolist() == [torch.inf] * 2
    assert not gradient[[1, 2]].any()
    assert torch.equal(found.sample_loss[3:], good.sample_loss[3:])
    with pytest.raises(IndexError, match=r"ids\[2\]"):
        gates.check_errors()


def test_no_copy_of_rows_that_lie_apart() -> None:
    x = torch.randn(64, 2048, generator=generator("apart"), dtype=torch.float32)
    rows = x[:, :2000]
    target = torch.arange(64)
    gates = native_gates(reference_gates("apart"))
    ids = torch.arange(64) % 50
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.ops.adapruner.masked_cross_entropy_(rows, target, ids, gates.logits, gates.state)
    assert torch.cuda.max_memory_allocated() <= before + 100_000
