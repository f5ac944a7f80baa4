"""Reasons, suspects and other ratios, against definitions worked out sample by sample."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapruner import Pruner, PruneResult, fast_prune
from adapruner.errors import PruningWarning
from adapruner.pruning.doubts import small_classes
from adapruner.pruning.selection import keep_count
from adapruner.results.reasons import MEANINGS, REASONS, reason_codes, reason_counts, samples_of

BALANCES = ("class", "floor", "neighbours", None)


def random_result(seed: int, n: int, **changes: Any) -> PruneResult:
    """A result of n samples with scores that tie often, and every optional part."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, n).astype(np.float32) / 4
    scores[rng.random(n) < 0.1] = -np.inf
    readable = np.flatnonzero(np.isfinite(scores))
    kept = np.sort(rng.permutation(readable)[: rng.integers(0, len(readable) + 1)])
    relative = rng.exponential(size=n).astype(np.float32)
    visits = rng.integers(0, 4, n).astype(np.int16)
    relative[visits == 0] = np.nan
    values: dict[str, Any] = {
        "indices": torch.from_numpy(kept),
        "gate_logits": torch.from_numpy(scores),
        "keep_ratio": max(len(kept), 1) / n,
        "fingerprint": "",
        "relative_losses": torch.from_numpy(relative),
        "sample_losses": torch.from_numpy(relative * 2),
        "visits": torch.from_numpy(visits),
        "predicted": torch.from_numpy(rng.integers(-1, 3, n).astype(np.int32)),
        "targets": torch.from_numpy(rng.integers(0, 3, n)),
        "quota_labels": torch.from_numpy(rng.integers(0, 2, n)) if seed % 2 else None,
        "held_out": torch.from_numpy(np.sort(rng.permutation(n)[: n // 4])) if seed % 3 else None,
    }
    return PruneResult(**values | changes)


def expected_reason(result: PruneResult, i: int) -> str:
    """The reason of sample i, by the words of the documentation."""
    scores, kept = result.gate_logits.tolist(), set(result.indices.tolist())
    if result.config.get("balance") == "neighbours":
        scores = below_neighbours(scores)
    held = set() if result.held_out is None else set(result.held_out.tolist())
    quota = result.quota_labels

    def group(j: int) -> tuple[int, bool]:
        return (0 if quota is None else int(quota[j])), j in held

    def high_enough(members: list[int]) -> bool:
        k = sum(j in kept for j in members)
        return k > 0 and scores[i] >= sorted((scores[j] for j in members), reverse=True)[k - 1]

    everyone = list(range(len(scores)))
    if i in kept:
        return "kept"
    if scores[i] == -np.inf:
        return "unreadable"
    if result.visits[i] == 0:
        return "never seen"
    if high_enough([j for j in everyone if group(j) == group(i)]):
        return "drawn out"
    if high_enough(everyone):
        return "quota"
    losses = result.relative_losses.double().numpy()
    known = [losses[j] for j in kept if np.isfinite(losses[j])]
    if not known:
        return "low score"
    return "easy" if losses[i] <= np.median(known) else "does not fit"


def below_neighbours(scores: list[float]) -> list[float]:
    """Each score minus the mean of the known ones from two before to two after it."""
    above = []
    for i, score in enumerate(scores):
        near = [s for s in scores[max(i - 2, 0) : i + 3] if s > -1000]
        mean = round(sum(round(s * 1024) for s in near) / max(len(near), 1)) / 1024
        above.append(min(float(np.float32(score) - np.float32(mean)), 0.0))
    return above


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), balance=st.sampled_from(BALANCES))
def test_reasons_are_those_documented(seed: int, n: int, balance: str | None) -> None:
    result = random_result(seed, n, config={"balance": balance})
    found = [REASONS[code] for code in reason_codes(result)]
    assert found == [expected_reason(result, i) for i in range(n)]
    counts = reason_counts(result)
    assert counts == {name: found.count(name) for name in REASONS if name in found}
    for name in counts:
        listed = samples_of(result, name).tolist()
        assert sorted(listed) == [i for i in range(n) if found[i] == name]


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANINGS) == set(REASONS)
    with pytest.raises(ValueError, match=r"must be one of kept, .*; found 'hard'"):
        samples_of(random_result(1, 5), "hard")


