"""Rows tell the constants of their method, and so whether they are rows of today."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapruner.pruning.methods import find_method
from adapruner.pruning.methods.published import Published
from benchmarks.quality.constants import DEFAULT_0_1_0, constants_text
from benchmarks.quality.run import RESULTS, key_of, run_of
from benchmarks.quality.table import ADAPRUNER, FORMER, STATIC_METHODS, constants_of

OF_OTHER_SCRIPTS = ("suspects.jsonl", "other_ratio.jsonl")  # their rows tell no constants
FILES = [
    path
    for path in sorted(RESULTS.rglob("*.jsonl"))
    if path.parent.name != "archive" and path.name not in OF_OTHER_SCRIPTS
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RESULTS)))
def test_every_row_of_the_repository_counts_as_one_of_today(path: Path) -> None:
    made = [json.loads(line) for line in path.read_text().splitlines()]
    assert made
    for row in made:
        assert row.get("constants") == constants_of(row["method"])
        if path.name != "tasks.jsonl":
            assert key_of(row) == run_of(row).key()


def test_only_methods_of_the_package_have_constants() -> None:
    assert {name for name in STATIC_METHODS if constants_of(name)} <= set(ADAPRUNER)
    assert constants_of("DUAL") is None


def test_rows_of_the_former_default_are_not_rows_of_today() -> None:
    assert FORMER not in ADAPRUNER
    assert constants_of(FORMER) == constants_of(f"{FORMER}, short") == DEFAULT_0_1_0
    assert constants_of("adapruner") != DEFAULT_0_1_0


@pytest.mark.parametrize("name", ["published", "sampled"])
def test_another_constant_is_another_text(name: str) -> None:
    method = find_method(name)
    texts = {constants_text(method)}
    others = [
        replace(method, **{field: (2.0, 3.0) if isinstance(value, tuple) else value + 1})
        for field, value in vars(method).items()
        if not isinstance(value, bool) and value != float("inf")
    ]
    others += [replace(method, pressure_cap=7.0)]
    for flag in ("weighs", "chooses_best", "by_first_loss"):
        others += [replace(method, **{flag: not getattr(method, flag)})]
    texts |= {constants_text(other) for other in others}
    assert len(texts) == len(others) + 1


def test_a_method_of_another_kind_has_a_text_of_its_own() -> None:
    @dataclass(frozen=True)
    class Other(Published):
        more: float = 3.0

    assert "more=3.0" in constants_text(Other(easy_weight=1.0))
