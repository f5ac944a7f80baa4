"""The oldest samples, against a full sort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from adapruner import ops
from adapruner.ops import reference
from adapruner.pruning import bitmask


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


AGES = {
    "few": lambda random, n: random.integers(0, 4, n),
    "all": lambda random, n: random.integers(0, 256, n),
    "equal": lambda random, n: np.full(n, 3),
    "never": lambda random, n: np.full(n, ops.NEVER_VISITED),
}


@pytest.mark.parametrize("ages", AGES)
@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 63, 64, 65, 1000, 5003])
def test_oldest_are_those_of_a_sort(num_samples: int, ages: str) -> None:
    random = np.random.default_rng(num_samples)
    age = AGES[ages](random, num_samples).astype(np.uint8)
    for share in (0.0, 0.2, 1.0):
        flags = random.random(num_samples) < share
        candidates = np.flatnonzero(flags).tolist()
        for count in {0, 1, 2, len(candidates) // 3, len(candidates), len(candidates) + 5}:
            for key in (0, 2**63 - 1):
                expected = reference.oldest(candidates, age.tolist(), count, key)
                mask = ops.oldest_mask(bitmask.pack(flags), torch.from_numpy(age), count, key)
                assert bitmask.indices(mask).tolist() == expected


def hashes(num_samples: int, key: int) -> np.ndarray:
    x = np.arange(num_samples, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@pytest.mark.parametrize("count", [100, 5000])
def test_keys_by_which_the_share_is_far_from_the_expected_one(count: int) -> None:
    num_samples, far = 10_000, 0
    age = torch.zeros(num_samples, dtype=torch.uint8)
    for key in range(1500):
        hash_ = hashes(num_samples, key)
        largest = np.partition(hash_, count - 1)[count - 1]
        share = count / num_samples
        deviation = np.sqrt(share * (1 - share) / num_samples)
        far += abs(largest / 2**64 - share) > 3.1 * deviation
        mask = ops.oldest_mask(bitmask.full(num_samples), age, count, key)
        assert torch.equal(mask, bitmask.pack(hash_ <= largest))
    assert far > 0


def test_spare_bits_are_no_candidates() -> None:
    mask = ops.oldest_mask(
        torch.full((2,), 255, dtype=torch.uint8), torch.zeros(11, dtype=torch.uint8), 16, 0
    )
    assert torch.equal(mask, bitmask.full(11))


def test_same_mask_at_any_number_of_threads() -> None:
    random = np.random.default_rng(0)
    num_samples = 400_003
    age = torch.from_numpy(random.integers(0, 3, num_samples).astype(np.uint8))
    flags = random.random(num_samples) < 0.4
    found = set()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.add(ops.oldest_mask(bitmask.pack(flags), age, 70_000, 5).numpy().tobytes())
    [mask] = found
    chosen = bitmask.unpack(torch.tensor(list(mask), dtype=torch.uint8), num_samples)
    assert chosen.sum() == 70_000
    assert (age.numpy()[chosen] == 2).sum() == min(70_000, (age.numpy()[flags] == 2).sum())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((bitmask.full(9), torch.zeros(9), 1, 0), TypeError, "age must be uint8; found Float"),
        (
            (bitmask.full(9), torch.zeros(3, 3, dtype=torch.uint8), 1, 0),
            ValueError,
            r"age must have one dimension \[N\]; found shape \[3, 3\]",
        ),
        (
            (bitmask.full(9), torch.zeros(17, dtype=torch.uint8), 1, 0),
            ValueError,
            r"candidates must have shape \[3\], a bit for each of 17 samples; found shape \[2\]",
        ),
        (
            (bitmask.full(9), torch.zeros(9, dtype=torch.uint8), -1, 0),
            ValueError,
            "count must be at least 0; found -1",
        ),
    ],
)
def test_arguments_that_are_refused(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        ops.oldest_mask(*arguments)
