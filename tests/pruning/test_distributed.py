"""Many ranks: W ranks with batches of B prune like one process with batches of W·B, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.rank_cases import prune_all, traffic
from support.ranks import Pool

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
    return {
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


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_2_ranks_prune_like_one_process(pool: Pool, world: int) -> None:
    cases = [random_case(1000 * world + number, world) for number in range(60)]
    expected = prune_all(None, cases)
    assert sum(isinstance(outcome[0], list) for outcome in expected) > 40  # and not all errors
    for rank, found in enumerate(pool.run(prune_all, world, cases)):
        for case, one, other in zip(cases, expected, found, strict=True):
            assert one == other, (rank, case)


def test_4_nothing_travels_in_a_step_and_15_bytes_a_visit_at_the_end(pool: Pool) -> None:
    case = random_case(1, 2) | {"num_samples": 5000, "infinite": [], "bad": []}
    case["settings"] = {"keep_ratio": 0.4, "epochs": 4}
    for found in pool.run(traffic, 4, case, 32):
        for epoch in found:
            assert epoch["steps"] == 0
            assert 12 * epoch["visits"] <= epoch["end"] <= 15 * epoch["visits"]
