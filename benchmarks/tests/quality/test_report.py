"""The pages of the quality suite, drawn from a handful of rows."""

import json
from dataclasses import asdict

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from benchmarks.quality import markdown, overview, report
from benchmarks.quality.table import CIFAR, RECIPES, constants_of

TABLES = "docs/quality-tables.md"
ABOUT = {"processor": "P", "torch": "2", "date": "today", "commit": "abc"}


def row(method, ratio, seed, accuracy, dataset="digits", **more):
    recipe = asdict(RECIPES[dataset])
    common = {"protocol": "same epochs", "noise": "clean", "measured_on": "test", "bad": 0.0}
    common |= {"bad_among_kept": 0.0, "samples": 100, "samples_read": 100 * ratio}
    common |= {"cpu_seconds": ratio, "balanced_accuracy": accuracy, "device": "cpu"}
    named = {"dataset": dataset, "method": method, "ratio": ratio, "seed": seed}
    made = common | named | {"accuracy": accuracy, "recipe": recipe, "provenance": ABOUT} | more
    return made | {"constants": constants_of(method)}


def five(method, ratio, accuracy, **more):
    return [row(method, ratio, seed, accuracy + seed, **more) for seed in range(5)]


def some_rows():
    made = five("full", 1.0, 90.0)
    for ratio in (0.7, 0.5):
        made += five("random", ratio, 80.0) + five("AUM", ratio, 84.0)
        made += five("adapruner", ratio, 83.0)
    return made


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs" / "images").mkdir(parents=True)
    for name, markers in {
        "docs/quality.md": ("conditions", "overall", "short selections", "aims"),
        "docs/quality-tables.md": (
            "aims",
            "digits",
            "more of digits",
            "cost of digits",
            CIFAR,
            "transfer",
            "probe",
            "kept",
            "gpu",
        ),
        "README.md": ("quality",),
    }.items():
        texts = (f"<!-- {m}: begin -->\nas it was\n<!-- {m}: end -->\n" for m in markers)
        (tmp_path / name).write_text("".join(texts))
    return tmp_path


def between(root, name, marker):
    text = (root / name).read_text()
    return text.split(f"<!-- {marker}: begin -->\n")[1].split(f"\n<!-- {marker}: end -->")[0]


def test_only_rows_of_runs_are_read_and_of_todays_recipe(tmp_path):
    made = row("full", 1.0, 0, 90.0)
    write(tmp_path / "digits.jsonl", [made, made | {"recipe": made["recipe"] | {"epochs": 99}}])
    write(tmp_path / "tasks.jsonl", [{"task": "detection", "value": 1.0}])
    assert report.runs_in(tmp_path) == [made]
    assert report.runs_in(tmp_path / "nothing") == []


def test_the_pages(root):
    write(root / "results" / "digits.jsonl", some_rows())
    write(root / "results" / "tasks.jsonl", [])
    selection = {"selection_samples_read": 90.0, "selection_cpu_seconds": 1.3}
    timed = five("full", 1.0, 90.0) + five("random", 0.7, 80.0, cpu_seconds=0.8)
    timed += five("adapruner", 0.7, 83.0, cpu_seconds=0.9, **selection)
    write(root / "results" / "cost" / "digits.jsonl", timed)
    report.main(root / "results", root)

    page = between(root, TABLES, "digits")
    # Accuracies 83 to 87: mean 85, standard error √(2.5 / 5) = 0.71; 3 above random each.
    cell = "85.00 ± 0.71<br>**+3.00 [+3.00, +3.00]**"
    assert f"| adapruner | {cell} | {cell} |" in page
    assert "n = 5" in page
    assert "Bad samples" not in page
    long = between(root, TABLES, "more of digits")
    assert "| adapruner | -7.00 [-7.00, -7.00] | -7.00 [-7.00, -7.00] |" in long
    assert "85.00±0.71 | 82.00±0.71 | 86.00±0.71 (AUM)" in between(root, "README.md", "quality")
    overall = between(root, "docs/quality.md", "overall")
    assert "| adapruner | +3.00 | +3.00 | 2 | 0 | 2 |" in overall
    assert "| AUM | +4.00 | +4.00 | 2 | 0 | 2 |" in overall
    assert "DUAL" not in overall
    assert "**6.**" in between(root, "docs/quality.md", "aims")
    assert "clean, to random" in between(root, TABLES, "aims")
    costs = between(root, TABLES, "cost of digits")
    assert "| EL2N | same epochs | 0.95 | 0.25 | 1.05 | 0.8 trainings |" in costs
    assert "| AUM | same epochs | 1.70 | 1.00 | 1.80 | 3.3 trainings |" in costs
    assert "| random | same epochs | 0.70 | 0.00 | 0.80 |  |" in costs
    assert "| adapruner | same epochs | 1.60 | 0.90 | 2.20 | 3.0 trainings |" in costs
    assert "| InfoBatch |" not in costs
    for empty in (CIFAR, "transfer", "probe"):
        assert between(root, TABLES, empty) == ""
    assert between(root, TABLES, "kept") == "**Not yet measured.**"
    assert (root / "docs" / "images" / "quality.png").stat().st_size > 0


def test_the_pages_without_any_rows(root):
    report.main(root / "results", root)
    assert "not run" in between(root, "docs/quality.md", "aims")
    assert between(root, "docs/quality.md", "short selections") == ""
    assert between(root, TABLES, "digits") == ""
    assert not (root / "docs" / "images" / "quality.png").exists()


