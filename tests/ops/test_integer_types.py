"""Targets and ids of masked_cross_entropy in every integer type."""

from __future__ import annotations

import pytest
import torch
from support.sample_inputs import (
    INTEGERS,
    CrossEntropySample,
    cross_entropy_sample,
    generator,
    native_gates,
    reference_gates,
)
from test_masked_cross_entropy import distance, expected_of, found_of

from adapruner import ops

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_type(dtype: torch.dtype) -> None:
    sample = cross_entropy_sample("odd")
    expected = found_of(sample)
    other = CrossEntropySample(
        sample.logits, sample.target.to(dtype), sample.ids.to(dtype), sample.gates, {}
    )
    for ours, theirs in zip(found_of(other), expected, strict=True):
        assert torch.equal(ours, theirs)


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
