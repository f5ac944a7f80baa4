"""Runs of the other tasks: what is skipped, what is left to make, and the tables."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import cifar
from benchmarks.quality.table import constants_of
from benchmarks.quality.tasks.run import TASKS, Case, key, lacking, table, ways_left

CASE = Case(0.7, 10)


def row(method: str, value: float = 0.5, **more: Any) -> dict[str, Any]:
    about = {
        "machine": {"processor": "a processor", "threads": 1},
        "versions": {"torch": "2"},
        "date": "2026-01-01",
        "commit": "abc",
    }
    return about | {
        "task": "text",
        "method": method,
        "constants": constants_of(method),
        "protocol": "same epochs",
        "keep_ratio": 1.0 if method == "full" else 0.7,
        "epochs": 10,
        "seed": 0,
        "metric": "accuracy",
        "samples": 100,
        "value": value,
        **more,
    }


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.folder])
def test_a_task_without_its_data_is_skipped_with_a_reason(task: str, tmp_path: Path) -> None:
    reason = lacking(task, tmp_path)
    assert reason is not None
    assert "is not installed" in reason or str(tmp_path / TASKS[task].folder) in reason


def test_a_task_that_makes_its_data_is_not_skipped(tmp_path: Path) -> None:
    assert lacking("regression", tmp_path) is None


@pytest.mark.parametrize(
    ("made", "ways"),
    [
        ([], 4),
        (["random"], 4),
        (["random", "full"], 2),
        (["full"], 3),
        (["adapruner", "random", "full"], 0),
    ],
)
def test_rows_that_are_there_are_not_made_again(made: list[str], ways: int) -> None:
    done = {key(row(method)) for method in made}
    assert ways_left("text", CASE, 0, "adapruner", done) == ways


def test_training_on_everything_is_the_same_at_every_keep_ratio_and_warm_up() -> None:
    done = {key(row(method)) for method in ("random", "full", "adapruner")}
    assert ways_left("text", CASE._replace(keep_ratio=0.5), 0, "adapruner", done) == 3
    assert ways_left("text", CASE._replace(warmup_epochs=1), 0, "adapruner", done) == 2
    assert ways_left("text", CASE._replace(epochs=3), 0, "adapruner", done) == 4
    assert ways_left("text", CASE, 1, "adapruner", done) == 4


def test_wrong_labels_are_another_case_with_rivals_and_a_table_of_its_own() -> None:
    made = [row("random"), row("full"), row("adapruner")]
    spoiled = [row(method, 0.75, wrong_labels=0.2) for method in ("full", "random")]
    case = CASE._replace(wrong_labels=0.2)
    assert ways_left("text", case, 0, "adapruner", {key(r) for r in made}) == 4
    assert ways_left("text", case, 0, "adapruner", {key(r) for r in made + spoiled}) == 2
    titles = [line for line in table(made + spoiled).splitlines() if line.startswith("**text**")]
    assert [", 20 % wrong labels" in title for title in titles] == [False, True]


def test_rows_of_other_constants_are_made_again() -> None:
    done = {key(row("random")), key(row("full")), key(row("adapruner", constants="others"))}
    assert ways_left("text", CASE, 0, "adapruner", done) == 2


def test_each_keep_ratio_and_number_of_epochs_has_a_table_with_all_data() -> None:
    made = [
        row(method, value, seed=seed, keep_ratio=1.0 if method == "full" else ratio, epochs=epochs)
        for seed in range(2)
        for epochs in (2, 3)
        for ratio in (0.7, 0.5)
        for method, value in (("full", 0.75), ("adapruner", 0.5), ("random", 0.25))
    ]
    made.append(row("adapruner", 0.5, epochs=2, warmup_epochs=1))
    text = table(made)
    titles = [line for line in text.splitlines() if line.startswith("**text**")]
    assert [
        (f"ratio {r}," in t, f" {e} epochs" in t)
        for t, (e, r) in zip(titles, ((2, 0.7), (2, 0.5), (3, 0.7), (3, 0.5)), strict=True)
    ] == [(True, True)] * 4
    assert (
        text.count("| full | same epochs | 2 | 75.00 ± 0.00 | **+50.00 [+50.00, +50.00]** |") == 4
    )
    assert text.count("| adapruner, warm-up of 1 epoch | same epochs | 1 | 50.00 |") == 1
    assert text.count("| adapruner | same epochs | 2 | 50.00 ± 0.00 |") == 4


def test_packed_images_become_a_folder_of_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    labels = [1, 0, 1, 1]
    files = []
    for shade in range(4):
        file = io.BytesIO()
        image.new("RGB", (8, 8), (60 * shade, 0, 0)).save(file, "JPEG")
        files.append(file.getvalue())
    ends = np.cumsum([len(file) for file in files])
    index = np.array(
        [(end - len(f), len(f), y) for end, f, y in zip(ends, files, labels, strict=True)]
    )
    packed = tmp_path / "cifar10"
    packed.mkdir()
    for split in cifar.SPLITS:
        (packed / f"{split}.jpegs").write_bytes(b"".join(files))
        np.save(packed / f"{split}.index.npy", index)
    cifar.write_folder(tmp_path / "images", tmp_path, 2)
    for split in cifar.SPLITS:
        found = {
            str(path.relative_to(tmp_path / "images" / split)): path.read_bytes()
            for path in (tmp_path / "images" / split).rglob("*.jpg")
        }
        # Of class 1 the first two, in their order.
        assert found == {"0/00001.jpg": files[1], "1/00000.jpg": files[0], "1/00002.jpg": files[2]}
