"""masked_cross_entropy and its gradient, against adapruner.reference in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.processes import run_python
from support.sample_inputs import (
    CROSS_ENTROPY,
    FEW,
    FLOATS,
    INTEGERS,
    CrossEntropySample,
    cross_entropy_sample,
    generator,
    laid_out,
    native_gates,
    reference_gates,
)
from torch import Tensor
from torch.nn import functional

from adapruner import ops
from adapruner.ops import reference

INSTRUCTION_SETS = ("baseline", "v3", "v4")
# Arithmetic is float32 for all but float64, and a gradient is rounded once, to the dtype of the
# logits (float16: its smallest number is absolute). Of the largest expected value; of losses, 1 at
# the least, as log(1 + tiny) is good to a unit of 1 in the last place, here as in torch.
VALUES = {dtype: 1e-6 for dtype in FLOATS} | {torch.float64: 1e-12}
GRADIENT = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SMALLEST = {dtype: 0.0 for dtype in FLOATS} | {torch.float16: 6e-8}


def distance(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Largest difference, as a share of the largest finite value expected, or of ``least``."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~finite].nan_to_num(), expected[~finite].nan_to_num())
    if not finite.any():
        return 0.0
    scale = max(expected[finite].abs().max().item(), least) or 1.0
    return (found - expected)[finite].abs().max().item() / scale


def expected_of(sample: CrossEntropySample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, ℓ, pressure and gradient of the reference, float64."""
    x = sample.logits.detach().double().contiguous().requires_grad_()
    loss, sample_loss, pressure = reference.masked_cross_entropy(
        sample.gates, x, sample.target.long(), sample.ids, **sample.options
    )
    (gradient,) = torch.autograd.grad(loss, x)
    return loss, sample_loss, pressure, gradient


