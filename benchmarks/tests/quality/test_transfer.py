"""The quality suite: sets that train other networks, the linear probe, the short selection."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
from benchmarks.quality import one, probe, scores, table
from benchmarks.quality.networks import NETWORKS, Network
from benchmarks.quality.table import RECIPES, SELECTED_BY, SHORT, Recipe, Run

OTHER = "digits other"


@pytest.fixture
def other(monkeypatch, tmp_path):
    """Digits, selected by the network of digits and trained on with another recipe."""
    monkeypatch.setattr(scores, "CACHE", tmp_path)  # costs in the suite's cache are the suite's
    monkeypatch.setitem(RECIPES, OTHER, Recipe("digits", 3, 32, 0.05, bfloat16=False))
    monkeypatch.setitem(SELECTED_BY, OTHER, "digits")
    one.select.cache_clear()
    yield
    one.select.cache_clear()


@pytest.mark.parametrize("method", ["random", "EL2N", "adapruner"])
def test_a_transfer_trains_another_network_on_the_set_of_the_plain_run(other, method, monkeypatch):
    seen = []

    class Noting(one.Plan):
        def __init__(self, reads):
            super().__init__(reads)
            seen.append(reads)

    monkeypatch.setattr(one, "Plan", Noting)
    plain, moved = (Run(name, "same epochs", method, 0.5, "clean", 0) for name in ("digits", OTHER))
    rows = []
    for run in (plain, moved):
        one.select.cache_clear()  # selected anew
        rows.append(one.make(run, "cpu"))
    assert torch.equal(*seen)
    assert int(seen[0].sum()) == rows[0]["kept"] == 649
    assert plain.shared == moved.shared
    assert [row["samples_read"] for row in rows] == [16 * rows[0]["kept"], 3 * rows[0]["kept"]]
    assert rows[0]["selection_samples_read"] == rows[1]["selection_samples_read"]
    assert [row["selected_by"] for row in rows] == [asdict(plain.recipe)] * 2
    assert [row["recipe"] for row in rows] == [asdict(plain.recipe), asdict(moved.recipe)]


def test_one_selection_serves_all_networks(other):
    plain, moved = (Run(name, "same epochs", "EL2N", 0.5, "clean", 0) for name in ("digits", OTHER))
    first, again = (one.select(run.selecting, "cpu")[0] for run in (plain, moved))
    assert first is again


# Shape of an input, and classes.
FORMS = {
    "cifar10-10000": ((3, 16, 16), 10),
    "traffic": ((3, 32, 32), 43),
    "letter": ((16, 1, 1), 26),
}


def test_the_networks_of_transfer_differ_from_the_one_that_selects():
    assert set(SELECTED_BY.values()) == set(FORMS)
    for own in FORMS:
        models = [RECIPES[name].model for name, by in SELECTED_BY.items() if by == own]
        assert len({RECIPES[own].model, *models}) == 1 + len(models) > 2


@pytest.mark.parametrize("name", SELECTED_BY)
@pytest.mark.parametrize("count", [1, 5])
def test_a_network_of_transfer_gives_the_logits_of_its_dataset(name, count):
    shape, classes = FORMS[SELECTED_BY[name]]
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        network = NETWORKS[RECIPES[name].model]().eval()
    logits = network(x)
    assert logits.shape == (count, classes)
    assert torch.equal(logits, network.head(network.features(x)))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def pixels() -> Network:
    with torch.random.fork_rng(devices=[]):
        return Network(nn.Flatten(), 768, 10)


def test_the_probe_reads_digits_from_pixels_and_repeats():
    state = torch.get_rng_state()
    first, second = (probe.probe_accuracy(pixels()) for _ in range(2))
    assert first == second
    assert 85 < first < 100
    assert torch.equal(torch.get_rng_state(), state)


def test_the_probe_reads_nothing_from_nothing():
    network = pixels()
    network.features = nn.Sequential(nn.Flatten(), nn.Threshold(1e9, 0.0))
    assert probe.probe_accuracy(network) < 15


def test_the_probe_is_of_digits_in_the_form_of_the_part_of_cifar():
    from sklearn.datasets import load_digits

    images, labels = probe._digits()
    assert images.shape == (1797, 16, 16, 3)
    assert images.dtype == torch.float32
    digit = torch.from_numpy(load_digits().images[7])
    for row, column, colour in ((0, 0, 0), (5, 9, 1), (15, 14, 2)):
        expected = (digit[row // 2, column // 2].item() / 16 - 0.47) / 0.25
        assert images[7, row, column, colour].item() == pytest.approx(expected, abs=1e-6)
    assert labels.bincount().min() > 150


@pytest.mark.parametrize("ratio", [0.9, 0.7, 0.1])
def test_a_short_selection_keeps_to_its_budget(ratio):
    row = one.make(Run("digits", "same epochs", SHORT, ratio, "clean", 0, "split"), "cpu")
    full = row["samples"] * table.RECIPES["digits"].epochs
    # One epoch more would be over it.
    assert table.SHORT_READS * full - row["samples"] < row["selection_samples_read"]
    assert row["selection_samples_read"] <= table.SHORT_READS * full
    assert row["samples_read"] == row["kept"] * table.RECIPES["digits"].epochs
