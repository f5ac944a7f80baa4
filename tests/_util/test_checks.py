"""Checks of arguments: which values pass, and how the messages read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapruner import DatasetMismatchError
from adapruner._util.checks import check_same_dataset, checked_real, checked_whole


@pytest.mark.parametrize("value", [3, 10**20, np.int8(3), np.uint64(2**63)])
def test_whole_numbers_become_ints(value: Any) -> None:
    found = checked_whole("epochs", value, 3)
    assert type(found) is int
    assert found == value


@pytest.mark.parametrize("value", [3, 0.25, np.float16(0.5), np.float64(0.1), np.int32(1)])
def test_numbers_become_floats(value: Any) -> None:
    found = checked_real("share", value, "a share")
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [True, None, "3", [0.5]])
def test_what_is_not_a_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="share must be a share in \\[0, 1\\]; found "):
        checked_real("share", value, "a share in [0, 1]")


@pytest.mark.parametrize("value", [3.0, True, np.bool_(True), None, "3", np.float32(3)])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="epochs must be a whole number; found "):
        checked_whole("epochs", value, 0)


def test_too_small_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 3; found 2"):
        checked_whole("epochs", 2, 3)


def test_datasets_are_compared() -> None:
    check_same_dataset("this result", "fingerprint", "ab", "ab")
    message = "this result belongs to another dataset: expected fingerprint ab, found cd"
    with pytest.raises(DatasetMismatchError, match=message):
        check_same_dataset("this result", "fingerprint", "ab", "cd")
