"""gate_update against adapruner.ops.reference in float64, and the sums in the state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.sample_inputs import (
    FLOATS,
    INTEGERS,
    UPDATES,
    UpdateSample,
    generator,
    native_gates,
    reference_gates,
    update_sample,
)
from torch import Tensor

from adapruner import ops
from adapruner.ops.reference import ReferenceGates
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method

pytestmark = pytest.mark.usefixtures("device")
STEP = 1e-6  # of a float32 logit of some units


def step(sample: UpdateSample, gates: Gates | None = None) -> Gates:
    gates = gates or native_gates(sample.gates)
    torch.ops.adapruner.gate_update(*sample.arguments(gates))
    return gates


def visit(gates: Gates, ids: Any, pressure: Any, sample_loss: Any = None) -> None:
    pressure = torch.as_tensor(pressure, dtype=torch.float32)
    loss = torch.ones(len(pressure)) if sample_loss is None else torch.as_tensor(sample_loss)
    ops.gate_update(
        gates.logits, gates.age, gates.state, gates.last_loss, torch.as_tensor(ids), pressure, loss
    )


def recount(gates: Gates) -> tuple[int, int]:
    """Σ round(s·2³⁰) and the number of m > 0, computed from m."""
    total, above = ops.topk_mask(gates.logits, 0, gates.real("slope")).sums.tolist()
    return total, above


def check_sums(gates: Gates) -> None:
    """Check the sums against a recount, and s̄ and ρ against float64."""
    assert (gates.integer("gate_sum"), gates.integer("open_count")) == recount(gates)
    s = torch.sigmoid(gates.real("slope") * gates.logits.double())
    assert abs(gates.mean_gate - s.mean().item()) <= 1e-9
    assert gates.open_share == (gates.logits > 0).double().mean().item()


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    sample = update_sample(name, dtype)
    gates = step(sample)
    sample.gates.update(sample.ids.tolist(), sample.pressure.tolist())
    assert torch.allclose(gates.logits.double(), sample.gates.m, rtol=STEP, atol=STEP)
    ages = [ops.NEVER_VISITED if age is None else age for age in sample.gates.age]
    assert gates.age.tolist() == ages
    check_sums(gates)


def test_an_example_by_hand() -> None:
    # m = 1, k = 2: s = 0.880797, s·(1 − s) = 0.104994; η = 0.05, pressure 3: a step of 0.031498.
    gates = native_gates(ReferenceGates(torch.ones(3), 0.5, 2.0))
    visit(gates, [1], [3.0])
    assert gates.logits.tolist() == pytest.approx([1.0, 1 - 0.0314981, 1.0], abs=1e-6)
    assert gates.age.tolist() == [ops.NEVER_VISITED, 0, ops.NEVER_VISITED]


def test_pressures_of_a_repeated_id_are_summed_from_the_same_m() -> None:
    reference = reference_gates("same m")
    once, thrice, one_by_one = (native_gates(reference) for _ in range(3))
    visit(once, [4], [6.0])
    visit(thrice, [4, 9, 4, 4], [1.0, 0.0, 2.0, 3.0])
    assert thrice.logits[4] == once.logits[4]
    for pressure in (1.0, 2.0, 3.0):
        visit(one_by_one, [4], [pressure])
    assert one_by_one.logits[4] != once.logits[4]


@pytest.mark.parametrize(
    ("age", "span"), [(255, 1), (0, 1), (1, 1), (2, 2), (15, 15), (16, 16), (17, 16), (254, 16)]
)
def test_a_visit_stands_for_the_epochs_since_the_last_one(age: int, span: int) -> None:
    gates = native_gates(reference_gates("span"))
    gates.age[:] = age
    m, k = gates.logits[6].double(), 1.3
    visit(gates, [6], [2.0])
    s = torch.sigmoid(k * m)
    assert gates.logits[6].item() == pytest.approx(
        (m - 0.05 * span * k * s * (1 - s) * 2.0).item(), abs=STEP
    )
    assert gates.age[6] == 0


def test_ages_grow_by_epochs_and_stop_at_the_oldest() -> None:
    gates = native_gates(ReferenceGates(torch.ones(3), 0.5, 1.0))
    visit(gates, [0], [1.0])
    gates.age[1] = ops.OLDEST - 1
    for expected in ([1, 254, 255], [2, 254, 255]):
        gates.end_epoch()
        assert gates.age.tolist() == expected
    assert gates.any_unvisited()
    visit(gates, [2], [1.0])
    assert not gates.any_unvisited()


def test_a_pressure_that_is_not_finite_leaves_its_gate_alone() -> None:
    sample = update_sample("not finite")
    before = sample.gates.m.clone().float()
    gates = step(sample)
    first = sample.ids[:4]
    assert torch.equal(gates.logits[first], before[first])
    assert not torch.equal(gates.logits[sample.ids[4:]], before[sample.ids[4:]])
    assert gates.not_finite() == sorted(sample.ids[:2].tolist())  # +inf is not an error
    assert gates.integer("not_finite_count") == 2
    assert gates.integer("loss_count") == 36


def test_a_visit_that_is_not_finite_ends_never_visited() -> None:
    gates = native_gates(ReferenceGates(torch.ones(4), 0.5, 1.0))
    gates.age[3] = 9
    visit(gates, [0, 1, 3], [torch.nan, torch.inf, torch.nan])
    assert gates.age.tolist() == [1, 1, ops.NEVER_VISITED, 9]


def test_a_finite_visit_counts_beside_one_that_is_not() -> None:
    gates = native_gates(ReferenceGates(torch.ones(2), 0.5, 1.0))
    visit(gates, [0, 0, 1], [torch.nan, 1.0, torch.inf])
    assert gates.logits[0] < 1
    assert gates.age.tolist() == [0, 1]
    assert gates.not_finite() == [0]


def test_the_list_of_ids_is_bounded_and_the_count_is_not() -> None:
    gates = native_gates(ReferenceGates(torch.ones(100), 0.5, 1.0))
    guard = gates.state.clone()
    for start in (0, 40, 80):
        ids = torch.arange(start, min(start + 40, 100))
        visit(gates, ids, torch.full((len(ids),), torch.nan))
    capacity = ops._C.not_finite_capacity
    assert gates.integer("not_finite_count") == 100
    assert gates.not_finite() == list(range(capacity))
    unchanged = [ops._C.state_slots[name] for name in ("slope", "gate_sum", "open_count")]
    assert torch.equal(gates.state[unchanged], guard[unchanged])
    gates.end_epoch()
    assert gates.not_finite() == []


def test_gates_rest_in_warm_up() -> None:
    sample = update_sample("warm-up")
    gates = step(sample)
    assert torch.equal(gates.logits.double(), sample.gates.m)
    expected = [ops.NEVER_VISITED if age is None else age for age in sample.gates.age]
    assert gates.age.tolist() == expected
    assert gates.integer("loss_count") == 36  # the losses still count
    assert gates.not_finite() == sorted(sample.ids[:2].tolist())
    check_sums(gates)


def test_gates_of_a_plain_mean_step_as_ever() -> None:
    sample = update_sample("plain mean")
    gates, expected = native_gates(sample.gates), native_gates(sample.gates)
    expected.set_integer("plain", 0)
    for each in (gates, expected):
        step(sample, each)
        each.end_epoch()
    assert torch.equal(gates.logits, expected.logits)
    assert torch.equal(gates.age, expected.age)
    gates.set_integer("plain", 0)
    assert torch.equal(gates.state, expected.state)


def test_losses_of_the_epoch_and_the_last_of_each_sample() -> None:
    gates = native_gates(ReferenceGates(torch.ones(6), 0.5, 1.0))
    assert gates.training_loss() is None
    visit(gates, [0, 1, 2], [1.0, 1.0, torch.inf], [0.5, 2.5, 0.0])
    visit(gates, [0, 3], [1.0, torch.nan], [1.5, torch.inf])
    assert gates.training_loss() == pytest.approx((0.5 + 2.5 + 1.5) / 3)
    assert gates.last_loss is not None
    assert gates.last_loss[[0, 1, 3]].tolist() == [1.5, 2.5, math.inf]
    assert gates.last_loss[[2, 4, 5]].isnan().all()
    gates.end_epoch()
    assert gates.training_loss() is None


def test_without_last_losses() -> None:
    sample = update_sample("plain")
    gates = native_gates(sample.gates, track_losses=False)
    assert torch.equal(step(sample, gates).logits, step(sample).logits)


def test_a_running_loss_scale_follows_the_mean_loss() -> None:
    gates = native_gates(ReferenceGates(torch.ones(4), 0.5, 1.0))
    gates.set_integer("scale_running", 1)
    visit(gates, [0, 1], [1.0, 1.0], [30.0, 50.0])
    assert gates.real("loss_scale") == 40.0
    gates.set_integer("scale_running", 0)
    visit(gates, [0], [1.0], [4000.0])
    assert gates.real("loss_scale") == 40.0


def test_sums_in_the_state_are_exact_after_many_updates() -> None:
    # 200,000 visits in batches with repeated ids. The slope changes as it does between epochs.
    gates = Gates(1000, 0.7, find_method("published"))
    random = generator("many updates")
    for number in range(2000):
        ids = torch.randint(0, 1000, (100,), generator=random)
        visit(gates, ids, torch.randn(100, generator=random) * 20)
        if number % 500 == 499:
            check_sums(gates)
            gates.set_slope(0.1 + number / 500)
    assert 0 < gates.integer("open_count") < 1000
    check_sums(gates)


def test_a_million_visits_leave_no_drift_at_any_number_of_threads() -> None:
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            gates = Gates(50_000, 0.7, find_method("published"))
            gates.set_slope(1.0)
            random = generator("a million visits")
            for _ in range(1000):
                ids = torch.randint(0, 50_000, (1000,), generator=random)
                visit(gates, ids, torch.randn(1000, generator=random) * 50)
            assert len(ids.unique()) < 1000  # some repeat
            check_sums(gates)
            ends.append((gates.logits, gates.state))
    finally:
        torch.set_num_threads(before)
    assert 0.1 < gates.open_share < 0.9
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


def test_excluded_gates_stay_closed() -> None:
    gates = native_gates(ReferenceGates(torch.ones(5), 0.5, 1.0))
    gates.exclude(torch.tensor([2]))
    visit(gates, [2, 3], [-50.0, -50.0])
    assert gates.logits[2] == -torch.inf
    assert gates.integer("population") == 4
    assert (gates.integer("gate_sum"), gates.integer("open_count")) == recount(gates)


def test_extreme_pressures_leave_gates_and_sums_in_order() -> None:
    for slope in (0.1, 5.0):
        gates = native_gates(ReferenceGates(torch.zeros(4), 0.5, slope))
        huge = torch.finfo(torch.float32).max
        visit(gates, [0, 1, 2, 2], [huge, -huge, huge, huge], torch.ones(4))
        assert not gates.logits.isnan().any()
        assert gates.logits[1] > gates.logits[3] > gates.logits[0]
        assert (gates.integer("gate_sum"), gates.integer("open_count")) == recount(gates)


def test_gates_of_a_steep_slope_keep_their_order_when_far_out() -> None:
    gates = native_gates(ReferenceGates(torch.tensor([-300.0, 300.0, 0.5]), 0.5, 5.0))
    visit(gates, [0, 1, 2], [5.0, -5.0, 1.0])
    assert gates.logits[:2].tolist() == [-300.0, 300.0]  # s·(1 − s) is 0 to within 1e-300
    check_sums(gates)


def test_order_of_the_batches_of_an_epoch_does_not_matter() -> None:
    random = generator("order")
    reference = reference_gates("order")
    ids = torch.randperm(50, generator=random)
    pressure = torch.randn(50, generator=random) * 3
    batches = list(zip(ids.split(7), pressure.split(7), strict=True))
    results = []
    for order in (range(8), reversed(range(8)), torch.randperm(8, generator=random).tolist()):
        gates = native_gates(reference)
        for number in order:
            visit(gates, *batches[number])
        results.append(gates)
    for gates in results[1:]:
        assert torch.equal(gates.logits, results[0].logits)
        assert torch.equal(gates.age, results[0].age)
        slots = [ops._C.state_slots[name] for name in ("gate_sum", "open_count", "loss_count")]
        assert torch.equal(gates.state[slots], results[0].state[slots])


@pytest.mark.parametrize("batch", [1, 15, 511, 512, 513, 1500])
def test_many_at_a_time_are_stepped_as_one_at_a_time(batch: int) -> None:
    random = generator(f"batch {batch}")
    together = native_gates(ReferenceGates(torch.randn(2000, generator=random) * 3, 0.7, 1.3))
    together.age.random_(0, 20, generator=random)
    alone = native_gates(ReferenceGates(together.logits, 0.7, 1.3))
    alone.age.copy_(together.age)
    ids = torch.randperm(2000, generator=random)[:batch]
    pressure = torch.randn(batch, generator=random) * 30
    visit(together, ids, pressure)
    for index, value in zip(ids, pressure, strict=True):
        visit(alone, index[None], value[None])
    assert torch.equal(together.logits, alone.logits)
    assert torch.equal(together.age, alone.age)
    check_sums(together)


def test_a_single_gate() -> None:
    gates = native_gates(ReferenceGates(torch.ones(1), 1.0, 0.1))
    expected = ReferenceGates(torch.ones(1), 1.0, 0.1)
    for pressure in (3.0, -2.0, 40.0):
        visit(gates, [0, 0], [pressure, 1.0])
        expected.update([0, 0], [pressure, 1.0])
    assert gates.logits.item() == pytest.approx(expected.m.item(), abs=STEP)
    check_sums(gates)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UPDATES)
def test_the_gpu_has_the_bits_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        with torch.device(device):
            gates = step(update_sample(name, dtype))
            ends.append([tensor.cpu() for tensor in gates.state_dict().values()])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*ends, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("batch", "distinct"), [(4096, 2**20), (5000, 300), (2000, 1), (300_000, 2**20), (50_000, 9)]
)
def test_the_gpu_has_the_bits_of_the_cpu_in_large_batches(batch: int, distinct: int) -> None:
    random = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, distinct, (batch,), generator=random)
    pressure = torch.randn(batch, generator=random) * 20
    loss = torch.rand(batch, generator=random) * 9
    pressure[::97], loss[::89] = torch.nan, torch.inf
    ends = []
    for device in ("cpu", "cuda"):
        gates = Gates(2**20, 0.7, find_method("sampled"), device, track_losses=True)
        for _ in range(2):
            visit(gates, ids.to(device), pressure.to(device), loss.to(device))
        ends.append([tensor.cpu() for tensor in gates.state_dict().values()])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_type_of_ids(dtype: torch.dtype) -> None:
    sample = update_sample("plain")
    other = UpdateSample(sample.ids.to(dtype), sample.pressure, sample.sample_loss, sample.gates)
    assert torch.equal(step(other).logits, step(sample).logits)


def test_layout_of_the_batch_changes_nothing() -> None:
    sample = update_sample("plain")

    def spread(x: Tensor) -> Tensor:
        return torch.stack([x, x + 1], 1)[:, 0]

    other = UpdateSample(
        spread(sample.ids), spread(sample.pressure), spread(sample.sample_loss), sample.gates
    )
    assert torch.equal(step(other).logits, step(sample).logits)
