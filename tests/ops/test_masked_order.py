"""The keyed permutation of masked_order: exact, one of all of them, and well mixed."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.processes import run_python
from torch import Tensor

from adapruner import ops
from adapruner.ops import reference
from adapruner.pruning import bitmask

AWKWARD = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 97, 1023, 1024, 1025, 1031, 4095, 4097]


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def whole(num_samples: int, key: int) -> np.ndarray:
    return ops.masked_order(bitmask.full(num_samples), num_samples, key, 0, num_samples)[0].numpy()


def random_mask(num_samples: int, share: float) -> tuple[np.ndarray, Tensor]:
    flags = np.random.default_rng(num_samples).random(num_samples) < share
    return flags, bitmask.pack(flags)


def normal_score(observed: np.ndarray, expected: np.ndarray | float, freedom: int) -> float:
    """How many standard deviations chi-square is above its mean."""
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    return (chi_square - freedom) / math.sqrt(2 * freedom)


# --- exactness


@pytest.mark.parametrize("num_samples", AWKWARD)
def test_order_is_that_of_the_reference(num_samples: int) -> None:
    for key, share in itertools.product((0, 1, 2**63 - 1, 0x1234567), (1.0, 0.4, 0.05)):
        flags, mask = random_mask(num_samples, share)
        order, position = ops.masked_order(mask, num_samples, key, 0, num_samples)
        assert order.dtype == torch.int64
        assert order.tolist() == reference.masked_order(flags.tolist(), key)
        assert position == num_samples


@pytest.mark.parametrize("num_samples", [*range(1, 300), *AWKWARD, 65535, 65537, 1_000_003])
def test_every_sample_comes_once(num_samples: int) -> None:
    assert (np.sort(whole(num_samples, num_samples)) == np.arange(num_samples)).all()


@pytest.mark.parametrize("num_samples", [10**9, 2**31 + 11, 2**32 - 1, 2**33 + 3])
def test_samples_beyond_32_bits(num_samples: int) -> None:
    # Zeros that no memory is behind, but for the bytes that are written.
    mask = torch.from_numpy(np.zeros(-(-num_samples // 8), dtype=np.uint8))
    pi = reference.permutation(num_samples, 77)
    position = num_samples - 3000
    expected = [pi(place) for place in range(position, num_samples)][::7]
    for index in expected:
        mask[index // 8] |= 1 << index % 8
    order, after = ops.masked_order(mask, num_samples, 77, position, 10**6)
    assert order.tolist() == expected
    assert after == num_samples


def test_order_may_be_cut_anywhere() -> None:
    flags, mask = random_mask(5000, 0.3)
    expected = whole(5000, 9)
    expected = expected[flags[expected]].tolist()
    for count in (1, 7, 127, 128, 129, 1400, 5000):
        met, position = [], 0
        while position < 5000:
            indices, position = ops.masked_order(mask, 5000, 9, position, count)
            assert len(indices) == min(count, len(expected) - len(met))
            met += indices.tolist()
            if len(indices):
                # The position is that right after the last sample.
                assert whole(5000, 9)[position - 1] == met[-1] or position == 5000
        assert met == expected


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_same_order_at_any_number_of_threads(share: float) -> None:
    num_samples = 300_001
    _, mask = random_mask(num_samples, share)
    found = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        order, position = ops.masked_order(mask, num_samples, 3, 17, 200_000)
        found.append((order.numpy().tobytes(), position))
    assert len(set(found)) == 1


def orders_digest() -> str:
    """SHA-256 over orders of every sort of size, in this process."""
    digest = hashlib.sha256()
    for num_samples in (*AWKWARD, 100_003):
        _, mask = random_mask(num_samples, 0.5)
        digest.update(whole(num_samples, 1).tobytes())
        digest.update(ops.masked_order(mask, num_samples, 2, 0, 1000)[0].numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("isa", ["baseline", "v3"])
def test_every_instruction_set_gives_the_same_order(isa: str) -> None:
    code = "import test_masked_order; print(test_masked_order.orders_digest())"
    found = run_python(code, __file__, ADAPRUNER_ISA=isa)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == orders_digest()


def test_nothing_to_order() -> None:
    nothing = torch.zeros(0, dtype=torch.uint8)
    for arguments in ((nothing, 0, 5, 0, 10), (bitmask.full(9), 9, 5, 9, 10)):
        order, position = ops.masked_order(*arguments)
        assert order.tolist() == []
        assert position == arguments[1]
    order, position = ops.masked_order(bitmask.full(9), 9, 5, 4, 0)
    assert (order.tolist(), position) == ([], 4)
    assert ops.masked_order(torch.zeros(2, dtype=torch.uint8), 9, 5, 0, 9)[1] == 9


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((bitmask.full(9), 17, 0, 0, 1), ValueError, r"mask must have shape \[3\].*found.*\[2\]"),
        ((bitmask.full(9).int(), 9, 0, 0, 1), TypeError, "mask must be uint8; found Int"),
        ((bitmask.full(9), -1, 0, 0, 1), ValueError, r"num_samples must be in .* found -1"),
        ((bitmask.full(9), 9, 0, -1, 1), ValueError, r"position must be in \[0, 9\].*found -1"),
        ((bitmask.full(9), 9, 0, 10, 1), ValueError, r"position must be in \[0, 9\].*found 10"),
        ((bitmask.full(9), 9, 0, 0, -1), ValueError, "count must be at least 0; found -1"),
        ((bitmask.full(9).to("meta"), 9, 0, 0, 1), ValueError, "be on the CPU; found meta"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        ops.masked_order(*arguments)


@pytest.mark.cuda
def test_a_mask_on_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="mask must be on the CPU; found cuda:0"):
        ops.masked_order(bitmask.full(9).cuda(), 9, 0, 0, 1)


# --- mixing. The scores of a good permutation are nearly standard normal. Keys are fixed, so the
# outcome of a test never changes.


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 6])
def test_all_orders_are_equally_likely(num_samples: int) -> None:
    orders = list(itertools.permutations(range(num_samples)))
    trials = 30 * len(orders) + 1000
    number = {order: place for place, order in enumerate(orders)}
    met = [number[tuple(whole(num_samples, key).tolist())] for key in range(trials)]
    counts = np.bincount(met, minlength=len(orders))
    assert counts.min() > 0
    if num_samples > 1:
        assert normal_score(counts, trials / len(orders), len(orders) - 1) < 4


@pytest.mark.parametrize("num_samples", [7, 16, 17, 31, 33, 64, 101])
def test_places_and_neighbours_are_equally_likely(num_samples: int) -> None:
    n, trials = num_samples, 4000
    orders = np.stack([whole(n, key) for key in range(trials)])
    places = np.stack([np.bincount(orders[:, i], minlength=n) for i in range(n)])
    assert abs(normal_score(places, trials / n, (n - 1) ** 2)) < 4
    apart = ~np.eye(n, dtype=bool)
    for lag in (1, 2, 5):
        pairs = orders[:, :-lag] * n + orders[:, lag:]
        counts = np.bincount(pairs.ravel(), minlength=n * n).reshape(n, n)
        assert counts[~apart].sum() == 0
        expected = trials * (n - lag) / (n * (n - 1))
        assert abs(normal_score(counts[apart], expected, n * (n - 1))) < 4
    inversions = sum((orders[:, i, None] > orders[:, i + 1 :]).sum() for i in range(n - 1))
    variance = trials * n * (n - 1) * (2 * n + 5) / 72
    assert abs(inversions - trials * n * (n - 1) / 4) < 4 * math.sqrt(variance)


@pytest.mark.parametrize("num_samples", [1025, 4095, 4097, 65537, 1_000_003])
def test_places_of_large_orders_know_nothing_of_one_another(num_samples: int) -> None:
    # Places next to one another, and those in the same row or column of the permutation's grid.
    side = math.isqrt(num_samples - 1) + 1
    trials = 200 if num_samples < 10_000 else 8
    for lag in (1, 2, side, side + side % 2, 3 * side + 1):
        table, products, total = np.zeros((16, 16)), 0.0, 0
        for key in range(trials):
            share = whole(num_samples, key) / num_samples
            first, second = share[:-lag], share[lag:]
            table += np.histogram2d(first, second, bins=16, range=((0, 1), (0, 1)))[0]
            products += ((first - 0.5) * (second - 0.5)).sum()
            total += len(first)
        edges = np.ceil(np.arange(17) * num_samples / 16)
        size = np.diff(edges)
        pairs = np.outer(size, size) - np.diag(size)
        expected = total * pairs / (num_samples * (num_samples - 1))
        assert abs(normal_score(table, expected, 255)) < 4.5
        # Two different samples are correlated by −1/(N − 1).
        score = (products + total / 12 / (num_samples - 1)) * 12 / math.sqrt(total)
        assert abs(score) < 4.5


@pytest.mark.parametrize("num_samples", [33, 1025, 100_003])
def test_adjacent_keys_have_nothing_in_common(num_samples: int) -> None:
    # Two random permutations agree in one place on average, with a variance of one.
    keys = [0, 1, 2, 3, 4, 2**32, 2**32 + 1, 2**62, 2**62 + 1, *range(1000, 1100)]
    orders = [whole(num_samples, key) for key in keys]
    agreed = [(a == b).sum() for a, b in itertools.pairwise(orders)]
    assert abs(np.mean(agreed) - 1) < 4 / math.sqrt(len(agreed))
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(orders)]
    assert np.abs(correlation).max() < 4.5 / math.sqrt(num_samples - 1)


@pytest.mark.parametrize("num_samples", [6, 9, 25, 1025, 99_999])
def test_odd_and_even_permutations_both_come(num_samples: int) -> None:
    def is_odd(order: np.ndarray) -> bool:
        unseen, cycles = np.ones(len(order), dtype=bool), 0
        for start in range(len(order)):
            cycles += unseen[start]
            while unseen[start]:
                unseen[start], start = False, order[start]
        return (len(order) - cycles) % 2 == 1

    trials = 400 if num_samples < 100 else 12
    odd = sum(is_odd(whole(num_samples, key)) for key in range(trials))
    assert abs(odd - trials / 2) < 2 * math.sqrt(trials)
