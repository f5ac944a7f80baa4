"""The quality suite's data, trainer, plans, runner and statistics."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("sklearn")
from adapruner.pruning.quotas import class_floors
from benchmarks.quality import plans, run, statistics, table
from benchmarks.quality.data import Data, load, spoil
from benchmarks.quality.one import make, select
from benchmarks.quality.trainer import Plan, Recipe, _augment, _rate, train

RECIPE = Recipe("digits", 2, 32, 0.1, bfloat16=False)


def toy(count: int = 1000) -> Data:
    y = torch.arange(count) % 10
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, 8, 1, generator=generator)
    return Data(x, y, torch.zeros(count, dtype=torch.bool), x[:50], y[:50], 10)


@pytest.mark.parametrize("noise", ["symmetric 0.2", "asymmetric 0.2", "corrupt 0.1"])
def test_exactly_the_share_is_spoilt_and_nothing_else(noise):
    clean = toy()
    dirty = spoil(clean, noise, seed=1)
    # Five of the ten classes have one that they are mistaken for.
    of = 500 if noise.startswith("asymmetric") else 1000
    assert int(dirty.bad.sum()) == round(float(noise.split()[1]) * of)
    changed = dirty.y != clean.y
    if noise.startswith("corrupt"):
        changed = (dirty.x != clean.x).flatten(1).any(1)
        assert torch.equal(dirty.y, clean.y)
    assert torch.equal(changed, dirty.bad)
    assert torch.equal(spoil(clean, noise, seed=1).bad, dirty.bad)
    assert not torch.equal(spoil(clean, noise, seed=2).bad, dirty.bad)


def test_asymmetric_noise_goes_to_the_class_mistaken_for():
    dirty = spoil(toy(), "asymmetric 0.2", seed=1)
    pairs = zip(toy().y[dirty.bad].tolist(), dirty.y[dirty.bad].tolist(), strict=True)
    assert set(pairs) == {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}


def test_long_tail_falls_off_evenly():
    counts = spoil(toy(), "long-tail 0.1", seed=1).y.bincount().tolist()
    assert counts == [round(100 * 0.1 ** (c / 9)) for c in range(10)]


def test_an_unknown_noise_is_named():
    with pytest.raises(ValueError, match="'odd'"):
        spoil(toy(), "odd 0.1", seed=0)


@pytest.mark.parametrize("noise", ["clean", "symmetric 0.2"])
def test_the_split_and_the_test_set_are_apart(noise):
    of_test, of_split = (load("digits", noise, 3, on) for on in ("test", "split"))
    sets = [{tuple(image.flatten().tolist()) for image in images}
            for images in (of_split.x, of_split.x_test, of_test.x_test)]  # fmt: skip
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & sets[2]
    assert len(of_split.y) + len(of_split.y_test) == len(of_test.y)


class Noting(Plan):
    """Plain training that notes what it read."""

    def __init__(self, reads):
        super().__init__(reads)
        self.order = []

    def loss(self, logits, targets, ids):
        self.order += ids.tolist()
        return super().loss(logits, targets, ids)


def test_a_run_repeats_and_leaves_the_generator_alone():
    data, everything = toy(), torch.ones(1000, dtype=torch.bool)
    state = torch.get_rng_state()
    first, second = (train(data, RECIPE, Plan(everything), 7, epochs=2).model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    other = train(data, RECIPE, Plan(everything), 8, epochs=2).model
    for a, b, c in zip(*(m.parameters() for m in (first, second, other)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_a_part_is_read_in_the_order_it_has_among_all():
    data, part = toy(), torch.arange(1000) % 3 == 0
    whole, some = Noting(torch.ones(1000, dtype=torch.bool)), Noting(part)
    train(data, RECIPE, whole, 7, epochs=1)
    train(data, RECIPE, some, 7, epochs=1)
    assert some.order == [i for i in whole.order if part[i]]


@pytest.mark.parametrize("samples", [1, 33, 334, 1000])
def test_a_budget_of_samples_is_met(samples):
    plan = Noting(torch.arange(1000) % 3 == 0)
    assert train(toy(), RECIPE, plan, 7, samples=samples).samples_read == samples
    assert len(plan.order) == samples


def test_the_rate_rises_and_falls_in_a_line():
    assert [_rate(done, 0.25) for done in (0.125, 0.25, 0.625)] == [0.5, 1, 0.5]
    assert _rate(1.0, 0.25) == 0.01


def test_augmentation_shifts_and_flips():
    image = torch.arange(4.0).reshape(1, 2, 2, 1) + 1  # rows (1, 2) and (3, 4)
    padded = torch.nn.functional.pad(image, (0, 0, 1, 1, 1, 1))
    recipe = replace(RECIPE, crop=1, flip=True)
    for guise, expected in (
        ((1, 1, 0), [[1, 2], [3, 4]]),
        ((1, 1, 1), [[2, 1], [4, 3]]),
        ((2, 1, 0), [[3, 4], [0, 0]]),
        ((1, 0, 0), [[0, 1], [0, 3]]),
    ):
        made = _augment(padded, torch.tensor([0]), torch.tensor(guise)[:, None], 2, recipe)
        assert made[0, 0].tolist() == expected


def test_infobatch_halves_the_easy_and_weighs_them_twice():
    plan = plans.InfoBatch(10, seed=0)
    assert plan.begin(0, 0.0, None).all()  # nothing is known yet
    plan.last_loss[:] = torch.tensor([0.0] * 6 + [10.0] * 4)
    reads = plan.begin(1, 0.5, None)
    assert reads[6:].all()
    assert int(reads[:6].sum()) == 3
    assert (plan.weights[:6][reads[:6]] == 2).all()
    assert (plan.weights[6:] == 1).all()
    assert plan.begin(2, 0.9, None).all()
    assert (plan.weights == 1).all()


def test_parts_of_infobatch_can_be_left_out():
    plan = plans.InfoBatch(10, seed=0, until=1.0, weighs=False)
    plan.last_loss[:] = torch.tensor([0.0] * 6 + [10.0] * 4)
    assert int(plan.begin(2, 0.99, None).sum()) == 7  # the last epochs are not full
    assert (plan.weights == 1).all()


def test_orderdp_reads_the_hardest_of_a_random_pool():
    plan = plans.OrderDP(100, 0.5, seed=0, top=0.5)  # the pool is everything
    plan.last_loss[:] = torch.arange(100.0)
    assert plan.begin(1, 0.5, None).nonzero().flatten().tolist() == list(range(50, 100))
    plan = plans.OrderDP(100, 0.4, seed=0, top=0.8)  # a pool of 50
    plan.last_loss[:] = torch.arange(100.0)
    first, second = plan.begin(1, 0.5, None), plan.begin(2, 0.5, None)
    assert int(first.sum()) == int(second.sum()) == 40
    assert not torch.equal(first, second)
    assert first[:30].any()  # the hardest of a pool, not of all


def test_repb_compares_losses_within_a_window_and_weighs_by_visits():
    plan = plans.RePB(8, seed=0, window=1)
    assert plan.begin(0, 0.0, None).all()
    # The second batch has larger losses throughout. Half of each batch is below its own mean.
    for ids, wrong in (([0, 1, 2, 3], [1.0, 1, 3, 3]), ([4, 5, 6, 7], [5.0, 5, 9, 9])):
        logits = torch.stack([torch.zeros(4), torch.tensor(wrong)], 1)
        plan.loss(logits, torch.zeros(4, dtype=torch.int64), torch.tensor(ids))
    reads = plan.begin(1, 0.5, None)
    assert reads[[2, 3, 6, 7]].all()
    assert int(reads[[0, 1, 4, 5]].sum()) == 2
    assert plan.weights[~reads].tolist() == [2.0, 2.0]  # two epochs, and one of them read them
    assert plan.weights[reads].tolist() == [1.0] * 6


needs_data = pytest.mark.skipif(
    not os.environ.get("ADAPRUNER_DATA"), reason="ADAPRUNER_DATA does not name the data"
)


@needs_data
@pytest.mark.parametrize("name", ["letter", "traffic", "text"])
def test_training_and_measuring_parts_of_a_seed_are_apart(name):
    of_split, of_test = (load(name, "clean", 2, on) for on in ("split", "test"))
    assert torch.equal(of_split.x, of_test.x)
    trained, held = ({x.numpy().tobytes() for x in part} for part in (of_split.x, of_split.x_test))
    # A few letters and phrases occur twice in their files.
    assert len(held & trained) < 0.1 * len(held)
    assert of_split.y.unique().tolist() == list(range(of_split.classes))
    assert not torch.equal(load(name, "clean", 1, "test").x[:500], of_test.x[:500])


@needs_data
@pytest.mark.parametrize(("kind", "share"), [("aggre", 0.09), ("random1", 0.17), ("worse", 0.40)])
def test_labels_of_people_are_wrong_as_often_as_published(kind, share):
    data = load("cifar10-2000", f"human {kind}", 0, "test")
    assert data.bad.double().mean().item() == pytest.approx(share, abs=0.02)
    right = load("cifar10-2000", "clean", 0, "test")
    assert torch.equal(data.bad, data.y != right.y)
    assert torch.equal(data.x, right.x)


def test_short_runs_select_in_so_many_epochs_and_train_in_all():
    for method, epochs in list(table.SHORT_RUNS.items())[:2]:
        row = make(table.Run("digits", "same epochs", method, 0.5, "clean", 0, "split"), "cpu")
        assert row["selection_samples_read"] <= epochs * row["samples"]
        assert row["selection_samples_read"] > (epochs - 1) * row["samples"] / 2
        assert row["samples_read"] == row["kept"] * table.RECIPES["digits"].epochs


def test_balanced_classes_keep_their_shares():
    row = table.Run("digits", "same epochs", table.BALANCED, 0.3, table.TAIL, 0, "split")
    kept, _ = select(row, "cpu")
    y = load("digits", table.TAIL, 0, "split").y
    found, whole = (labels.bincount(minlength=10).double() for labels in (y[kept], y))
    assert ((found - 0.3 * whole).abs() < 1).all()


def test_the_default_has_floors_and_its_twin_does_not():
    row = table.Run("digits", "same epochs", "adapruner", 0.3, table.TAIL, 0, "split")
    kept, _ = select(row, "cpu")
    plain, _ = select(replace(row, method=table.UNKNOWN), "cpu")
    y = load("digits", table.TAIL, 0, "split").y
    assert len(kept) == len(plain) == round(0.3 * len(y))
    floors = class_floors(y.bincount().numpy(), len(kept))
    found, without = (y[ids].bincount(minlength=10).numpy() for ids in (kept, plain))
    assert (found >= floors).all()
    assert (without < floors).any()
    # The runs are the same, so the order within a class is too.
    for label in range(10):
        ours, theirs = (set(ids[y[ids] == label].tolist()) for ids in (kept, plain))
        assert ours <= theirs or theirs <= ours


def test_seta_slides_a_window_over_groups_of_loss():
    plan = plans.SeTa(100, seed=0, pruned=0.0, groups=2, window=0.5)
    plan.last_loss[:] = torch.tensor([0.0] * 60 + [10.0] * 40)
    assert plan.begin(2, 0.5, None).nonzero().flatten().tolist() == list(range(60))
    assert plan.begin(3, 0.5, None).nonzero().flatten().tolist() == list(range(60, 100))
    assert plan.begin(4, 0.9, None).all()


def test_random_each_epoch_changes():
    plan = plans.RandomEachEpoch(100, 0.3, seed=0)
    first, second = plan.begin(0, 0, None), plan.begin(1, 0, None)
    assert int(first.sum()) == int(second.sum()) == 30
    assert not torch.equal(first, second)


def test_a_paired_difference_and_its_interval():
    # Differences 1 and 3: mean 2, standard error 1, t(0.975, 1) = 12.706.
    found = statistics.paired({0: 5.0, 1: 8.0, 2: 1.0}, {0: 4.0, 1: 5.0, 9: 0.0})
    assert found == (2.0, 1.0, 2)
    assert found.interval == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None
    assert statistics.estimate([3.0]).interval == (-math.inf, math.inf)


def test_what_is_there_is_not_made_again_and_a_torn_line_is(tmp_path):
    runs = [table.Run("digits", "same epochs", "random", 0.5, "clean", s) for s in range(3)]
    path = tmp_path / "digits.jsonl"
    rows = [json.loads(json.dumps(r.described())) for r in runs]
    run.append(path, rows[0])
    with path.open("a") as file:
        file.write(json.dumps(rows[1])[:40])  # stopped in the middle
    assert run.missing(runs, tmp_path) == runs[1:]
    run.append(path, rows[2])
    assert run.missing(runs, tmp_path) == [runs[1]]
    assert len(run.read_rows(path)) == 2


def test_a_run_of_another_recipe_is_another_run(tmp_path):
    one = table.Run("digits", "same epochs", "random", 0.5, "clean", 0)
    row = one.described() | {"recipe": vars(one.recipe) | {"epochs": 99}}
    run.append(tmp_path / "digits.jsonl", row)
    assert run.missing([one], tmp_path) == [one]


@pytest.mark.parametrize("method", ["adapruner", table.SHORT, "adapruner as published"])
def test_a_run_of_other_constants_is_another_run(tmp_path, method):
    one = table.Run("digits", "same epochs", method, 0.5, "clean", 0)
    row = json.loads(json.dumps(one.described()))
    run.append(tmp_path / "digits.jsonl", row | {"constants": "Method(easy_weight=0.3)"})
    assert run.missing([one], tmp_path) == [one]
    run.append(tmp_path / "digits.jsonl", row)
    assert run.missing([one], tmp_path) == []


@pytest.mark.parametrize("method", [*table.JOINT_METHODS[1:], *table.JOINT_MORE])
def test_joint_runs_read_no_more_than_the_budget(method):
    made = make(table.Run("digits", "joint", method, 0.5, "clean", 0, "split"), "cpu")
    budget = 499 * table.RECIPES["digits"].epochs
    assert budget * 0.85 < made["samples_read"] <= budget
    assert made["accuracy"] > 80


def test_the_tables_have_no_run_twice():
    for runs in table.tables().values():
        assert len({r.key() for r in runs}) == len(runs)
