"""The scores and selections of the rivals, on cases worked by hand."""

import math

import pytest
import torch

pytest.importorskip("sklearn")
from benchmarks.quality import scores, static


def records(logits, labels, features=None) -> scores.Records:
    logits = torch.tensor(logits, dtype=torch.float16)
    count = logits.shape[1]
    return scores.Records(
        logits=logits,
        features=torch.zeros(count, 2) if features is None else torch.tensor(features).float(),
        labels=torch.tensor(labels),
        samples_read=0,
        seconds=0.0,
        cpu_seconds=0.0,
    )


def of_choices(choices, labels) -> scores.Records:
    """Records of two classes in which sample i chooses ``choices[epoch][i]``."""
    return records([[[1.0 - c, float(c)] for c in epoch] for epoch in choices], labels)


def test_forgetting_counts_right_then_wrong():
    # Right and wrong by epoch: 1011 forgets once, 1010 twice, 0111 never, 0000 was never right.
    made = of_choices([[0, 0, 1, 1], [1, 1, 0, 1], [0, 0, 0, 1], [0, 1, 0, 1]], [0, 0, 0, 0])
    assert scores.forgetting(made).tolist() == [1, 2, 0, math.inf]


def test_el2n_is_the_length_of_the_error():
    # Equal logits: p = (1/2, 1/2), error (1/2, 1/2). Logits (0, ln 3): p = (1/4, 3/4).
    made = records([[[0.0, 0.0], [0.0, math.log(3)]]] * 4, [0, 1])
    expected = [math.sqrt(0.5), math.sqrt(2) / 4]
    assert scores.el2n(made, 1).tolist() == pytest.approx(expected, rel=1e-3)


def test_el2n_looks_at_the_first_quarter():
    # The second sample is the harder one early on, the first one later.
    early, late = [[9.0, -9.0], [0.0, 0.0]], [[-9.0, 9.0], [9.0, -9.0]]
    made = records([early, late, late, late], [0, 0])
    assert scores.el2n(made, 1).tolist() == pytest.approx([0, math.sqrt(0.5)], abs=1e-6)
    assert static.STATIC["EL2N"](made, 1, seed=0).tolist() == [1]
    assert scores.el2n(made, 4).argmax() == 0


def test_aum_keeps_the_small_margins_and_as_published_the_large():
    made = records([[[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]]], [0, 0, 0])
    assert static.STATIC["AUM"](made, 2, seed=0).tolist() == [1, 2]
    assert static.STATIC["AUM as published"](made, 2, seed=0).tolist() == [0, 2]


def test_aum_is_the_mean_margin_over_the_largest_other():
    # Margins of class 1 over the larger of classes 0 and 2: 3 - 2 and 0 - 4, mean -1.5.
    made = records([[[2.0, 3.0, 1.0]], [[1.0, 0.0, 4.0]]], [1])
    assert scores.aum(made).tolist() == [1.5]


def test_dual_multiplies_spread_and_difficulty():
    # Windows of 2: (0.2, 0.6): std √0.08, mean 0.4; (0.6, 0.6): std 0. Mean of the two products.
    p = torch.tensor([[0.2], [0.6], [0.6]], dtype=torch.float64)
    assert scores.dual(p, 2).item() == pytest.approx(math.sqrt(0.08) * 0.6 / 2)


def test_distance_to_the_center_of_the_own_class():
    made = records([[[0.0, 0.0]] * 3], [0, 0, 1], [[0, 0], [6, 8], [100, 100]])
    assert scores.to_class_center(made).tolist() == [5, 5, 0]


def test_moderate_keeps_the_middle():
    # Class 0 has its center at (0, 0); distances 1, 1, 3, 3, 5, 5.
    features = [[1, 0], [-1, 0], [0, 3], [0, -3], [5, 0], [-5, 0]]
    made = records([[[0.0, 0.0]] * 6], [0] * 6, features)
    assert static.moderate(made, 2, seed=0).tolist() == [2, 3]
    assert static.moderate(made, 6, seed=0).tolist() == list(range(6))


def test_top_breaks_ties_by_the_seed():
    score = torch.tensor([1.0, math.inf, 1.0, 1.0, 0.0])
    kept = {tuple(static.top(score, 3, seed).tolist()) for seed in range(20)}
    assert all(1 in k and 4 not in k and len(k) == 3 for k in kept)
    assert len(kept) > 1


def test_stratified_serves_the_smallest_first():
    # Strata of width 1/50 over [0, 1]: 2 samples at 0, 90 in the middle, 8 at 1; 47 strata empty.
    difficulty = torch.tensor([0.0] * 2 + [0.5] * 90 + [1.0] * 8)
    kept = static.stratified(difficulty, 30, 0.0, seed=0)
    counts = [int((difficulty[kept] == v).sum()) for v in (0.0, 0.5, 1.0)]
    assert counts == [2, 20, 8]


def test_stratified_leaves_out_the_hardest():
    difficulty = torch.arange(100.0)
    kept = static.stratified(difficulty, 90, 0.1, seed=0)
    assert kept.tolist() == list(range(90))


@pytest.mark.parametrize("same", [0.0, 3.0])
def test_stratified_of_equal_difficulties(same):
    kept = static.stratified(torch.full((20,), same), 7, 0.1, seed=1)
    assert len(set(kept.tolist())) == 7


def test_beta_density_is_a_density_and_moves_to_the_easy():
    x = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    little, much = (static.beta_density(x, 0.4, pruned, 5.5) for pruned in (0.3, 0.9))
    for density in (little, much):
        assert (density.sum() / 1000).item() == pytest.approx(1, abs=1e-3)
    # Its mean is 1 - b / 16 with b = 15 · 0.6 · (1 - pruned^5.5).
    mean = (little * x).sum().item() / 1000
    assert mean == pytest.approx(1 - 15 * 0.6 * (1 - 0.3**5.5) / 16, abs=1e-3)
    assert (much * x).sum() > (little * x).sum()


@pytest.mark.parametrize("method", sorted(static.STATIC))
@pytest.mark.parametrize("count", [1, 7, 39, 40])
def test_every_method_keeps_exactly_so_many(method, count):
    generator = torch.Generator().manual_seed(3)
    made = scores.Records(
        logits=torch.randn(8, 40, 4, generator=generator).half(),
        features=torch.randn(40, 5, generator=generator),
        labels=torch.arange(40) % 4,
        samples_read=0,
        seconds=0.0,
        cpu_seconds=0.0,
    )
    kept = static.STATIC[method](made, count, 5)
    assert len(kept) == count
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert torch.equal(kept, static.STATIC[method](made, count, 5))


def test_random_of_each_class_keeps_the_shares():
    made = records([[[0.0] * 3] * 12], [0] * 6 + [1] * 4 + [2] * 2)
    kept = static.random_of_each_class(made, 6, seed=0)
    assert made.labels[kept].bincount().tolist() == [3, 2, 1]
