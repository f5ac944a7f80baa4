"""Paths in one buffer behave as a list of strings."""

from __future__ import annotations

import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapruner.data.sources.paths import Paths

# A name of a file is any bytes; Python holds those that are not UTF-8 as lone surrogates.
NAMES = st.lists(st.binary(max_size=12).map(lambda name: name.decode(errors="surrogateescape")))


@given(NAMES, st.integers(-20, 20), st.slices(12))
def test_they_are_what_was_given(names: list[str], index: int, part: slice) -> None:
    paths = Paths(names)
    assert len(paths) == len(names)
    assert list(paths) == names
    assert paths == names
    assert list(paths[part]) == names[part]
    assert pickle.loads(pickle.dumps(paths)) == names
    if -len(names) <= index < len(names):
        assert paths[index] == names[index]
    else:
        with pytest.raises(IndexError, match=f"index {index} is out of range for {len(names)}"):
            paths[index]


def test_they_differ_from_other_paths() -> None:
    paths = Paths(["a", "bc"])
    assert paths != ["ab", "c"]
    assert paths != ["a", "bc", ""]
    assert paths != "abc"
    assert repr(paths) == "Paths(['a', 'bc'])"


def test_a_path_costs_its_name_and_8_bytes() -> None:
    names = [f"class-{i % 10}/image-{i:06d}.jpg" for i in range(1000)]
    paths = Paths(names)
    held = sys.getsizeof(paths._names) + paths._ends.nbytes
    assert held <= sum(map(len, names)) + 8 * len(names) + 100
