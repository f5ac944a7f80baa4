"""Draw the tables and figures of docs/quality.md, and the short table of README.md, from the rows.

    python -m benchmarks.quality.report

Reads the rows of benchmarks/results/quality/; writes what stands between the markers of
docs/quality.md, docs/quality-tables.md and README.md, and docs/images/quality.png.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from ..tables import each, rewrite
from . import aims
from .figures import draw_differences
from .kept import kept_table
from .markdown import cell_difference, cell_mean, counts, grid, order_of, ratios_of
from .overview import FIRST, conditions, floors, overall, rival_of, short, short_runs, tracks
from .run import RESULTS, file_of, key_of, read_rows, run_of
from .static import RECORDED, STATIC
from .statistics import Row, by_seed, estimate, group, paired
from .table import (
    ADAPRUNER,
    GPU,
    JOINT_METHODS,
    RECIPES,
    SELECTED_BY,
    Run,
    constants_of,
)
from .times import times

ROOT = Path(__file__).resolve().parents[2]
Rows = list[Row]
PROTOCOLS = {
    "same epochs": "retrained, same epochs",
    "same steps": "retrained, same steps",
    "joint": "trained jointly",
}


def runs_in(results: Path) -> Rows:
    """The rows of the runs in a folder of results, those of today's recipes and constants."""
    found: Rows = []
    for dataset in RECIPES:
        file = file_of(Run(dataset, "", "", 1.0, "", 0))
        found += rows_of_today(results / file)
    return found


def rows_of_today(path: Path) -> Rows:
    """The rows of a file, those of today's recipes and constants."""
    made = read_rows(path)
    today = [row for row in made if key_of(row) == run_of(row).key()]
    if len(today) < len(made):
        others = len(made) - len(today)
        print(f"{path.name}: {others} rows of other recipes or constants", file=sys.stderr)
    return today


def rows_of_tasks(path: Path) -> Rows:
    """The rows of the other tasks, those of today's constants."""
    return [r for r in read_rows(path) if r.get("constants") == constants_of(r["method"])]


class Block:
    """The runs of one dataset and protocol; ``name`` is the column, ratio or noise."""

    def __init__(self, rows: Iterable[Row], name: str) -> None:
        self.rows, self.name = list(rows), name
        self.cells = group((r for r in self.rows if r["method"] != "full"), "method", name)
        self.full = group((r for r in self.rows if r["method"] == "full"), "noise")

    def of(self, method: str, column: float | str, measure: str = "accuracy") -> dict[int, float]:
        """Training on everything is the same at each ratio."""
        if method == "full":
            noise = column if self.name == "noise" else self.rows[0]["noise"]
            return by_seed(self.full.get(noise, []), measure)
        return by_seed(self.cells.get((method, column), []), measure)

    @property
    def methods(self) -> list[str]:
        return order_of(row["method"] for row in self.rows)

    @property
    def columns(self) -> list[float] | list[str]:
        if self.name == "ratio":
            return ratios_of(self.rows)
        return list(dict.fromkeys(row["noise"] for row in self.rows))

    @property
    def counts(self) -> str:
        return counts(self.rows, self.name)

    def table(self, cell: Callable[[str, float | str], str], *without: str) -> list[str]:
        return [*grid((m for m in self.methods if m not in without), self.columns, cell), ""]

    def above(self, rival: str, measure: str = "accuracy") -> Callable[[str, float | str], str]:
        def cell(method: str, column: float | str) -> str:
            if method == rival:
                return ""
            of = (self.of(name, column, measure) for name in (method, rival))
            return cell_difference(paired(*of))

        return cell

    def means(
        self, measure: str = "accuracy", scale: float = 1, rival: str = ""
    ) -> Callable[[str, float | str], str]:
        """Under the mean, the difference to a rival."""
        differences = self.above(rival, measure)

        def cell(method: str, column: float | str) -> str:
            values = self.of(method, column, measure).values()
            if not values:
                return ""
            below = differences(method, column)
            return cell_mean(estimate(scale * v for v in values)) + (f"<br>{below}" * bool(below))

        return cell

    def share_of_bad(self) -> list[str]:
        """% of the kept that are wrongly labelled or corrupt."""
        block = Block((row for row in self.rows if row["bad"] > 0), self.name)
        if not block.rows:
            return []
        table = block.table(block.means("bad_among_kept", 100), "full")
        return [f"Bad samples among the kept, %, {block.counts}:", "", *table]


