"""Rows tell today's methods by the names of version 0.1."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapruner.pruning.methods import find_method
from adapruner.pruning.methods.published import Published
from adapruner.pruning.methods.sampled import Sampled
from benchmarks.quality.constants import constants_text
from benchmarks.quality.run import RESULTS, key_of, run_of
from benchmarks.quality.table import ADAPRUNER, STATIC_METHODS, constants_of

FILES = [path for path in sorted(RESULTS.rglob("*.jsonl")) if path.parent.name != "archive"]


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


@pytest.mark.parametrize("name", ["published", "sampled"])
def test_another_constant_is_another_text(name: str) -> None:
    method = find_method(name)
    texts = {constants_text(method)}
    others = [
        replace(method, **{field: (2.0, 3.0) if isinstance(value, tuple) else value + 1})
        for field, value in vars(method).items()
        if not isinstance(value, bool) and value != float("inf")
    ]
    others += [replace(method, pressure_cap=2.0), replace(method, weighs=not method.weighs)]
    others += [replace(method, chooses_best=not method.chooses_best)]
    texts |= {constants_text(other) for other in others}
    assert len(texts) == len(others) + 1


def test_a_constant_has_the_name_that_its_rows_have() -> None:
    method = find_method("sampled")
    assert isinstance(method, Sampled)
    assert "turns=0.25," in constants_text(replace(method, rotation=0.25))
    assert "reach=(-1.0, 2.0)," in constants_text(replace(method, target_range=(-1.0, 2.0)))
    assert constants_text(replace(method, step_size=0.5)).startswith("Method(easy_weight=-0.4, ")


def test_a_method_of_another_kind_has_a_text_of_its_own() -> None:
    @dataclass(frozen=True)
    class Other(Published):
        more: float = 3.0

    assert "more=3.0" in constants_text(Other(easy_weight=1.0))
