"""Checks of arguments: which values pass, and how the messages read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapruner import DatasetMismatchError
from adapruner._util.checks import check_same_dataset, check_whole


@pytest.mark.parametrize("value", [3, 10**20, np.int8(3), np.uint64(2**63)])
def test_whole_numbers_pass(value: Any) -> None:
    check_whole("epochs", value, 3)


@pytest.mark.parametrize("value", [3.0, True, np.bool_(True), None, "3", np.float32(3)])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="epochs must be a whole number; found "):
        check_whole("epochs", value, 0)


def test_too_small_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 3; found 2"):
        check_whole("epochs", 2, 3)


def test_datasets_are_compared() -> None:
    check_same_dataset("this result", "fingerprint", "ab", "ab")
    message = "this result belongs to another dataset: expected fingerprint ab, found cd"
    with pytest.raises(DatasetMismatchError, match=message):
        check_same_dataset("this result", "fingerprint", "ab", "cd")
