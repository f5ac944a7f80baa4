"""Many ranks: W ranks with batches of B prune like one process with batches of W·B, bit for bit."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rank_cases import (
    Dataset,
    begin,
    by_logits,
    go_on,
    gradients,
    made_too_early,
    memory,
    plain,
    prune_all,
    read,
    refused,
    share_weights,
    traffic,
    with_head,
)
from support.ranks import Failed, Pool

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    ranks = Pool(4)
    yield ranks
    ranks.close()


def random_case(seed: int, world: int) -> dict[str, Any]:
    """Settings of a run, drawn by a seed."""
    draw = random.Random(seed)
    count = draw.choice([1, 2, 3, 5, 8, 17, 40, 101, 203])
    epochs = draw.randint(1, 5)
    keep_ratio = draw.choice([1.0, 0.7, 0.5, 0.31, 0.1])
    while int(keep_ratio * count + 0.5) < 1:
        keep_ratio = 1.0
    classes = draw.choice([1, 2, 3, 7])
    labels = {
        "none": None,
        "classes": [index % classes for index in range(count)],
        "one on one rank": [int(index == count - 1) for index in range(count)],
    }[draw.choice(["none", "none", "classes", "one on one rank"])]
    held_out = draw.choice([None, None, list(range(0, count, 5))])
    if held_out is not None and len(held_out) >= count:
        held_out = None
    few = max(1, count // 20)
    case: dict[str, Any] = {
        "num_samples": count,
        "seed": seed,
        "ties": draw.random() < 0.5,
        "infinite": draw.sample(range(count), min(count, draw.choice([0, 0, 2]))),
        "bad": draw.sample(range(count), draw.choice([0, 0, 1, few])),
        "bad_from": draw.randrange(epochs),
        "drop_last": draw.random() < 0.15,
        "block_size": draw.choice([None, None, 3]),
        "held_out": held_out,
        "global_batch": world * draw.choice([1, 2, 3, 5, 16]),
        "settings": {
            "keep_ratio": keep_ratio,
            "epochs": epochs,
            "warmup_epochs": draw.choice([None, 0]),
            "method": draw.choice(["sampled", "published"]),
            "seed": draw.randrange(100),
            "labels": labels,
            "held_out": held_out,
            "explore": draw.choice([0.0, 0.02, 0.3]),
            "normalize_loss": draw.random() < 0.3,
            "track_losses": draw.random() < 0.7,
        },
    }
    settings = case["settings"]
    if labels is not None and settings["method"] == "sampled" and settings["track_losses"]:
        settings["balance"] = draw.choice(["class", "floor"])
    return case


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_2_ranks_prune_like_one_process(pool: Pool, world: int) -> None:
    cases = [random_case(1000 * world + number, world) for number in range(60 // world + 20)]
    expected = prune_all(None, cases)
    assert (
        sum(isinstance(outcome[0], list) for outcome in expected) > len(cases) // 2
    )  # and not all errors
    for rank, found in enumerate(pool.run(prune_all, world, cases)):
        for case, one, other in zip(cases, expected, found, strict=True):
            assert one == other, (rank, case)


@pytest.mark.parametrize(("count", "first", "size"), [(47, 24, 12), (39, 26, 4), (50, 20, 8)])
def test_batches_of_another_size_before_leave_no_factor(
    pool: Pool, count: int, first: int, size: int
) -> None:
    each = pool.run(share_weights, 2, count, first, size)
    for shares in zip(*each, strict=True):
        total = sum(samples for samples, factor in shares if factor)
        for samples, factor in shares:
            assert factor in (0, pytest.approx(2 * samples / total))


@pytest.mark.parametrize("method", ["sampled", "published"])
@pytest.mark.parametrize("shape", [(5,), (5, 7)])
def test_2_ranks_prune_by_logits_like_one_process(
    pool: Pool, shape: tuple[int, ...], method: str
) -> None:
    settings = {"keep_ratio": 0.4, "epochs": 4, "method": method, "normalize_loss": True}
    expected = by_logits(None, settings, shape, 24)
    assert pool.run(by_logits, 3, settings, shape, 24) == [expected] * 3


@pytest.mark.parametrize("way", ["loss", "linear_loss", "weigh", "added", "equal weights"])
@pytest.mark.parametrize(("count", "size"), [(41, 16), (25, 12), (3, 16), (9, 4), (10, 4)])
def test_3_the_loss_is_the_mean_over_the_global_batch(
    pool: Pool, count: int, size: int, way: str
) -> None:
    expected = gradients(None, count, size, way)
    for found in pool.run(gradients, 4, count, size, way):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_3_a_head_that_is_whole_after_its_forward_has_the_gradients_of_one_process(
    pool: Pool, fused: bool
) -> None:
    expected = with_head(None, "alone")
    for found in pool.run(with_head, 2, "FSDP2, head in the root", fused):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
    for found in pool.run(with_head, 2, "FSDP2, head apart", False):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("way", "fused", "message"),
    [
        ("FSDP2, head apart", True, "linear_weight must be whole.*found a DTensor.*Pruner.loss"),
        ("FSDP1", True, "linear_weight must be whole.*found a parameter that FSDP shards"),
        ("FSDP1, own parameters", True, "found a parameter that FSDP shards"),
        ("DTensor", False, r"logits must be a plain tensor; .* Pass logits\.full_tensor\(\)"),
    ],
)
def test_a_sharded_tensor_is_refused(way: str, fused: bool, message: str) -> None:
    ranks = Pool(2)
    try:
        ranks.begin(with_head, 2, way, fused)
        for found in ranks.results():
            assert isinstance(found, Failed)
            assert found.kind == "TypeError", found.trace
            assert re.search(message, found.message)
    finally:
        ranks.close()


def test_4_nothing_travels_in_a_step_and_15_bytes_a_visit_at_the_end(pool: Pool) -> None:
    case = random_case(1, 2) | {"num_samples": 5000, "infinite": [], "bad": []}
    case["settings"] = {"keep_ratio": 0.4, "epochs": 4}
    for found in pool.run(traffic, 4, case, 32):
        for epoch in found:
            assert epoch["steps"] == 0
            assert 12 * epoch["visits"] <= epoch["end"] <= 15 * epoch["visits"]


def test_5_a_rank_holds_whole_gates_and_16_bytes_for_each_of_its_visits(pool: Pool) -> None:
    for gates, records, visits in pool.run(memory, 2, 4000, 64):
        assert gates == 19 * 4000 + 10  # the record has a place for ids that are out of range
        assert visits == 2000
        assert records == 16 * visits


REFUSED = {
    "seed": "ValueError: all ranks must have the same seed; found 0 on rank 0 and 1 on rank 1",
    "keep_ratio": "ValueError: .* same keep ratio; found 0.5 on rank 0 and 0.6 on rank 1",
    "num_samples": "ValueError: .* same num samples; found 40 on rank 0 and 41 on rank 1",
    "labels": "ValueError: .* same labels and held out samples; found",
    "fingerprint": "ValueError: .* same fingerprint; found '.*' on rank 0 and '.*' on rank 1",
    "batch_size": "ValueError: .* same batch size; found 8 on rank 0 and 10 on rank 1",
    "validation_loss": "ValueError: .* same validation loss; found 0.0 on rank 0 and 0.1 on rank 1",
    "calls": "ValueError: .* calls of loss and observe; found 1 on rank 0 and 2 on rank 1",
    "order of calls": "ValueError: all ranks must call loss .* and observe in the same order",
    "other call": "RankError: .* same calls; found .*(step|state_dict).* and (step|state_dict)",
    "same sample": "ValueError: .* visited on one rank in an epoch; found sample 30 on two ranks",
    "single samples": r"ValueError: .* use PrunedBatchSampler\(pruner, batch_size\)",
    "destroyed": "RuntimeError: the process group of this run was destroyed before the run ended",
}


@pytest.mark.parametrize("what", REFUSED)
def test_6_ranks_that_do_not_do_the_same_are_refused(what: str) -> None:
    ranks = Pool(2)
    try:
        ranks.begin(refused, 2, what)
        for result in ranks.results():
            assert isinstance(result, Failed)
            assert re.match(REFUSED[what], f"{result.kind}: {result.message}"), result.trace
    finally:
        ranks.close()


def test_6_a_pruner_made_before_the_process_group_is_refused(tmp_path: Path) -> None:
    ranks = Pool(2, start=False)
    try:
        ranks.begin_each(made_too_early, [(str(tmp_path / "store"), rank) for rank in range(2)])
        for result in ranks.results():
            assert isinstance(result, Failed)
            assert result.kind == "RuntimeError"
            assert "a pruner that was made after torch.distributed was" in result.message
    finally:
        ranks.close()


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_7_a_state_goes_on_in_mid_epoch_at_another_number_of_ranks(
    pool: Pool, batches: int
) -> None:
    expected = go_on(None, 203, 24, None)
    states = pool.run(begin, 4, 203, 24, batches)
    assert plain(states) == [plain(begin(None, 203, 24, batches))] * 4
    assert go_on(None, 203, 24, states[0]) == expected
    for world in (2, 3):
        assert pool.run(go_on, world, 203, 24, states[0]) == [expected] * world


@pytest.mark.parametrize(
    ("kind", "count", "block_size"),
    [
        *(("torch", 3, None), ("torch", 75, None), ("torch", 75, 10), ("workers", 3, 10)),
        *(("own", 3, None), ("own", 75, None), ("dali", 3, None), ("dali", 75, 10)),
    ],
)
def test_11_a_rank_reads_its_share_and_nothing_else(
    pool: Pool, kind: str, count: int, block_size: int | None
) -> None:
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 18, 18, 3), generator=generator).to(torch.uint8)
        data: Any = (images.numpy(), np.arange(count) % 3)
    else:
        data = Dataset(count)
    settings = {"batch_size": 4, "block_size": block_size}
    ranks = pool.run(read, 4, data, kind, settings)
    for epoch in zip(*ranks, strict=True):
        shares, reads = [share for share, _, _ in epoch], epoch[0][1]
        assert all(others == reads for _, others, _ in epoch)
        assert len({len(share) for share in shares}) == 1
        batches = [set().union(*parts) for parts in zip(*shares, strict=True)]
        assert sorted(index for batch in batches for index in batch) == reads
        if len(reads) % 16 in (0, *range(4, 16)) and kind in ("torch", "own"):  # none stands in
            total = sum(counts for _, _, counts in epoch)
            assert np.flatnonzero(total).tolist() == reads
            assert total.max() == 1