def test_conditions_name_the_best_rival_of_the_same_seeds():
    made = some_rows() + five("adapruner 0.1.0", 0.5, 70.0)
    made += [r for r in five("DUAL", 0.7, 99.0) if r["seed"] < 4]  # one seed is missing
    made += five("adapruner", 0.5, 60.0, protocol="joint")
    made += five("random each epoch", 0.5, 61.0, protocol="joint")
    made += five("SeTa", 0.5, 62.0, protocol="joint")
    lines = overview.conditions(made).splitlines()
    full = "92.00 ± 0.71 | 5 |"
    best = "86.00 ± 0.71 (AUM)"
    assert f"| digits, clean | 0.7 | 85.00 ± 0.71 |  | 82.00 ± 0.71 | {best} | {full}" in lines
    former = "85.00 ± 0.71 | 72.00 ± 0.71 | 82.00 ± 0.71"
    assert f"| digits, clean | 0.5 | {former} | {best} | {full}" in lines
    joint = "62.00 ± 0.71 |  | 63.00 ± 0.71 | 64.00 ± 0.71 (SeTa)"
    assert f"| digits, clean, joint | 0.5 | {joint} | {full}" in lines


def test_short_selections_are_set_beside_a_random_set():
    made = some_rows() + five("adapruner, 1 epoch", 0.7, 79.0)
    line = overview.short_runs(made).splitlines()[2]
    gains = "-1.00 [-1.00, -1.00] |  |  |  |  |  | **+3.00 [+3.00, +3.00]**"
    assert line == f"| kept 0.7 | {gains} |"


def test_noises_at_one_ratio_share_a_table():
    made = []
    for noise, bad in (("symmetric 0.1", 0.1), ("long-tail 0.05", 0.0)):
        made += five("full", 1.0, 90.0, noise=noise, bad=bad, bad_among_kept=bad)
        made += five("random", 0.7, 80.0, noise=noise, bad=bad, bad_among_kept=bad)
        made += five("adapruner", 0.7, 81.0, noise=noise, bad=bad, bad_among_kept=bad / 2)
    page = report.sections(made)
    assert "### keep ratio 0.7, retrained, same epochs" in page
    accuracy, bad = page.split("Bad samples")
    assert "| | symmetric 0.1 | long-tail 0.05 |" in accuracy
    assert "| adapruner | 5.00 ± 0.00 |" in bad
    assert "long-tail" not in bad.split("P, cpu")[0]
    assert "Balanced accuracy" in report.details(made)


def test_the_runs_of_a_gpu_have_a_section_where_there_are_any(root):
    def drawn(device):
        made = five("full", 1.0, 93.0, dataset="cifar10") + five(
            "random", 0.7, 90.0, dataset="cifar10"
        )
        made += five("adapruner", 0.7, 92.0, dataset="cifar10")
        made += five("random", 0.7, 40.0, dataset="cifar10-1000 tiny")  # a rehearsal
        seconds = {"seconds": 2.5, "device": device}
        write(root / "results" / "gpu" / "quality.jsonl", [row | seconds for row in made])
        report.main(root / "results" / "quality", root)
        return between(root, TABLES, "gpu")

    assert drawn("cpu") == ""
    page = drawn("H")
    assert page.startswith("## CIFAR-10 on a GPU")
    assert "takes 2.5 s" in page
    assert "| adapruner | 94.00 ± 0.71<br>**+2.00 [+2.00, +2.00]** |" in page
    assert "| adapruner | -1.00 [-1.00, -1.00] |" in page  # to all data
    assert "P, H, torch" in page
    assert "40.00" not in page
    (root / "results" / "gpu" / "quality.jsonl").unlink()
    report.main(root / "results" / "quality", root)
    assert between(root, TABLES, "gpu") == ""


def test_other_networks_and_probes():
    made = five("full", 1.0, 70.0) + five("random", 0.7, 60.0) + five("adapruner", 0.7, 62.0)
    other = [r | {"dataset": "letter deep"} for r in made]
    both = [r | {"dataset": "letter shallow", "accuracy": r["accuracy"] / 2} for r in made] + other
    assert report.transfer(some_rows()) == ""
    text = report.transfer(both + some_rows())
    assert "letter, clean, difference to random, n = 5:" in text
    assert "| | shallow, 0.7 | deep, 0.7 |" in text
    assert "| full | **+5.00 [+5.00, +5.00]** | **+10.00 [+10.00, +10.00]** |" in text
    assert "| adapruner | **+1.00 [+1.00, +1.00]** | **+2.00 [+2.00, +2.00]** |" in text
    signs = [r | {"dataset": "traffic residual"} for r in made]
    assert report.transfer(signs + other).count("difference to random") == 2
    assert report.probe(some_rows()) == ""
    probed = [r | {"probe_accuracy": r["accuracy"] - 30} for r in some_rows()]
    cell = "55.00 ± 0.71<br>-7.00 [-7.00, -7.00]"
    assert f"| adapruner | {cell} | {cell} |" in report.probe(probed)


def test_a_run_that_is_still_under_way():
    """A method without its rivals, a noise without training on everything, a single seed."""
    page = report.sections([row("adapruner", 0.7, 0, 50.0), row("adapruner", 0.5, 0, 40.0)])
    assert "| adapruner | 50.00 | 40.00 |" in page
    joint = row("adapruner", 0.7, 0, 50.0, protocol="joint", noise="symmetric 0.2", bad=0.2)
    assert "| adapruner | 50.00 |" in report.sections([joint])
    assert report.sections([row("full", 1.0, 0, 50.0)]).startswith("P, cpu")


def test_rivals_come_first_then_ours_then_others_by_name():
    names = ["zeta", "random, right ones only", "adapruner", "alpha", "random"]
    assert markdown.order_of([*names, "random"]) == [
        "random", "adapruner", "random, right ones only", "alpha", "zeta",
    ]  # fmt: skip
