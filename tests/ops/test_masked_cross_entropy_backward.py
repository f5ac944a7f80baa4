"""masked_cross_entropy within autograd: upstream gradients, kept graphs, overwritten logits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.sample_inputs import (
    CROSS_ENTROPY,
    FLOATS,
    CrossEntropySample,
    cross_entropy_sample,
    generator,
    native_gates,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapruner import ops
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method


def losses_of(
    sample: CrossEntropySample, logits: Tensor, gates: Gates | None = None, **options: Any
) -> ops.MaskedLoss:
    gates = gates or native_gates(sample.gates)
    _, *rest = sample.arguments(gates)
    return ops.masked_cross_entropy(logits, *rest, **sample.options, **options)


def gradient_of(sample: CrossEntropySample) -> Tensor:
    x = sample.logits.detach().requires_grad_()
    return torch.autograd.grad(losses_of(sample, x).loss, x)[0]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("factor", [3.0, 65536.0, 0.0, -1.0])
def test_upstream_gradient(factor: float, overwrite: bool) -> None:
    sample = cross_entropy_sample("rows")
    x = sample.logits.clone().requires_grad_()
    loss = losses_of(sample, x * 1, overwrite_logits=overwrite).loss
    (loss * factor).backward()
    assert torch.allclose(x.grad, factor * gradient_of(sample), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_upstream_gradient_in_half_precision(dtype: torch.dtype) -> None:
    sample = cross_entropy_sample("plain", dtype)
    x = sample.logits.clone().requires_grad_()
    (losses_of(sample, x).loss * 65536).backward()
    exact = sample.logits.double().requires_grad_()
    (losses_of(sample, exact).loss * 65536).backward()
    assert x.grad.dtype == dtype
    assert torch.allclose(x.grad.double(), exact.grad, rtol=6e-3, atol=1e-4)


@pytest.mark.usefixtures("device")
def test_loss_scaling_saves_small_gradients_in_float16() -> None:
    # Without a scale, all gradients except the targets' are below the smallest float16, 6e-8.
    logits = torch.randn(256, 5000, generator=generator("small")).half().requires_grad_()
    gates = Gates(256, 0.7, find_method("sampled"))
    target, ids = torch.arange(256), torch.arange(256)
    loss = ops.masked_cross_entropy(logits, target, ids, gates.logits, gates.state).loss
    (found,) = torch.autograd.grad(loss * 65536, logits)
    exact = logits.detach().double().requires_grad_()
    loss = ops.masked_cross_entropy(exact, target, ids, gates.logits, gates.state).loss
    (expected,) = torch.autograd.grad(loss * 65536, exact)
    assert (found == 0).double().mean() < 0.01
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.usefixtures("device")
def test_infinite_upstream_gradient_reaches_the_logits() -> None:
    # A GradScaler skips a step with such a gradient.
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    (losses_of(sample, x).loss * torch.inf).backward()
    assert not x.grad.isfinite().any()


@pytest.mark.parametrize("inside", [False, True])
def test_losses_that_share_logits(inside: bool) -> None:
    sample, gates = cross_entropy_sample("plain"), None
    x = sample.logits.clone().requires_grad_()
    logits = x * 1 if inside else x
    gates = native_gates(sample.gates)
    first = losses_of(sample, logits, gates).loss
    second = losses_of(sample, logits, gates).loss
    (first + 2 * second + logits.square().sum()).backward()
    expected = 3 * gradient_of(sample) + 2 * sample.logits
    assert torch.allclose(x.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inside", [False, True])
def test_a_kept_graph_gives_the_same_gradient_every_time(inside: bool) -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    loss = losses_of(sample, x * 1 if inside else x).loss
    expected = gradient_of(sample)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        assert torch.allclose(x.grad, times * expected, rtol=1e-6)
    x.grad.zero_()  # must not change the tensors that the graph keeps
    loss.backward()
    assert torch.equal(x.grad, expected)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


class Shapes(TorchDispatchMode):
    """Records the shapes of the results of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.noted.append(result.shape)
        return result


