"""The verdicts on the aims of the quality suite, against rows worked by hand."""

import pytest

pytest.importorskip("sklearn")
from benchmarks.quality import aims
from benchmarks.quality.statistics import Estimate, estimate

CIFAR = aims.CIFAR
LETTER = ("letter", "same epochs", "clean")
# Of five seeds: variance 0.005, standard error √0.001, times t(0.975, 4) = 2.776445: ± 0.0878.
SPREAD = (-0.1, 0.0, 0.1, 0.0, 0.0)
WIDE = (-2.0, -1.0, 0.0, 1.0, 2.0)  # variance 2.5, standard error √0.5: ± 1.9632
BASE = (61.0, 58.5, 60.25, 63.0, 59.75)  # of the rival, whatever it is


def rows(method, ratio, accuracies, place=(CIFAR, "same epochs", "clean"), **more):
    names = dict(zip(("dataset", "protocol", "noise"), place, strict=True)) | {"samples_read": 100}
    return [
        names | {"method": method, "ratio": ratio, "seed": seed, "accuracy": accuracy} | more
        for seed, accuracy in enumerate(accuracies)
    ]


def beside(mean, spread=SPREAD):
    """Accuracies that differ from BASE by ``mean`` and this spread."""
    return [base + mean + by for base, by in zip(BASE, spread, strict=True)]


def found(made, aim, figure, scope=CIFAR, tasks=()):
    """The checks of that figure by their ratio."""
    return {
        check.ratio: check
        for check in aims.checks(made, tasks)
        if (check.aim, check.scope, check.figure) == (aim, scope, figure)
    }


@pytest.mark.parametrize(
    ("mean", "spread", "state"),
    [
        (1.0, SPREAD, "met"),
        (-0.2, SPREAD, "met"),  # lower end −0.288: above −0.3, though all of it is below 0
        (-0.22, SPREAD, "unmet"),  # lower end −0.308, upper −0.132
        (-1.0, SPREAD, "unmet"),
        (1.0, WIDE, "not shown"),  # −0.963 to 2.963
        (1.7, WIDE, "met"),  # −0.263
        (-1.0, WIDE, "not shown"),  # the upper end is above 0
    ],
)
def test_not_below_all_data(mean, spread, state):
    made = rows("full", 1.0, BASE, LETTER) + rows("adapruner", 0.7, beside(mean, spread), LETTER)
    check = found(made, 1, "clean, to all data", "letter")[0.7]
    assert check.state == state
    half = 2.776445 * (0.001 if spread is SPREAD else 0.5) ** 0.5
    assert check.found.n == 5
    assert check.found.interval == pytest.approx((mean - half, mean + half), abs=1e-5)


def test_not_below_and_above_are_not_the_same():
    slightly = estimate([-0.1 + by for by in SPREAD])  # −0.188 to −0.012
    assert aims.judge(slightly, aims.NOT_BELOW, 5) == "met"
    assert aims.judge(slightly, aims.ABOVE, 5) == "unmet"
    assert aims.judge(slightly._replace(mean=0.0), aims.ABOVE, 5) == "not shown"
    assert aims.judge(slightly._replace(mean=0.1), aims.ABOVE, 5) == "met"


def test_too_few_seeds_show_nothing():
    assert aims.judge(Estimate(5.0, 0.01, 4), aims.ABOVE, 5) == "not shown"
    assert aims.judge_within(Estimate(0.5, 0.0, 4), 0.85, 5) == "not shown"
    assert aims.judge(None, aims.ABOVE, 5) == "not shown"
    digits = ("digits", "same epochs", "clean")  # takes ten
    made = rows("random", 0.5, BASE, digits) + rows("adapruner", 0.5, beside(1.0), digits)
    assert found(made, 2, "clean, to random", "digits")[0.5].state == "not shown"


def test_a_limit_on_a_cost():
    assert aims.judge_within(Estimate(0.85, 0.0, 5), 0.85, 5) == "met"
    assert aims.judge_within(Estimate(0.86, 0.0, 5), 0.85, 5) == "unmet"
    assert aims.judge_within(Estimate(0.84, 0.01, 5), 0.85, 5) == "not shown"  # to 0.868


def test_joint_is_compared_with_each_dynamic_rival():
    place = CIFAR, "joint", "clean"
    made = rows("InfoBatch", 0.5, BASE, place) + rows("random each epoch", 0.5, beside(1), place)
    made += rows("adapruner", 0.5, BASE, place)
    assert found(made, 3, "clean, joint, to random each epoch")[0.5].state == "unmet"
    assert found(made, 3, "clean, joint, to InfoBatch")[0.5].state == "met"  # level
    assert found(made, 3, "clean, joint, to SeTa")[0.5].shown == "not run"
    assert found(made, 3, "clean, joint, to all data") == {}  # the network does not fit it


def test_short_runs_are_compared_with_a_random_set():
    place = "digits", "same epochs", "clean"
    made = rows("random", 0.7, BASE * 2, place)
    made += rows("adapruner, 1 epoch", 0.7, beside(1.0) * 2, place)
    made += rows("adapruner, 3 epochs", 0.7, beside(-1.0) * 2, place)
    assert found(made, 2, "clean, selected in 1 epoch, to random", "digits")[0.7].state == "met"
    check = found(made, 2, "clean, selected in 3 epochs, to random", "digits")[0.7]
    assert check.state == "unmet"


