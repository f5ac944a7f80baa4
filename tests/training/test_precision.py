"""fast_prune in bfloat16, compiled, and with other memory formats; held-out losses of any dtype."""

from __future__ import annotations

import pytest
import torch
from support.training_data import blobs, check_exact, prune
from torch import Tensor, nn

from adapruner.training.evaluation import sample_cross_entropy

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("compile", [False, True])
def test_bfloat16(compile: bool) -> None:
    forwards: list[torch.dtype] = []

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if not torch.compiler.is_compiling():
                forwards.append(out.dtype)
            return out

    data, model = blobs(200), Noting(5, 3)
    result = prune(data, model, precision="bf16", compile=compile, epochs=4)
    check_exact(result, 120)
    assert (result.config["precision"], result.config["compile"]) == ("bf16", compile)
    assert model.weight.dtype == torch.float32
    assert not compile or not forwards
    assert set(forwards) <= {torch.bfloat16}
    assert result.history[-1]["training_loss"] < result.history[0]["training_loss"]


def test_held_out_loss_of_bfloat16_logits_is_taken_in_float32() -> None:
    logits, target = (torch.randn(64, 7) * 30).bfloat16(), torch.randint(0, 7, (64,))
    found, _ = sample_cross_entropy(logits, target)
    expected = nn.functional.cross_entropy(logits.double(), target, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32]
)
def test_held_out_targets_of_any_integer_type(dtype: torch.dtype) -> None:
    classes = 256 if dtype != torch.int8 else 100
    target = torch.randint(0, classes, (50, 4))
    logits = torch.randn(50, classes, 4)
    expected = nn.functional.cross_entropy(logits, target, reduction="none").mean(1)
    found, outside = sample_cross_entropy(logits, target.to(dtype))
    torch.testing.assert_close(found, expected)
    assert outside[0] == 0


@pytest.mark.parametrize("last", [False, True])
def test_images_have_the_memory_format_of_the_weights(last: bool) -> None:
    seen = []

    class Noting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last) and x.shape[1] > 1)
            return super().forward(x)

    model = Noting(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    if last:
        model = model.to(memory_format=torch.channels_last)
    prune((torch.randn(90, 2, 6, 6), torch.arange(90) % 3), model, epochs=2)
    assert set(seen) == {last}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_run_under_another_default_dtype(dtype: torch.dtype) -> None:
    x, y = blobs(200)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = nn.Linear(5, 3)
        result = prune((x.to(dtype), y), model, epochs=4)
    finally:
        torch.set_default_dtype(before)
    check_exact(result, 120)
    assert model.weight.dtype == dtype
    assert result.gate_logits.dtype == torch.float32
    assert result.history[-1]["training_loss"] < result.history[0]["training_loss"]