def test_backward_makes_nothing_of_the_size_of_the_logits() -> None:
    sample = cross_entropy_sample("vocabulary")
    x = sample.logits.clone().requires_grad_()
    loss = losses_of(sample, x).loss
    with Shapes() as shapes:
        (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.shape == sample.logits.shape
    assert sample.logits.shape not in shapes.noted


def test_second_derivative_is_refused() -> None:
    sample = cross_entropy_sample("odd")
    for overwrite in (False, True):
        x = sample.logits.clone().requires_grad_()
        loss = losses_of(sample, x * 1, overwrite_logits=overwrite).loss
        with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph=True"):
            torch.autograd.grad(loss, x, create_graph=True)


def test_without_gradients_none_are_formed() -> None:
    sample = cross_entropy_sample("odd")
    gates = native_gates(sample.gates)
    expected = losses_of(sample, sample.logits.clone().requires_grad_())
    for found in (
        losses_of(sample, sample.logits),
        torch.no_grad()(losses_of)(sample, sample.logits.clone().requires_grad_()),
        torch.inference_mode()(losses_of)(sample, sample.logits),
    ):
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
            assert not ours.requires_grad
    *_, gradient = torch.ops.adapruner.masked_cross_entropy(
        *sample.arguments(gates), compute_gradient=False
    )
    assert gradient.shape == (0,)


def test_a_graph_without_its_gradient_says_so() -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    gates = native_gates(sample.gates)
    _, *rest = sample.arguments(gates)
    loss, *_ = torch.ops.adapruner.masked_cross_entropy(x, *rest, compute_gradient=False)
    with pytest.raises(RuntimeError, match="compute_gradient=False"):
        loss.backward()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", [n for n in CROSS_ENTROPY if n != "expanded"])
def test_overwriting_gives_the_same_values(name: str, dtype: torch.dtype) -> None:
    sample = cross_entropy_sample(name, dtype)
    x = sample.logits.detach().requires_grad_()
    expected = losses_of(sample, x)
    (gradient,) = torch.autograd.grad(expected.loss, x)
    logits = x * 1
    found = losses_of(sample, logits, overwrite_logits=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    if dtype == torch.float16 and sample.options.get("weight") is not None:
        assert torch.equal(logits, x)  # converted to float32 before
        return
    # The gradient is there before the backward pass; in float16 it is scaled.
    stored = 1024 if dtype == torch.float16 else 1
    assert torch.equal((logits.double() / stored).to(dtype), gradient)
    (found_gradient,) = torch.autograd.grad(found.loss, x)
    assert torch.equal(found_gradient, gradient)


@pytest.mark.usefixtures("device")
def test_the_gradient_takes_the_memory_of_the_logits() -> None:
    layer = nn.Linear(4, 33)
    sample = cross_entropy_sample("odd")
    logits = layer(torch.randn(5, 4, generator=generator("memory")))
    addresses = []
    logits.register_hook(lambda gradient: addresses.append(gradient.data_ptr()))
    loss = losses_of(sample, logits, overwrite_logits=True).loss
    loss.backward()
    assert addresses == [logits.data_ptr()]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    "layout",
    [
        lambda y: y,  # a layer's output, and views of it
        lambda y: y[:, 2:35],
        lambda y: y.chunk(2, 1)[0],
        lambda y: y.view(5, 5, 14).transpose(1, 2),
    ],
)
def test_overwriting_after_a_linear_layer(layout: Callable[[Tensor], Tensor]) -> None:
    layer = nn.Linear(4, 70)
    inputs = torch.randn(5, 4, generator=generator("after linear"))
    gradients = []
    for overwrite in (False, True):
        layer.zero_grad()
        logits = layout(layer(inputs))
        classes, rows = logits.shape[1], logits.shape[2:]
        target = torch.randint(0, classes, (5, *rows), generator=generator("target"))
        odd = cross_entropy_sample("odd")
        sample = CrossEntropySample(logits, target, odd.ids, odd.gates, {})
        losses_of(sample, logits, overwrite_logits=overwrite).loss.backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for with_copy, in_place in zip(*gradients, strict=True):
        assert torch.equal(with_copy, in_place)


@pytest.mark.parametrize("earlier", [torch.exp, torch.sigmoid, torch.relu, lambda x: x.softmax(1)])
def test_overwriting_is_refused_where_the_logits_are_needed(earlier: Any) -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    loss = losses_of(sample, earlier(x), overwrite_logits=True).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert x.grad is None


def test_overwriting_is_refused_where_another_loss_needs_the_logits() -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    logits = x * 1
    penalty = logits.square().sum()
    loss = losses_of(sample, logits, overwrite_logits=True).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + penalty).backward()