def test_tails_are_compared_in_balanced_accuracy():
    place = "letter", "same epochs", "long-tail 0.05"
    made = []
    for method, gain in (("adapruner", 0.0), ("random", -1.0), ("random of each class", 1.0)):
        for one, balanced in zip(rows(method, 0.7, BASE, place), beside(gain), strict=True):
            made.append(one | {"balanced_accuracy": balanced})
    start = "long-tail 0.05, balanced accuracy, to "
    assert found(made, 2, f"{start}random", "letter")[0.7].state == "met"
    assert found(made, 5, f"{start}random of each class", "letter")[0.7].state == "unmet"
    assert found(made, 5, f"{start}{aims.BALANCED}", "letter")[0.7].state == "not shown"


def test_labels_of_people_have_to_be_above_random_and_not_below_all_data():
    place = CIFAR, "same epochs", "human worse"
    made = rows("random", 0.7, BASE, place) + rows("full", 1.0, BASE, place)
    made += rows("adapruner", 0.7, BASE, place)
    assert found(made, 4, "human worse, to random")[0.7].state == "not shown"  # level
    assert found(made, 4, "human worse, to all data")[0.7].state == "met"


def test_other_networks_are_found_by_the_name_of_their_dataset():
    place = "letter deep", "same epochs", "clean"
    made = rows("random", 0.3, BASE, place) + rows("adapruner", 0.3, beside(1.0), place)
    checks = found(made, 2, "letter deep, clean, to random", "other networks")
    assert {ratio: check.state for ratio, check in checks.items()} == {0.3: "met"}


def test_other_tasks_more_is_better():
    def task(name, method, values):
        return [
            {"task": name, "method": method, "protocol": "same epochs", "seed": s, "value": v}
            for s, v in enumerate(values)
        ]

    tasks = task("language_model", "adapruner", [8.0] * 5)
    tasks += task("language_model", "random", [9.0] * 5)
    tasks += task("detection", "adapruner", [0.30] * 5) + task("detection", "random", [0.31] * 5)
    less = found([], 2, "to random, %", "language model", tasks)[0.7]
    assert less.state == "met"
    assert less.found.mean == pytest.approx(11.778, abs=1e-3)  # 100·ln(9 / 8)
    lower = found([], 2, "to random, %", "detection", tasks)[0.8]
    assert lower.state == "unmet"
    assert lower.found.mean == pytest.approx(-1.0)


def test_aims_of_fine_tuning_are_about_one_case():
    def rows(method, values, epochs=3, wrong=0.0):
        return [
            {"task": "fine_tuning", "method": method, "protocol": "same epochs", "seed": s}
            | {"value": v, "epochs": epochs, "wrong_labels": wrong}
            for s, v in enumerate(values)
        ]

    tasks = rows("adapruner", [0.81] * 5) + rows("random", [0.80] * 5) + rows("full", [0.82] * 5)
    # Other cases, which do not count.
    tasks += rows("adapruner", [0.1] * 5, epochs=5) + rows("random", [0.9] * 5, wrong=0.2)
    assert found([], 1, "to random, %", "fine tuning", tasks)[0.7].state == "met"
    assert found([], 2, "to random, %", "fine tuning", tasks)[0.7].state == "met"
    to_all = found([], 1, "to all data, %", "fine tuning", tasks)[0.7]
    assert (to_all.state, round(to_all.found.mean, 9)) == ("unmet", -1.0)


def test_costs_are_multiples_of_training_on_everything():
    made = rows("full", 1.0, BASE, samples_read=120_000)
    made += rows("adapruner", 0.7, BASE, (CIFAR, "joint", "clean"), samples_read=84_000)
    joint = found(made, 6, "clean, joint, samples read, at most 0.85")[0.7]
    assert (joint.state, joint.shown) == ("met", "0.70")


def test_the_verdict_of_an_aim_is_its_worst():
    assert aims.worst(["met", "not shown", "unmet"]) == "unmet"
    assert aims.worst(["met", "not shown"]) == "not shown"
    assert aims.worst(["met", "met"]) == "met"
    assert aims.worst([]) == "not shown"


def test_no_rows_at_all():
    checks = aims.checks([], [])
    assert {check.aim for check in checks} == set(aims.TITLES)
    assert {check.state for check in checks} == {"not shown"}
    text = aims.verdicts(checks)
    assert "**met**" not in text
    assert f"{CIFAR}: not run" in text
    assert aims.figures(checks) == ""


def test_the_table_of_an_aim():
    made = rows("full", 1.0, BASE, LETTER)
    made += rows("adapruner", 0.9, beside(1.0), LETTER)
    made += rows("adapruner", 0.7, beside(-1.0), LETTER)
    checks = aims.checks(made, [])
    line = "| letter | clean, to all data | 5 | **met** +1.00 [+0.91, +1.09] "
    assert f"{line}| **unmet** -1.00 [-1.09, -0.91] |" in aims.figures(checks)
    assert "letter: **unmet** (1 met, 1 unmet, 3 not run)" in aims.verdicts(checks)
