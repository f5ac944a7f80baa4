"""What the quality suite says of the samples that are kept."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from benchmarks.quality import kept
from benchmarks.quality.table import RECIPES


def members(*indices: int) -> torch.Tensor:
    mask = torch.zeros(10, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def test_overlap_is_the_share_of_the_smaller_set():
    assert kept.overlap(members(0, 1, 2, 3), members(2, 3, 4, 5)) == 0.5
    assert kept.overlap(members(0, 1, 2, 3, 4, 5, 6, 7), members(6, 7, 8, 9)) == 0.5
    assert kept.overlap(members(6, 7, 8, 9), members(0, 1, 2, 3, 4, 5, 6, 7)) == 0.5
    assert kept.overlap(members(1), members(1)) == 1
    assert kept.overlap(members(1), members(2)) == 0


def test_the_least_wanted_of_equal_gates_has_the_largest_loss():
    gates, losses = torch.tensor([1.0, 0.5, 1.0, 0.5]), torch.tensor([0.9, 3.0, 0.4, 2.0])
    nothing = torch.zeros(4)
    look = kept.Look(None, nothing, nothing.bool(), gates, losses.double(), nothing)
    most, least = kept.extremes(look)
    assert (most.tolist(), least.tolist()) == ([2, 0, 3, 1], [1, 3, 0, 2])


def test_seeds_are_compared_in_pairs_and_epochs_in_order():
    one, two, three = members(0, 1, 2, 3), members(0, 1, 2, 4), members(0, 1)
    assert kept.between_seeds([one, two, three]) == [0.75, 1, 1]
    assert kept.between_seeds([one]) == []
    assert kept.from_epoch_to_epoch([one, two, three]) == {
        "share kept": pytest.approx([0.4, 0.4, 0.2]),
        "with the last": [1, 1, 1],
        "with the one before": [0.75, 1],
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny run: its folder and its numbers."""
    folder = tmp_path_factory.mktemp("kept")
    recipe = replace(RECIPES["digits"], epochs=3)
    kept.make("digits", 0.6, 2, recipe, folder, folder, points=100)
    return folder, json.loads((folder / "kept-digits.json").read_text())


def test_the_numbers_add_up(made):
    _, numbers = made
    count, left = numbers["samples"], round(0.6 * 1297)
    assert count == sum(numbers["samples of class"]) == 1297
    assert [sum(counts) for counts in numbers["kept of class"]] == [left, left]
    assert numbers["epochs"]["share kept"][-1] == pytest.approx(left / count)
    for found in numbers["difficulty"].values():
        counts = {name: sum(values) for name, values in found["counts"].items()}
        assert (counts["kept"], counts["pruned"]) == (left, count - left)
        wrong = counts["kept, wrong"] + counts["pruned, wrong"]
        assert wrong == round(found["wrong"] * count)
        assert counts["kept, wrong"] == round(found["wrong among kept"] * left)
    assert numbers["difficulty"]["clean"]["wrong"] == 0
    assert numbers["difficulty"][kept.NOISE]["wrong"] == pytest.approx(0.2, abs=1 / count)
    # Two sets of K of N have at least 2·K − N in common.
    for shares in numbers["between seeds"].values():
        assert all((2 * left - count) / left <= share <= 1 for share in shares)
        assert len(shares) == 1
    assert numbers["provenance"]["torch"] == torch.__version__


def test_the_pictures_are_drawn(made):
    from PIL import Image

    folder, _ = made
    for name in ("map", "losses", "stability", "images"):
        with Image.open(folder / f"kept-digits-{name}.png") as image:
            image.load()
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors()) > 5


def test_the_table_has_a_column_for_each_file(made, tmp_path):
    folder, numbers = made
    lines = kept.kept_table(folder).splitlines()
    assert lines[0] == "| | digits |"
    share = 100 * numbers["between seeds"]["adapruner"][0]
    assert f"| common to two seeds: adapruner | {share:.1f} [{share:.1f}, {share:.1f}] |" in lines
    assert "| … by chance | 60.0 |" in lines
    assert kept.kept_table(tmp_path) == "**Not yet measured.**"