def found_of(sample: CrossEntropySample, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of the native operator."""
    gates = native_gates(sample.gates)
    x = sample.logits.detach().requires_grad_()
    _, target, ids, m, state = sample.arguments(gates)
    losses = ops.masked_cross_entropy(x, target, ids, m, state, **sample.options, **options)
    (gradient,) = torch.autograd.grad(losses.loss, x)
    return losses.loss, losses.sample_loss, losses.pressure, gradient


def check_pressure(found: Tensor, expected: Tensor, sample_loss: Tensor) -> None:
    """float32 all the way: the logarithm magnifies the rounding of ℓ (some 1e-7) near ℓ = 0."""
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    finite = expected.isfinite()
    error = (found.double() - expected)[finite].abs()
    slack = 1e-6 * (1 + expected[finite].abs()) + 2e-7 / (sample_loss[finite] + 1e-5)
    assert (error <= slack).all()


def check_sample(name: str, dtype: torch.dtype) -> None:
    check(cross_entropy_sample(name, dtype), dtype)


def check(sample: CrossEntropySample, dtype: torch.dtype) -> None:
    loss, sample_loss, pressure, gradient = found_of(sample)
    expected = expected_of(sample)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == sample_loss.dtype == accumulate
    assert pressure.dtype == torch.float32
    assert gradient.dtype == dtype
    assert not sample_loss.requires_grad
    assert not pressure.requires_grad
    assert distance(loss, expected[0], least=1.0) <= VALUES[dtype]
    assert distance(sample_loss, expected[1], least=1.0) <= VALUES[dtype]
    check_pressure(pressure, expected[2], expected[1])
    # p − 1 at the target: what is left of numbers of the size of 1 / rows.
    least = 1 / max(sample.target.numel(), 1)
    limit = GRADIENT[dtype] + SMALLEST[dtype] / least
    assert distance(gradient, expected[3], least) <= limit


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", CROSS_ENTROPY)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    check_sample(name, dtype)


@pytest.mark.parametrize("wanted", INSTRUCTION_SETS)
def test_every_instruction_set_agrees_with_the_reference(wanted: str) -> None:
    info = ops._C.build_info()
    if wanted not in info["instruction_sets"]:
        pytest.skip(f"not built for {wanted}")
    order = INSTRUCTION_SETS.index
    if order(wanted) > order(info["instruction_set"]):
        pytest.skip(f"this processor has no {wanted}, or ADAPRUNER_ISA names a lower one")
    if wanted == info["instruction_set"]:
        return  # what every other test here runs
    program = (
        "import torch, test_masked_cross_entropy as test\n"
        f"assert test.ops._C.build_info()['instruction_set'] == {wanted!r}\n"
        "for name in test.CROSS_ENTROPY:\n"
        "    for dtype in test.FLOATS:\n"
        "        test.check_sample(name, dtype)\n"
        "for dtype in test.FLOATS:\n"
        "    test.test_every_number_of_classes(dtype, 0.0)\n"
        "    test.test_every_number_of_classes(dtype, 0.1)\n"
        "    test.test_overwriting_stays_within_the_logits(dtype)\n"
        "print('all agree')"
    )
    done = run_python(program, __file__, ADAPRUNER_ISA=wanted)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all agree\n", done.stderr


# Around the widths of vectors, the lengths of short rows and of blocks.
LENGTHS = [*range(1, 140), 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1537]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_number_of_classes(dtype: torch.dtype, smoothing: float) -> None:
    gates = reference_gates("lengths")
    ids = torch.arange(3)
    for classes in LENGTHS:
        random = generator(f"{classes} classes")
        x = torch.randn(3, classes, generator=random) * 4
        target = torch.randint(0, classes, (3,), generator=random)
        options = {"label_smoothing": smoothing}
        if smoothing and classes % 2:
            options["weight"] = torch.rand(classes, generator=random) + 0.5
        elif not smoothing:  # a row that begins with nothing, and one whose largest comes last
            x[1, : classes // 2] = -torch.inf
            target[1] = classes - 1
            x[2, -1] = 30.0
        check(CrossEntropySample(x.to(dtype), target, ids, gates, options), dtype)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_overwriting_stays_within_the_logits(dtype: torch.dtype) -> None:
    gates = native_gates(reference_gates("bounds"))
    for classes in LENGTHS:
        memory = torch.full((2 * classes + 64,), 7.0, dtype=dtype)
        logits = memory[32:-32].view(2, classes)
        ids = torch.arange(2)
        torch.ops.adapruner.masked_cross_entropy_(
            logits, ids % classes, ids, gates.logits, gates.state
        )
        assert (memory[:32] == 7).all()
        assert (memory[-32:] == 7).all()
        assert (logits != 7).all()


def eager_loss(logits: Tensor, target: Tensor, s: Tensor, smoothing: float) -> Tensor:
    """The same formula of torch's own operators, in float32 for half types, as under autocast."""
    loss = functional.cross_entropy(
        logits.float(), target, reduction="none", label_smoothing=smoothing
    )
    return (s.float() * loss).mean()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("values", ["random", "huge", "tiny", "equal", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_at_least_as_close_to_float64_as_eager_torch(values: str, dtype: torch.dtype) -> None:
    # Slack: a fifth, and two units in the last place of the largest value, in which luck decides.
    for shape in ((64, 1000), (3, 130000)):
        for smoothing in (0.0, 0.1) if values != "masked" else (0.0,):
            random = generator(f"{values} {shape}")
            x = torch.randn(shape, generator=random) * 3
            target = torch.randint(0, shape[1], shape[:1], generator=random)
            if values == "huge":
                x = (torch.rand(shape, generator=random) - 0.5) * 2e4
            elif values == "tiny":
                x *= 1e-6
            elif values == "equal":
                x[:] = 9999.3
            elif values == "masked":
                x[:, ::3] = -torch.inf
                x[torch.arange(shape[0]), target] = 0.5
            x = x.to(dtype)
            gates = reference_gates(values)
            sample = CrossEntropySample(
                x, target, torch.arange(shape[0]) % 50, gates, {"label_smoothing": smoothing}
            )
            expected = expected_of(sample)
            found = found_of(sample)
            y = x.clone().requires_grad_()
            eager = eager_loss(y, target, gates.gates[sample.ids], smoothing)
            (eager_gradient,) = torch.autograd.grad(eager, y)
            unit = torch.finfo(found[0].dtype).eps
            assert distance(found[0], expected[0]) <= 1.2 * distance(eager, expected[0]) + 2 * unit
            unit = torch.finfo(dtype).eps
            limit = 1.2 * distance(eager_gradient, expected[3]) + 2 * unit
            assert distance(found[3], expected[3]) <= limit


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (4, 3, 2, 5)])
def test_layout_of_the_logits_changes_nothing(layout: str, shape: tuple[int, ...]) -> None:
    random = generator("layout")
    x = torch.randn(shape, generator=random)
    x = x[:1].expand(shape) if layout == "expanded" else x
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=random)
    ids = torch.arange(shape[0])
    gates = reference_gates("layout")
    plain = found_of(CrossEntropySample(x.contiguous(), target, ids, gates, {}))
    other = found_of(CrossEntropySample(laid_out(x, layout), target, ids, gates, {}))
    # Rows that lie side by side are summed in an order of their own.
    tolerance = 0.0 if len(shape) == 2 else 2e-7
    for ours, expected in zip(other, plain, strict=True):
        assert distance(ours, expected) <= tolerance