def test_a_result_without_losses_says_low_score() -> None:
    scores = torch.tensor([1.0, 0.5, 0.1])
    result = PruneResult(torch.tensor([0]), scores, 1 / 3, "")
    assert reason_counts(result) == {"kept": 1, "low score": 2}


def test_an_empty_dataset_has_no_reasons() -> None:
    result = PruneResult(torch.zeros(0, dtype=torch.int64), torch.zeros(0), 1.0, "")
    assert reason_counts(result) == {}


# --- suspects


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(4, 40))
def test_suspects_are_those_documented(seed: int, n: int) -> None:
    result = random_result(seed, n)
    if not (result.predicted != -1).any():
        return
    relative = result.relative_losses.double()
    last = result.sample_losses.double()
    mean_last = last[last.isfinite()].mean() if last.isfinite().any() else torch.tensor(1.0)
    expected = {}
    for i in range(n):
        label, guess = int(result.targets[i]), int(result.predicted[i])
        same = [
            j
            for j in range(n)
            if result.targets[j] == label and result.predicted[j] != -1 and relative[j].isfinite()
        ]
        if i in same and guess != label and relative[i] > relative[same].mean() * (1 + 1e-12):
            expected[i] = float(relative[i] + last[i] / mean_last)
    found = result.suspects()
    assert set(found.indices.tolist()) == set(expected)
    doubts = [expected[i] for i in found.indices.tolist()]
    assert doubts == sorted(doubts, reverse=True)
    assert found.doubts.tolist() == pytest.approx(doubts, rel=1e-6)
    assert torch.equal(found.labels, result.targets[found.indices])
    assert torch.equal(found.predicted, result.predicted[found.indices].long())


def test_most_suspects_of_noisy_data_are_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    y = (x[:, :2].sum(1) > 0).long() + 2 * (x[:, 2] > 0).long()
    wrong = torch.rand(600, generator=generator) < 0.1
    y[wrong] = (y[wrong] + 1) % 4
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    result = fast_prune(model, (x, y), 0.7, 15, learning_rate=0.02, batch_size=32, progress=False)
    suspects = result.suspects().indices
    precision = wrong[suspects].double().mean()
    recall = wrong[suspects].sum() / wrong.sum()
    # By chance the precision is 0.1.
    assert precision > 0.6
    assert recall > 0.8


def test_suspects_take_the_classes_that_the_dataset_does_not_list() -> None:
    result = random_result(7, 40, predicted=torch.arange(40, dtype=torch.int32) % 3)
    without = PruneResult(**{**vars(result), "targets": None})
    for classes in (result.targets, result.targets.tolist(), result.targets.numpy().astype(float)):
        for expected, found in zip(result.suspects(), without.suspects(classes), strict=True):
            assert torch.equal(expected, found)
    large = result.targets + 1000  # no prediction is one of them
    assert (without.suspects(large).labels >= 1000).all()
    with pytest.raises(ValueError, match=r"targets must have shape \[40\].*found \[39\]"):
        without.suspects(result.targets[1:])
    with pytest.raises(TypeError, match="targets must hold integers"):
        without.suspects(["cat"] * 40)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("targets", "suspects need the class of every sample"),
        ("predicted", "suspects need the classes that the model predicted"),
        ("relative_losses", "suspects need the losses of the run"),
    ],
)
def test_suspects_say_what_they_lack(missing: str, message: str) -> None:
    result = random_result(7, 20, predicted=torch.zeros(20, dtype=torch.int32))
    with pytest.raises(ValueError, match=message):
        PruneResult(**{**vars(result), missing: None}).suspects()


# --- another ratio


def trained(
    seed: int, n: int = 90, ratio: float = 0.5, epochs: int = 4, **more: Any
) -> PruneResult:
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(n, generator=generator) * 3
    pruner = Pruner(n, ratio, epochs, seed=seed, **more)
    held = set(more.get("held_out", ()))
    while not pruner.finished:
        for ids in pruner.batches(16):
            noise = torch.rand(len(ids), generator=generator)
            pruner.weigh(difficulty[ids] * noise, ids)
        if held:
            ids = torch.tensor(sorted(held))
            pruner.observe(difficulty[ids], ids)
        pruner.step()
    return pruner.result()


VARIANTS: list[dict[str, Any]] = [
    {},
    {"method": "published"},
    {"held_out": [1, 5, 8, 20, 33, 71]},
    {"labels": torch.arange(90) % 3},
    {"labels": torch.arange(90) % 3, "held_out": range(0, 90, 9), "method": "published"},
]