def blocks(rows: Rows) -> list[tuple[str, str, Block]]:
    """Title, protocol and runs: over the ratios where there are several, else over the noises."""
    wide, narrow = [], []
    for protocol, title in PROTOCOLS.items():
        # Training on everything stands under the first protocol, and serves all.
        of = [row for row in rows if row["protocol"] == protocol and row["method"] != "full"]
        full = [row for row in rows if row["method"] == "full"]
        single: dict[float, Rows] = {}
        for noise, found in group(of, "noise").items():
            all_data = [row for row in full if row["noise"] == noise]
            if len(ratios := ratios_of(found)) > 1:
                wide.append((f"{noise}, {title}", protocol, Block(all_data + found, "ratio")))
            else:
                single.setdefault(ratios[0], []).extend(all_data + found)
        for ratio, found in single.items():
            narrow.append((f"keep ratio {ratio:g}, {title}", protocol, Block(found, "noise")))
    return wide + narrow


def sections(rows: Rows) -> str:
    """Of one dataset: accuracy and its difference to random, share of the bad."""
    parts = []
    for title, protocol, block in blocks(rows):
        rival = rival_of(protocol)
        caption = f"Accuracy, %, and its difference to {rival}, {block.counts}:"
        parts += [f"### {title}", "", caption, "", *block.table(block.means(rival=rival))]
        if protocol != "joint":
            parts += block.share_of_bad()
    return "\n".join([*parts, *where(rows)])


def details(rows: Rows) -> str:
    """Of one dataset: the difference to all data, balanced accuracy, bad samples of joint runs."""
    parts = []
    for title, protocol, block in blocks(rows):
        caption = f"Difference to all data, points, {block.counts}:"
        parts += [f"### {title}", "", caption, "", *block.table(block.above("full"), "full")]
        if block.name == "noise":
            rival = rival_of(protocol)
            table = block.table(block.means("balanced_accuracy", rival=rival))
            caption = f"Balanced accuracy, %, and its difference to {rival}, {block.counts}:"
            parts += [caption, "", *table]
        if protocol == "joint":
            parts += block.share_of_bad()
    return "\n".join([*parts, *where(rows)])


def costs(rows: Rows) -> str:
    """Samples read and time of the processor, as multiples of those of training on everything,
    medians over the seeds."""
    full = {row["seed"]: row for row in rows if row["method"] == "full"}
    cells = group((row for row in rows if row["method"] != "full"), "protocol", "method")
    lines = []
    methods = order_of({*STATIC, *ADAPRUNER, *JOINT_METHODS})
    for protocol, method in product(("same epochs", "joint"), methods):
        # Training takes as long whoever chose as many samples; scores, what they record.
        scored = protocol == "same epochs" and method in STATIC
        of = cells.get((protocol, "random" if scored else method), [])
        if not of:
            continue

        def times_full(name: str, prefix: str = "", of: Rows = of) -> float:
            return median(row.get(prefix + name, 0.0) / full[row["seed"]][name] for row in of)

        train, seconds = times_full("samples_read"), times_full("cpu_seconds")
        if scored:
            select = to_select = RECORDED.get(method, 1.0)
        else:
            select, to_select = (
                times_full(name, "selection_") for name in ("samples_read", "cpu_seconds")
            )
        pays = f"{select / (1 - train):.1f} trainings" if select else ""
        lines.append(
            f"| {method} | {protocol} | {select + train:.2f} | {select:.2f} "
            f"| {to_select + seconds:.2f} | {pays} |"
        )
    return "\n".join(
        [
            "| | protocol | samples read | of them, to select | time | pays after |",
            "|---" * 6 + "|",
            *lines,
            "",
            f"Medians, n = {len(full)}; " + where(rows)[0],
        ]
    )


