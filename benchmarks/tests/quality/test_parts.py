"""Draws without a part of the default, and the tables of what the parts are worth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from adapruner.pruning.methods import find_method
from benchmarks.quality import parts
from benchmarks.quality.data import load
from benchmarks.quality.parts import WHOLE, WITHOUT, Case
from benchmarks.quality.table import RECIPES

ABOUT = {"provenance": {"processor": "P", "torch": "2", "date": "2026-01-02", "commit": "abc"}}


def test_every_part_is_a_constant_of_the_default():
    default = find_method("sampled")
    for name, constants in WITHOUT.items():
        assert (replace(default, **constants) == default) == (name in (WHOLE, parts.SMALL))


def test_draws_keep_as_many_and_differ_where_the_part_matters():
    recipe = replace(RECIPES["digits"], epochs=12)
    data = load("digits", "symmetric 0.2", 0, "split")
    case = Case("digits", 12, "symmetric 0.2", 0.3, 0)
    kept = dict(parts.kept_sets(data, recipe, case))
    count = int(0.3 * len(data.y) + 0.5)
    assert [int(mask.sum()) for mask in kept.values()] == [count] * (1 + len(WITHOUT))
    bad = {name: data.bad[mask].float().mean().item() for name, mask in kept.items()}
    assert bad["random"] == pytest.approx(0.2, abs=0.08)
    # Wrong labels lie above the range, so without that end the draw takes more than chance does.
    assert bad[WHOLE] < 0.5 * bad["random"] < bad["the hard end"]
    # From a ratio of 0.3 on, the easy side counts whole anyway.
    assert torch.equal(kept[parts.SMALL], kept[WHOLE])
    again = dict(parts.kept_sets(data, recipe, case))
    assert all(torch.equal(again[name], mask) for name, mask in kept.items())


def rows(accuracies, ratio=0.7):
    return [
        Case("digits", 16, "clean", ratio, seed)._asdict()
        | {"without": name, "accuracy": value}
        | ABOUT
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_losses_are_paired_over_the_seeds():
    rng = np.random.default_rng(0)
    whole = rng.normal(90, 5, 4)
    moved = {name: whole - 1 - i for i, name in enumerate(["random", *WITHOUT])}
    made = rows(moved | {WHOLE: whole})
    for ratio, shift in ((0.3, 2.0), (0.1, 3.0)):
        small = {n: v + shift * (n == parts.SMALL) for n, v in moved.items()}
        made += rows(small | {WHOLE: whole}, ratio)
    found = parts.losses(made)
    assert list(found) == [("digits", 16, "clean", ratio) for ratio in (0.7, 0.3, 0.1)]
    assert found["digits", 16, "clean", 0.7]["random"].mean == pytest.approx(-1)
    lines = {line.split(" | ")[0]: line for line in parts.summary(made)}
    easy = lines["| the easy end"]
    place = 1 + list(WITHOUT).index("the easy end")
    assert easy.startswith(f"| the easy end | {-1 - place:+.2f} | 3 of 3 | 0 | ")
    # That part is asked about where it can matter, at ratios below 0.3.
    of_small = -1 - (1 + list(WITHOUT).index(parts.SMALL)) + 3.0
    assert lines[f"| {parts.SMALL}"].startswith(f"| {parts.SMALL} | {of_small:+.2f} | 1 of 1 | 0 |")
    table = parts.table(made)
    assert len(table) == 2 + 3 + 2
    assert table[2].startswith("| digits, 16 epochs, clean, 0.7 | 4 | -1.00 [-1.00, -1.00] |")