@pytest.mark.parametrize("more", VARIANTS)
def test_another_ratio_is_exact_and_nested(more: dict[str, Any]) -> None:
    result = trained(3, **more)
    assert torch.equal(result.at(0.5).indices, result.indices)
    sets = []
    for ratio in (0.1, 0.3, 0.5, 0.62, 0.9, 1.0):
        other = result.at(ratio)
        assert len(other.indices) == keep_count(ratio, 90)
        assert (other.keep_ratio, other.run_keep_ratio) == (ratio, 0.5)
        sets.append(set(other.indices.tolist()))
        if "labels" in more:
            counts = torch.bincount(other.indices % 3, minlength=3)
            assert counts.max() - counts.min() <= 1
    if "labels" not in more:  # a rounded quota may fall as the ratio rises
        assert all(small <= large for small, large in pairwise(sets))
    own = set(result.indices.tolist())
    assert all(s <= own or own <= s for s in sets)


def test_another_ratio_of_a_ranked_method_keeps_the_highest_scores() -> None:
    result = trained(5, method="published", ratio=0.4)
    scores = result.gate_logits.double().numpy()
    for ratio in (0.1, 0.2, 0.3):
        count = keep_count(ratio, 90)
        expected = np.lexsort((np.arange(90), -scores))[:count]
        assert set(result.at(ratio).indices.tolist()) == set(expected.tolist())


def test_another_ratio_has_the_warnings_of_its_own_classes() -> None:
    labels = torch.where(torch.arange(600) < 570, 0, torch.where(torch.arange(600) < 588, 1, 2))
    run = trained(2, n=600, ratio=0.3, epochs=12, labels=labels)
    told = [small_classes(labels, run.indices, "class")]
    assert told[0].startswith("1 of 3 classes keep fewer than 5 samples, and 0 of them keep none")
    assert "only a higher keep ratio" in told[0]
    result = replace(run, targets=labels, warnings=["of the run", *told])
    assert result.at(1.0).warnings == ["of the run"]
    assert result.at(0.3).warnings == result.warnings
    with pytest.warns(PruningWarning, match="2 of 3 classes keep fewer than 5 samples"):
        few = result.at(0.05)
    assert few.warnings[0] == "of the run"
    assert len(few.warnings) == 2
    assert few.warnings[1].startswith("2 of 3 classes keep fewer than 5 samples")


def test_another_ratio_keeps_what_the_result_says_of_its_run() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 90)

    class Sized:
        def __init__(self) -> None:
            self.sizes = sizes

    run = trained(4, epochs=12)
    result = replace(
        run, selected_epoch=5, source=Sized(), saved={**run.saved, "bytes": 7, "bytes_read": 9}
    )
    for ratio in (0.2, 0.8):
        other = result.at(ratio)
        assert other.selected_epoch == 5
        assert other.saved["samples"] == 90 - len(other.indices)
        assert other.saved["bytes"] == sizes.sum() - sizes[other.indices.numpy()].sum()
        assert other.saved["seconds"] == run.saved["seconds"]
        assert "bytes" not in replace(result, source=None).at(ratio).saved
    assert replace(result, source=None).at(0.5).saved == result.saved


def test_another_ratio_never_keeps_unreadable_samples() -> None:
    pruner = Pruner(50, 0.5, 2, warmup_epochs=0)
    pruner.exclude([(3, "broken"), (30, "broken")])
    while not pruner.finished:
        for ids in pruner.batches(10):
            pruner.weigh(ids.double() / 10, ids)
        pruner.step()
    result = pruner.result()
    assert not {3, 30} & set(result.at(0.96).indices.tolist())
    with pytest.warns(
        UserWarning, match=r"expected 50 kept samples \(keep_ratio 1.0 of 50\); found"
    ):
        assert len(result.at(1.0).indices) == 48
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\]"):
        result.at(0.0)


def test_another_ratio_survives_a_file(tmp_path: Any) -> None:
    result = trained(9, held_out=[2, 4, 7, 40])
    result.save(tmp_path / "kept")
    again = PruneResult.load(tmp_path / "kept")
    for ratio in (0.2, 0.8):
        assert torch.equal(again.at(ratio).indices, result.at(ratio).indices)
    assert again.at(0.2).at(0.1).run_keep_ratio == 0.5