def where(rows: Rows) -> list[str]:
    """The machine, the versions and the recipe."""
    abouts = [row["provenance"] for row in rows]
    samples = max(row["samples"] for row in rows)
    recipes = (row["recipe"] for row in rows)
    networks = dict.fromkeys(f"“{r['model']}”, {r['epochs']} epochs" for r in recipes)
    return [
        f"{each(about['processor'] for about in abouts)}, {each(row['device'] for row in rows)}, "
        f"torch {each(about['torch'] for about in abouts)}, "
        f"{max(about['date'] for about in abouts)}, commits "
        f"{each(about['commit'] for about in abouts)} (+: the tree differed); "
        f"{samples:,} samples, network {'; '.join(networks)}."
    ]


def on_gpu(rows: Rows) -> str:
    """The whole section on the runs of a GPU; empty where no GPU has made any."""
    rows = [row for row in rows if row["dataset"] == GPU and row["device"] != "cpu"]
    if not rows:
        return ""
    full = [row["seconds"] for row in rows if row["method"] == "full"]
    takes = f" Training on everything takes {median(full):.1f} s." if full else ""
    about = f"Full CIFAR-10 at 32×32, by `python -m benchmarks.quality.gpu`.{takes}"
    return "\n\n".join(["## CIFAR-10 on a GPU", about, sections(rows), details(rows)])


def transfer(rows: Rows) -> str:
    """Sets selected by one network, others trained on them: the difference to random."""
    found = [row for row in rows if row["dataset"] in SELECTED_BY]
    cells = aims.Cells(found)
    parts = []
    for (own, noise), of in group(
        ({**row, "own": SELECTED_BY[row["dataset"]]} for row in found), "own", "noise"
    ).items():
        columns = {
            f"{dataset.removeprefix(own).strip()}, {ratio:g}": (dataset, ratio)
            for dataset, trained in group(of, "dataset").items()
            for ratio in ratios_of(trained)
        }

        def cell(method: str, column: str, noise: str = noise, columns: Any = columns) -> str:
            dataset, ratio = columns[column]
            place = aims.Place(dataset, "same epochs", noise)
            return cell_difference(cells.minus(place, method, "random", ratio))

        methods = {row["method"] for row in of} - {"random"}
        selected = (row for row in of if row["method"] != "full")
        title = f"{own}, {noise}, difference to random, {counts(selected, 'dataset', 'ratio')}:"
        parts += [title, "", *grid(methods, list(columns), cell), "", *where(of), ""]
    return "\n".join(parts)


def probe(rows: Rows) -> str:
    """Linear probes of the features learned, on another task."""
    parts = []
    probed = (row for row in rows if row.get("probe_accuracy") is not None)
    for dataset, found in group(probed, "dataset").items():
        for title, _, block in blocks(found):
            caption = f"{dataset}, {title}, {block.counts}:"
            parts += [caption, "", *block.table(block.means("probe_accuracy", rival="full"))]
    return "\n".join(parts)


def main(results: Path = RESULTS, root: Path = ROOT) -> None:
    measured = runs_in(results)
    by_dataset = group(measured, "dataset")

    def drawn(draw: Callable[[Rows], str], found: dict[str, Rows], prefix: str) -> dict[str, str]:
        """Of every dataset; what has no rows is empty."""
        return {f"{prefix}{d}": draw(found[d]) if d in found else "" for d in RECIPES}

    checks = aims.checks(measured, rows_of_tasks(results / "tasks.jsonl"))
    timed = group(runs_in(results / "cost"), "dataset")
    pages = {
        "docs/quality.md": {"conditions": conditions(measured), "overall": overall(measured)}
        | {
            "short selections": short_runs(measured),
            "tracks": tracks(measured),
            "floors": floors(measured),
            "aims": aims.verdicts(checks),
        },
        "docs/quality-tables.md": drawn(sections, by_dataset, "")
        | drawn(details, by_dataset, "more of ")
        | drawn(costs, timed, "cost of ")
        | {"aims": aims.figures(checks), "transfer": transfer(measured), "probe": probe(measured)}
        | {"kept": kept_table(results), "times": times(measured)}
        | {"gpu": on_gpu(rows_of_today(results.parent / "gpu" / "quality.jsonl"))},
        "README.md": {"quality": short(measured, FIRST)},
    }
    for name, contents in pages.items():
        markers = set(re.findall(r"<!-- (.+?): begin -->", (root / name).read_text()))
        rewrite(root / name, {m: text for m, text in contents.items() if m in markers})
    draw_differences(measured, root / "docs" / "images" / "quality.png")


if __name__ == "__main__":
    main()