def test_overwritten_logits_give_one_backward_pass() -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    loss = losses_of(sample, x * 1, overwrite_logits=True).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"overwritten its logits can run once; found a second"):
        loss.backward()


def test_later_changes_to_overwritten_logits_are_refused() -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    logits = x * 1
    loss = losses_of(sample, logits, overwrite_logits=True).loss
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_overwriting_a_leaf_is_refused() -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        losses_of(sample, x, overwrite_logits=True)
    with pytest.raises(RuntimeError, match="leaf"):
        losses_of(sample, x.view_as(x), overwrite_logits=True)
    assert torch.equal(x, sample.logits)


def test_overlapping_logits_cannot_be_overwritten() -> None:
    sample = cross_entropy_sample("expanded")
    x = sample.logits[:1].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="single memory location"):
        losses_of(sample, (x * 1).expand(5, 9), overwrite_logits=True)


def test_logits_that_need_no_gradient_are_left_alone() -> None:
    sample = cross_entropy_sample("odd")
    x = sample.logits.clone()
    losses_of(sample, x, overwrite_logits=True)
    y = x.requires_grad_() * 1
    with torch.no_grad():
        losses_of(sample, y, overwrite_logits=True)
    assert torch.equal(y, sample.logits)


def test_errors_leave_the_logits_to_be_overwritten_alone() -> None:
    sample = cross_entropy_sample("odd")
    logits = sample.logits.clone().requires_grad_() * 1
    bad = CrossEntropySample(logits, sample.target + 40, sample.ids, sample.gates, {})
    with pytest.raises(IndexError):
        losses_of(bad, logits, overwrite_logits=True)
    assert torch.equal(logits, sample.logits)


def change(**changes: Any) -> dict[str, Any]:
    return changes


