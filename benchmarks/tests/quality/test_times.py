"""What the tables of runs take, against rows worked by hand."""

import pytest

pytest.importorskip("sklearn")
from benchmarks.quality import times
from benchmarks.quality.table import Run, tables

ABOUT = {"provenance": {"processor": "P", "date": "2026-01-02"}}


def row(run, cpu, selection=0.0):
    return run.described() | {"cpu_seconds": cpu, "selection_cpu_seconds": selection} | ABOUT


def test_a_recorded_run_and_a_selection_count_once():
    def run(dataset, method, ratio=0.7):
        return Run(dataset, "same epochs", method, ratio, "clean", 0)

    made = [
        (run("letter", "full", 1.0), 10.0, 0.0),
        (run("letter", "random"), 7.0, 0.0),
        (run("letter", "AUM"), 7.0, 11.0),  # the recorded run, and ranking
        (run("letter", "DUAL"), 7.0, 10.5),
        (run("letter", "adapruner"), 7.0, 9.0),
        (run("letter", "adapruner", 0.5), 5.0, 8.0),
        (run("letter deep", "adapruner"), 20.0, 9.0),  # the selection of the third line above
    ]
    found = [(run, row(run, *seconds)) for run, *seconds in made]
    assert times.seconds_of(found) == 63 + 11 + 9 + 8


def test_a_line_for_each_table_that_was_made():
    short = [run for run in tables()["short"] if run.seed == 0]  # 14
    texts = [run for run in tables()["held-back"] if run.method == "full"]
    texts = [run for run in texts if run.noise == "clean" and run.seed < 5]
    rows = [row(run, 30.0) for run in short] + [row(run, 120.0) for run in texts]
    text = times.times(rows)
    lines = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert lines["| short"] == f"| short | {len(tables()['short'])} | {len(short)} |  | 4 |"
    count = len(tables()["held-back"])
    assert lines["| held-back"] == f"| held-back | {count} | 5 | text 120.0 | 5 |"
    assert "| cifar" not in lines
    assert text.endswith("\n\nP, 2026-01-02.")
    assert times.times([]) == ""


def test_rows_of_other_constants_do_not_count():
    run = Run("letter", "same epochs", "adapruner", 0.7, "clean", 0)
    other = row(run, 5.0) | {"constants": "Method(easy_weight=9)"}
    assert times.times([other]) == ""