@pytest.mark.usefixtures("device")
def test_layout_of_the_other_arguments_changes_nothing() -> None:
    sample = cross_entropy_sample("weight and smoothing")
    expected = found_of(sample)
    gates = native_gates(sample.gates)
    wide = torch.stack([gates.logits, gates.logits + 1], 1)
    options = dict(sample.options)
    options["weight"] = torch.stack([options["weight"], options["weight"] + 1], 1)[:, 0]
    target = torch.stack([sample.target, sample.target + 1], -1)[..., 0]
    ids = torch.stack([sample.ids, sample.ids + 1], -1)[..., 0]
    found = ops.masked_cross_entropy(sample.logits, target, ids, wide[:, 0], gates.state, **options)
    for ours, theirs in zip(found, expected[:3], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_type(dtype: torch.dtype) -> None:
    sample = cross_entropy_sample("odd")
    expected = found_of(sample)
    other = CrossEntropySample(
        sample.logits, sample.target.to(dtype), sample.ids.to(dtype), sample.gates, {}
    )
    for ours, theirs in zip(found_of(other), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("dtype", "classes"), [(torch.uint8, 200), (torch.uint16, 65500)])
def test_unsigned_targets_never_equal_a_negative_ignore_index(
    dtype: torch.dtype, classes: int
) -> None:
    x = torch.randn(1, classes, generator=generator("unsigned"))
    target = torch.tensor([-100]).to(dtype)  # the bits of −100
    gates = reference_gates("unsigned")
    found = found_of(CrossEntropySample(x, target, torch.tensor([0]), gates, {}))
    expected = expected_of(CrossEntropySample(x, target.long(), torch.tensor([0]), gates, {}))
    assert distance(found[1], expected[1]) < 1e-6


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.uint32, torch.uint64], ids=str)
def test_a_target_beyond_all_classes_is_an_error_in_any_type(dtype: torch.dtype) -> None:
    gates = native_gates(reference_gates("beyond"))
    target = torch.tensor([1, -100]).to(dtype)  # the bits of −100, a number beyond all classes
    arguments = torch.zeros(2, 5), target, torch.tensor([0, 1]), gates.logits, gates.state

    def call_and_check() -> None:
        ops.masked_cross_entropy(*arguments)
        gates.check_errors()  # a GPU's kernel cannot raise

    with pytest.raises(IndexError, match=r"must be a class in \[0, 5\).*; found \d{10,}"):
        call_and_check()


@pytest.mark.usefixtures("device")
def test_class_weights_in_any_float_type() -> None:
    sample = cross_entropy_sample("weight")
    for dtype in FLOATS:
        weight = sample.options["weight"].to(dtype)
        other = CrossEntropySample(
            sample.logits, sample.target, sample.ids, sample.gates, {"weight": weight}
        )
        assert distance(found_of(other)[0], expected_of(other)[0]) < 1e-6


