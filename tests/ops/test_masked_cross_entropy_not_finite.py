"""masked_cross_entropy of logits that are not finite, in counted and in ignored rows."""

from __future__ import annotations

import pytest
import torch
from support.sample_inputs import FLOATS, CrossEntropySample, generator, laid_out, reference_gates
from test_masked_cross_entropy import (
    GRADIENT,
    VALUES,
    check_pressure,
    distance,
    expected_of,
    found_of,
)
from torch import Tensor

pytestmark = pytest.mark.usefixtures("device")


def _one_bad_row(name: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(5, 40, generator=generator("not finite"))
    target = torch.tensor([3, 0, 7, 39, 11])
    if name == "all -inf":
        x[2] = -torch.inf
    elif name == "+inf":
        x[2, 9] = torch.inf
    elif name == "+inf at the target":
        x[2, 7] = torch.inf
    elif name == "NaN":
        x[2, 30] = torch.nan
    else:
        x[2, 7] = -torch.inf
    return x, target


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["all -inf", "+inf", "+inf at the target", "NaN", "-inf target"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("pixels", [0, 3], ids=["rows", "pixels"])
def test_a_loss_that_is_not_finite(
    name: str, dtype: torch.dtype, smoothing: float, pixels: int
) -> None:
    x, target = _one_bad_row(name)
    if pixels:  # each sample repeats one row, side by side in memory
        x, target = (t.unsqueeze(-1).repeat_interleave(pixels, -1) for t in (x, target))
    sample = CrossEntropySample(
        x.to(dtype), target, torch.arange(5), reference_gates(name), {"label_smoothing": smoothing}
    )
    loss, sample_loss, pressure, gradient = found_of(sample)
    expected = expected_of(sample)
    assert not loss.isfinite()
    assert distance(sample_loss, expected[1], least=1.0) <= VALUES[dtype]
    assert pressure[2].isnan()
    check_pressure(pressure, expected[2], expected[1])
    others = [0, 1, 3, 4]
    assert distance(gradient[others], expected[3][others]) <= GRADIENT[dtype]
    assert gradient[2].isfinite().tolist() == expected[3][2].isfinite().tolist()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_an_ignored_row_may_hold_anything(layout: str) -> None:
    random = generator("ignored")
    x = torch.randn(3, 7, 20, generator=random)
    target = torch.randint(7, (3, 20), generator=random)
    ignored = torch.rand(3, 20, generator=random) < 0.4
    target[ignored] = -100
    expected = found_of(
        CrossEntropySample(x, target, torch.arange(3), reference_gates("ignored"), {})
    )
    junk = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.arange(int(ignored.sum())) % 3]
    x.movedim(1, -1)[ignored] = junk.unsqueeze(1)
    found = found_of(
        CrossEntropySample(
            laid_out(x, layout), target, torch.arange(3), reference_gates("ignored"), {}
        )
    )
    assert (found[3].movedim(1, -1)[ignored] == 0).all()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