ODD = "odd"  # logits [5, 33], N = 50
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "integer logits": (change(logits=torch.ones(5, 33).long()), TypeError, "logits must be.*Long"),
    "one dimension": (change(logits=torch.ones(5)), ValueError, r"\[B, C\].*\[5\]"),
    "no class": (change(logits=torch.ones(5, 0)), ValueError, r"at least one class.*\[5, 0\]"),
    "float target": (change(target=torch.ones(5)), TypeError, "target must hold integers.*Float"),
    "bool target": (change(target=torch.ones(5) > 0), TypeError, "target must hold.*Bool"),
    "target shape": (change(target=torch.ones(4).long()), ValueError, r"\[5\].*\[4\]"),
    "target dims": (change(target=torch.ones(5, 1).long()), ValueError, r"\[5\].*\[5, 1\]"),
    "target too large": (
        change(target=torch.tensor([0, 1, 33, 3, 40])),
        IndexError,
        r"target\[2\] .* must be a class in \[0, 33\) or ignore_index -100; found 33",
    ),
    "target negative": (
        change(target=torch.tensor([0, 1, 2, 3, -1])),
        IndexError,
        r"target\[4\] .* must be a class in \[0, 33\).*; found -1",
    ),
    "float ids": (change(ids=torch.ones(5)), TypeError, "ids must hold integers.*Float"),
    "ids shape": (
        change(ids=torch.ones(4).long()),
        ValueError,
        r"ids must have shape \[5\].*\[4\]",
    ),
    "ids dims": (change(ids=torch.ones(5, 1).long()), ValueError, r"\[5\].*\[5, 1\]"),
    "id too large": (
        change(ids=torch.tensor([0, 50, 1, 2, 99])),
        IndexError,
        r"ids\[1\] must be a dataset index in \[0, 50\); found 50",
    ),
    "id negative": (
        change(ids=torch.tensor([0, 1, -7, 2, 3])),
        IndexError,
        r"ids\[2\].*found -7",
    ),
    "gates of float64": (
        change(gate_logits=torch.ones(50).double()),
        TypeError,
        "gate_logits must be float32; found Double",
    ),
    "gates of two dims": (change(gate_logits=torch.ones(5, 10)), ValueError, r"\[N\].*\[5, 10\]"),
    "float state": (change(state=torch.zeros(64)), TypeError, "state must be int64; found Float"),
    "short state": (change(state=torch.zeros(9).long()), ValueError, r"shape \[\d+\].*\[9\]"),
    "strided state": (
        change(state=torch.zeros(ops._C.state_size * 2).long()[::2]),
        ValueError,
        "contiguous",
    ),
    "integer weight": (change(weight=torch.ones(33).long()), TypeError, "weight must be.*Long"),
    "weight shape": (change(weight=torch.ones(32)), ValueError, r"\[33\].*\[32\]"),
    "smoothing": (change(label_smoothing=1.5), ValueError, r"\[0, 1\]; found 1.5"),
    "NaN smoothing": (change(label_smoothing=float("nan")), ValueError, r"\[0, 1\]; found nan"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_errors(name: str, overwrite: bool) -> None:
    changes, error, message = ERRORS[name]
    sample = cross_entropy_sample(ODD)
    gates = native_gates(sample.gates)
    names = ("logits", "target", "ids", "gate_logits", "state")
    arguments = dict(zip(names, sample.arguments(gates), strict=True)) | changes
    if arguments["logits"].is_floating_point():
        arguments["logits"] = arguments["logits"].clone().requires_grad_() * 1
    with pytest.raises(error, match=message) as caught:
        ops.masked_cross_entropy(**arguments, overwrite_logits=overwrite)
    assert not re.search(r"0x|csrc", str(caught.value).split("Exception raised from")[0])
    assert losses_of(sample, sample.logits).loss.isfinite()  # and life goes on


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize("largest", [1.0, 100.0, 3000.0])
def test_large_class_weights_in_float16(largest: float, samples: int, overwrite: bool) -> None:
    gates = Gates(samples, 0.5, find_method("sampled"))
    x = torch.randn(samples, 3, generator=generator("weights")).half().requires_grad_()
    weight, target = torch.tensor([largest, 1.0, 2.0]), torch.zeros(samples, dtype=torch.int64)
    losses = ops.masked_cross_entropy(
        x * 1,
        target,
        torch.arange(samples),
        gates.logits,
        gates.state,
        weight=weight,
        overwrite_logits=overwrite,
    )
    expected_x = x.detach().double().requires_grad_()
    expected = nn.functional.cross_entropy(
        expected_x, target, weight=weight.double(), reduction="none"
    )
    torch.testing.assert_close(losses.sample_loss.double(), expected, rtol=2e-3, atol=0)
    (losses.loss * 2).backward()
    # The sampled method weights no loss by its gates.
    (expected.mean() * 2).backward()
    torch.testing.assert_close(x.grad.double(), expected_x.grad, rtol=2e-3, atol=1e-6)


@pytest.mark.usefixtures("device")
def test_a_gradient_of_forward_mode_is_refused() -> None:
    sample = cross_entropy_sample("rows")
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(sample.logits, torch.ones_like(sample.logits))
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            losses_of(sample, x)