@pytest.mark.usefixtures("device")
def test_empty_batch() -> None:
    for name in ("empty", "empty rows"):
        sample = cross_entropy_sample(name)
        loss, sample_loss, pressure, gradient = found_of(sample)
        assert loss.item() == 0
        assert sample_loss.shape == pressure.shape == (0,)
        assert gradient.shape == sample.logits.shape


@pytest.mark.usefixtures("device")
def test_a_single_gate() -> None:
    gates = reference.ReferenceGates(torch.tensor([0.5]), 1.0, 2.0)
    x = torch.randn(3, 4, generator=generator("single gate"))
    sample = CrossEntropySample(x, torch.tensor([0, 1, 3]), torch.zeros(3).long(), gates, {})
    for found, expected in zip(found_of(sample), expected_of(sample), strict=True):
        assert distance(found, expected) < 3e-6


@pytest.mark.usefixtures("device")
def test_samples_with_all_rows_ignored_are_no_visits() -> None:
    sample = cross_entropy_sample("rows")
    _, sample_loss, pressure, gradient = found_of(sample)
    for b in (0, -1):
        assert sample_loss[b] == 0
        assert pressure[b] == torch.inf
        assert not gradient[b].any()
    assert pressure[1:-1].isfinite().all()


@pytest.mark.parametrize("name", ["warm-up", "plain mean"])
def test_weights_are_exactly_one(name: str) -> None:
    sample = cross_entropy_sample(name, torch.float64)
    x = sample.logits.clone().requires_grad_()
    loss, sample_loss, _, gradient = found_of(sample)
    mean = functional.cross_entropy(x, sample.target)
    assert torch.equal(loss, sample_loss.mean())
    assert distance(gradient, torch.autograd.grad(mean, x)[0]) < 1e-15


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["plain mean", "plain mean of rows"])
def test_a_plain_mean_has_the_pressures_of_the_gates(name: str) -> None:
    sample = cross_entropy_sample(name)
    gated = dataclasses.replace(sample.gates, plain=False)
    loss, *others, _ = found_of(sample)
    gated_loss, *expected, _ = found_of(dataclasses.replace(sample, gates=gated))
    assert loss != gated_loss
    for found, other in zip(others, expected, strict=True):
        assert torch.equal(found, other)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_bits_at_any_number_of_threads(threads: Callable[[int], None]) -> None:
    random = generator("threads")
    x = torch.randn(67, 1111, generator=random)
    target = torch.randint(0, 1111, (67,), generator=random)
    sample = CrossEntropySample(
        x, target, torch.arange(67) % 50, reference_gates("threads"), {"label_smoothing": 0.1}
    )
    results = []
    for count in (1, 2):
        threads(count)
        results.append(found_of(sample))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.usefixtures("device")
def test_repeated_ids_share_their_gate() -> None:
    gates = reference_gates("same id")
    x = torch.randn(1, 6, generator=generator("same id")).expand(3, 6)
    sample = CrossEntropySample(x, torch.tensor([2, 2, 2]), torch.tensor([7, 7, 7]), gates, {})
    loss, sample_loss, pressure, _ = found_of(sample)
    assert len(set(sample_loss.tolist())) == len(set(pressure.tolist())) == 1
    assert loss.item() == pytest.approx(gates.gates[7].item() * sample_loss[0].item(), rel=1e-6)


@pytest.mark.usefixtures("device")
def test_gradients_of_finite_differences() -> None:
    for name in FEW:
        sample = cross_entropy_sample(name, torch.float64)
        gates = native_gates(sample.gates)
        _, target, ids, m, state = sample.arguments(gates)

        def loss(x: Tensor, rest: Any = (target, ids, m, state), options: Any = sample.options):  # type: ignore[no-untyped-def]
            return ops.masked_cross_entropy(x, *rest, **options).loss

        assert torch.autograd.gradcheck(loss, sample.logits.clone().requires_grad_())
