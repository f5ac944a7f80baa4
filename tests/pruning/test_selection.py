"""Exact counts, quotas and top-k at every ratio, and the exploration of pruned samples."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training_data import gates_with, random_logits

from adapruner.ops import reference
from adapruner.pruning import bitmask
from adapruner.pruning.quotas import largest_remainder
from adapruner.pruning.selection import Selection, check_keep_ratio, keep_count

RATIOS = (1.0, 0.95, 0.8, 0.55, 0.5, 0.31, 0.3)


# --- counts


def half_up(product: float) -> int:
    return math.floor(Fraction(product) + Fraction(1, 2))


def test_keep_count_is_the_float64_product_rounded_half_up() -> None:
    for thousandth in range(1, 1001):
        ratio = thousandth / 1000
        for num_samples in (1, 2, 7, 10, 50, 101, 1005, 49_999, 1_281_167, 2**31 + 1):
            count = keep_count(ratio, num_samples)
            assert count == half_up(ratio * num_samples)
            assert 0 <= count <= num_samples


def test_keep_count_does_not_see_the_digits_that_float64_drops() -> None:
    # 0.7 is a little less than 7/10, so the exact product with 15 is below 10½.
    assert Fraction(0.7) * 15 < Fraction(21, 2)
    assert keep_count(0.7, 15) == 11
    # The other way round: the product is below 14½.
    assert keep_count(0.29, 50) == 14


@given(st.floats(1e-9, 1.0), st.integers(1, 2**40))
def test_keep_count_of_any_ratio(ratio: float, num_samples: int) -> None:
    count = keep_count(ratio, num_samples)
    if ratio * num_samples != 0.49999999999999994:  # the only product whose sum with ½ is rounded
        assert count == half_up(ratio * num_samples)
    assert 0 <= count <= num_samples


@pytest.mark.parametrize(
    ("ratio", "error", "message"),
    [
        (0, ValueError, r"must be in \(0, 1\].*found 0"),
        (0.0, ValueError, r"must be in \(0, 1\].*found 0.0"),
        (-0.3, ValueError, "found -0.3"),
        (1.0000001, ValueError, "found 1.0000001"),
        (70, ValueError, "found 70"),
        (math.nan, ValueError, "found nan"),
        (math.inf, ValueError, "found inf"),
        (-math.inf, ValueError, "found -inf"),
        (True, TypeError, "must be a number.*found True"),
        ("0.7", TypeError, "must be a number.*found '0.7'"),
        (None, TypeError, "must be a number.*found None"),
        ([0.7], TypeError, r"must be a number.*found \[0.7\]"),
        (0.004, ValueError, "must keep at least one sample; found 0.004 of 100 samples"),
    ],
)
def test_keep_ratios_that_are_none(ratio: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_keep_ratio(ratio, 100)


@pytest.mark.parametrize("ratio", [1, 1.0, 0.005, np.float32(0.5), np.float64(0.7)])
def test_keep_ratios_that_are_one(ratio: float) -> None:
    checked = check_keep_ratio(ratio, 100)
    assert type(checked) is float
    assert checked == ratio


# --- seats


def closest_in_whole_numbers(total: int, sizes: tuple[int, ...]) -> list[int]:
    """The division of ``total`` that is nearest to the exact shares.

    Of equal divisions, the one that gives most to the lower indices. The method of the largest
    remainders gives the same division.
    """
    shares = [Fraction(total * size, sum(sizes)) for size in sizes]
    ways = itertools.product(*(range(size + 1) for size in sizes))
    valid = [way for way in ways if sum(way) == total]
    nearest = min(sum((w - s) ** 2 for w, s in zip(way, shares, strict=True)) for way in valid)
    return list(
        max(
            w for w in valid if sum((a - s) ** 2 for a, s in zip(w, shares, strict=True)) == nearest
        )
    )


def test_largest_remainder_is_the_closest_deal() -> None:
    for sizes in itertools.chain(
        itertools.product(range(4), repeat=3),
        itertools.product((1, 2, 5), repeat=4),
        [(7,), (0, 3)],
    ):
        for total in range(sum(sizes) + 1):
            if sum(sizes):
                array = np.array(sizes)
                dealt = largest_remainder(total, array, array)
                assert dealt.dtype == np.int64
                assert dealt.tolist() == closest_in_whole_numbers(total, sizes), (total, sizes)


def test_equal_remainders_go_to_the_lower_index() -> None:
    sizes = np.array([5, 5, 5, 5])
    assert largest_remainder(10, sizes, sizes).tolist() == [3, 3, 2, 2]
    # An exact tie. float64 rounds these numbers to the same values as their neighbours.
    large = np.array([2**60, 2**60, 2**60 - 1])
    assert largest_remainder(1, large, large).tolist() == [1, 0, 0]
    assert largest_remainder(2, large, large).tolist() == [1, 1, 0]


def dealt_in_rounds(total: int, sizes: list[int], available: list[int]) -> list[int]:
    """Largest remainders with limits, in exact fractions: rounds among shares that are not full."""
    dealt = [0] * len(sizes)
    while sum(dealt) < total:
        left = total - sum(dealt)
        open_ = [j for j in range(len(sizes)) if dealt[j] < available[j]]
        share = {j: Fraction(left * sizes[j], sum(sizes[o] for o in open_)) for j in open_}
        seats = {j: math.floor(share[j]) for j in open_}
        ranked = sorted(open_, key=lambda j: (seats[j] - share[j], j))
        for j in ranked[: left - sum(seats.values())]:
            seats[j] += 1
        for j in open_:
            dealt[j] = min(dealt[j] + seats[j], available[j])
    return dealt


def test_largest_remainder_with_limits() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        sizes = random.integers(0, 30, random.integers(1, 7))
        available = np.minimum(random.integers(0, 30, len(sizes)), sizes)
        for total in {0, int(available.sum()) // 2, int(available.sum())}:
            dealt = largest_remainder(total, sizes, available)
            assert dealt.sum() == total
            assert (dealt <= available).all()
            assert dealt.tolist() == dealt_in_rounds(total, sizes.tolist(), available.tolist())


def test_what_a_full_one_cannot_take_goes_on_in_proportion() -> None:
    sizes = np.array([100, 60, 40])
    # The shares are 50, 30 and 20. The first can take 20, so its other 30 are divided as 18 and 12.
    assert largest_remainder(100, sizes, np.array([20, 60, 40])).tolist() == [20, 48, 32]


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least 9 readable samples, .* found 8"):
        largest_remainder(9, np.array([5, 5]), np.array([4, 4]))


# --- selections


def test_selection_is_the_exact_top_k_at_every_ratio() -> None:
    logits = random_logits(203)
    gates, selection = gates_with(logits, 0.3), Selection(203, 0.3)
    assert selection.kept_count == 203
    for slope, ratio in zip(np.linspace(0.1, 5, len(RATIOS)), RATIOS, strict=True):
        selection.select(gates, ratio, float(slope))
        expected = reference.largest(logits, keep_count(ratio, 203))
        assert bitmask.indices(selection.kept).tolist() == expected.tolist()
        assert selection.kept_count == keep_count(ratio, 203)
        assert torch.equal(selection.read, selection.kept)
        # The pass computes s̄ and ρ at the new slope.
        assert gates.real("slope") == slope
        s = torch.sigmoid(slope * logits.double())
        assert gates.mean_gate == pytest.approx(s.mean().item(), abs=1e-9)
        assert gates.open_share == pytest.approx((logits > 0).double().mean().item())


def test_unreadable_samples_are_never_kept_and_counted_out() -> None:
    logits = random_logits(100)
    logits[::4] = -torch.inf
    gates, selection = gates_with(logits, 0.5), Selection(100, 0.5)
    readable = set(torch.nonzero(logits > -torch.inf).flatten().tolist())
    for ratio in (1.0, 0.9, 0.76, 0.75, 0.6, 0.5):
        selection.select(gates, ratio, 1.0)
        kept = bitmask.indices(selection.kept).tolist()
        # Before the end, fewer samples than scheduled are allowed; at the end they are not.
        assert len(kept) == min(keep_count(ratio, 100), 75)
        assert set(kept) <= readable
    assert gates.integer("population") == 75


@pytest.mark.parametrize("balanced", [False, True])
def test_a_few_unreadable_samples_end_no_run_and_many_do(balanced: bool) -> None:
    logits = random_logits(40)
    logits[:12] = -torch.inf
    gates = gates_with(logits, 0.7)
    labels = torch.arange(40) % 4 if balanced else None
    selection = Selection(40, 0.7, labels=labels)
    selection.select(gates, 1.0, 1.0)
    assert selection.kept_count == 28
    for missing in (1, 2):
        gates.exclude(torch.tensor([20 + missing]))
        selection.select(gates, 0.7, 1.0)
        kept = bitmask.unpack(selection.kept, 40)
        assert np.array_equal(kept, (gates.logits != -torch.inf).numpy())
    gates.exclude(torch.tensor([30]))
    with pytest.raises(
        ValueError,
        match=r"keep_ratio 0.7 of 40 samples needs 28 readable samples; found 25",
    ):
        selection.select(gates, 1.0, 1.0)


# --- classes and the held-out part


def test_class_quotas_are_filled_exactly_at_every_ratio() -> None:
    labels = torch.from_numpy(
        np.random.default_rng(1).choice(5, 307, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    )
    logits, sizes = random_logits(307), np.bincount(labels, minlength=5)
    gates, selection = gates_with(logits, 0.3), Selection(307, 0.3, labels=labels)
    for ratio in RATIOS:
        selection.select(gates, ratio, 2.0)
        quotas = dealt_in_rounds(keep_count(ratio, 307), sizes.tolist(), sizes.tolist())
        expected = reference.segmented_topk(logits, labels, quotas)
        assert bitmask.indices(selection.kept).tolist() == expected.tolist()


@pytest.mark.parametrize("held_out_share", [0.05, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_classes_and_the_held_out_part_keep_their_shares_at_every_ratio(
    seed: int, held_out_share: float
) -> None:
    random = np.random.default_rng(seed)
    num_samples = 500
    labels = random.choice(10, num_samples)
    held_out = random.choice(num_samples, int(held_out_share * num_samples), replace=False)
    is_held_out = np.isin(np.arange(num_samples), held_out)
    logits = random_logits(num_samples, seed)
    gates = gates_with(logits, 0.3)
    selection = Selection(
        num_samples, 0.3, labels=torch.from_numpy(labels), held_out=torch.from_numpy(held_out)
    )
    sizes = np.bincount(labels, minlength=10).tolist()
    for ratio in (*RATIOS, 0.999, 0.7):
        selection.select(gates, ratio, 2.0)
        kept = bitmask.unpack(selection.kept, num_samples)
        count = keep_count(ratio, num_samples)
        assert kept.sum() == count
        assert kept[is_held_out].sum() == keep_count(ratio, len(held_out))
        # A class has its share, whether its samples are held out or not.
        assert np.bincount(labels[kept], minlength=10).tolist() == dealt_in_rounds(
            count, sizes, sizes
        )
        for cell in ((labels == c) & (is_held_out == h) for c in range(10) for h in (0, 1)):
            members = torch.from_numpy(np.flatnonzero(cell))
            chosen = members[reference.largest(logits[members], int(kept[cell].sum()))]
            assert np.flatnonzero(kept & cell).tolist() == chosen.tolist()
            assert abs(kept[cell].sum() - ratio * cell.sum()) < 2
        assert not (bitmask.unpack(selection.read, num_samples) & is_held_out).any()


def test_held_out_samples_compete_among_themselves() -> None:
    logits = torch.linspace(1, -1, 200)
    held_out = torch.arange(100, 200, 2)  # all of them below the median
    gates, selection = gates_with(logits, 0.3), Selection(200, 0.3, held_out=held_out)
    selection.select(gates, 0.3, 1.0)
    kept = bitmask.indices(selection.kept)
    of_held_out = kept[torch.isin(kept, held_out)]
    assert of_held_out.tolist() == held_out[:15].tolist()
    assert kept[~torch.isin(kept, held_out)].tolist() == list(range(45))


def test_quotas_give_way_where_samples_cannot_be_read() -> None:
    # Nearly all training samples of class 0 are unreadable. Held-out samples take their places.
    labels = torch.arange(90) % 3
    held_out = torch.arange(0, 90, 10)
    logits = torch.zeros(90)
    training = ~torch.isin(torch.arange(90), held_out)
    logits[(labels == 0) & training] = -torch.inf
    gates = gates_with(logits, 0.6)
    selection = Selection(90, 0.6, labels=labels, held_out=held_out)
    for ratio in (1.0, 0.7, 0.6):
        selection.select(gates, ratio, 1.0)
        kept = bitmask.indices(selection.kept)
        assert len(kept) == min(keep_count(ratio, 90), gates.integer("population"))
        assert (logits[kept] > -torch.inf).all()


def test_held_out_fill_what_the_readable_training_samples_cannot() -> None:
    logits = torch.zeros(20)
    logits[:9] = -torch.inf
    gates, selection = gates_with(logits, 0.5), Selection(20, 0.5, held_out=torch.arange(16, 20))
    selection.select(gates, 0.5, 1.0)
    assert bitmask.indices(selection.kept).tolist() == [*range(9, 16), 16, 17, 18]


def test_quotas_of_any_sizes_are_filled() -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        num_samples = int(random.integers(2, 80))
        classes = int(random.integers(1, 6))
        labels = random.choice(classes, num_samples)
        held_out = random.choice(num_samples, random.integers(0, num_samples), replace=False)
        keep_ratio = float(random.uniform(1 / num_samples, 0.6))
        logits = random_logits(num_samples)
        logits[torch.from_numpy(random.random(num_samples) < random.uniform(0, 0.4))] = -torch.inf
        readable = logits > -torch.inf
        if keep_count(keep_ratio, num_samples) > readable.sum():
            continue
        gates = gates_with(logits, keep_ratio)
        selection = Selection(
            num_samples,
            keep_ratio,
            labels=torch.from_numpy(labels) if classes > 1 else None,
            held_out=torch.from_numpy(np.sort(held_out)),
        )
        for ratio in (1.0, 0.5 + keep_ratio / 2, keep_ratio):
            selection.select(gates, ratio, 1.0)
            kept = bitmask.indices(selection.kept).numpy()
            assert len(kept) == min(keep_count(ratio, num_samples), int(readable.sum()))
            assert readable.numpy()[kept].all()
            sizes = np.bincount(labels, minlength=classes)
            available = np.bincount(labels[readable.numpy()], minlength=classes)
            assert np.bincount(labels[kept], minlength=classes).tolist() == dealt_in_rounds(
                len(kept), sizes.tolist(), available.tolist()
            )


@pytest.mark.parametrize("classes", [1, 63, 64, 65, 128, 16_384, 16_385])
def test_any_number_of_classes(classes: int) -> None:
    labels = torch.arange(classes).repeat(4)
    gates = gates_with(random_logits(4 * classes), 0.5)
    selection = Selection(4 * classes, 0.5, labels=labels, held_out=torch.arange(classes))
    selection.select(gates, 0.5, 1.0)
    assert torch.equal(
        torch.bincount(labels[bitmask.indices(selection.kept)]), torch.full((classes,), 2)
    )
