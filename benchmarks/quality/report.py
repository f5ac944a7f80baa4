"""Draw the tables and figures of docs/quality.md, and the short table of README.md, from the rows.

    python -m benchmarks.quality.report

Reads benchmarks/results/quality/*.jsonl; writes what stands between the markers, and
docs/images/quality-*.png.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from .experimental import VARIANTS
from .figures import draw_differences
from .run import RESULTS, read_rows
from .static import STATIC
from .statistics import Estimate, Row, by_seed, estimate, paired
from .table import JOINT_METHODS, STATIC_METHODS

ROOT = Path(__file__).resolve().parents[2]
Rows = list[Row]
RIVAL = ("random", "random each epoch")  # the one to beat: retrained, joint
RIVALS = [name for name in STATIC if name != "random"]
SEEDS_TO_SHOW = 5  # in the README
COST_AT = 0.7  # the keep ratio whose costs are shown


def group(rows: Iterable[Row], *names: str) -> dict[Any, Rows]:
    groups: dict[Any, Rows] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        groups.setdefault(key if len(names) > 1 else key[0], []).append(row)
    return groups


def cell_mean(found: Estimate) -> str:
    error = f" ± {found.standard_error:.2f}" if found.n > 1 else ""
    return f"{found.mean:.2f}{error}"


def cell_difference(found: Estimate | None) -> str:
    if found is None:
        return ""
    if found.n < 2:
        return f"{found.mean:+.2f}"
    low, high = found.interval
    text = f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 else text


def order_of(methods: Iterable[str]) -> list[str]:
    known = [*STATIC_METHODS, *JOINT_METHODS]
    return sorted(set(methods), key=lambda m: (known.index(m) if m in known else len(known), m))


def counts(rows: Rows) -> str:
    """How many seeds the cells have."""
    sizes = {len(by_seed(cell)) for cell in group(rows, "method", "ratio").values()}
    return f"n = {min(sizes)}" if len(sizes) == 1 else f"n = {min(sizes)} to {max(sizes)}"


def grid(rows: Rows, cell: Callable[[str, float], str]) -> list[str]:
    """A line for each method, a column for each ratio."""
    ratios = sorted({row["ratio"] for row in rows if row["method"] != "full"}, reverse=True)
    lines = [
        "| | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |",
        "|---" * (len(ratios) + 1) + "|",
    ]
    for method in order_of(row["method"] for row in rows):
        cells = " | ".join(cell(method, ratio) for ratio in ratios)
        lines.append(f"| {method} | {cells} |")
    return lines


def block(rows: Rows, full: Rows, rival: str) -> str:
    """Accuracy, and its differences to ``rival`` and to full data, of one protocol and noise."""
    cells = group(rows, "method", "ratio")

    def found(method: str, ratio: float) -> dict[int, float]:
        return by_seed(full if method == "full" else cells.get((method, ratio), []))

    def mean(method: str, ratio: float) -> str:
        values = found(method, ratio)
        return cell_mean(estimate(values.values())) if values else ""

    def against(other: str) -> Callable[[str, float], str]:
        return lambda method, ratio: (
            ""
            if method == other
            else cell_difference(paired(found(method, ratio), found(other, ratio)))
        )

    both = rows + full
    return "\n".join(
        [
            f"Accuracy, %, mean ± standard error, {counts(rows)}:",
            "",
            *grid(both, mean),
            "",
            f"Difference to {rival}, points, paired over seeds [95 % interval]:",
            "",
            *grid(both, against(rival)),
            "",
            "Difference to all data:",
            "",
            *grid(rows, against("full")),
        ]
    )


def narrow(rows: Rows, full: Rows, rival: str) -> str:
    """The same at a single keep ratio: a line for each method, everything beside it."""
    cells = group(rows + full, "method")
    lines = [
        f"Keep ratio {rows[0]['ratio']:g}, {counts(rows)}:",
        "",
        f"| | accuracy, % | balanced accuracy, % | above {rival} | above all data | bad kept, % |",
        "|---" * 6 + "|",
    ]
    for method in order_of(cells):
        found = cells[method]
        ours = by_seed(found)
        means = [
            cell_mean(estimate(scale * row[name] for row in found))
            for name, scale in (("accuracy", 1), ("balanced_accuracy", 1), ("bad_among_kept", 100))
        ]
        above = [
            "" if method == other else cell_difference(paired(ours, by_seed(cells.get(other, []))))
            for other in (rival, "full")
        ]
        lines.append(f"| {method} | " + " | ".join([*means[:2], *above, means[2]]) + " |")
    return "\n".join(lines)


def share_of_bad(rows: Rows) -> str:
    """% of the kept that are wrongly labelled or corrupt."""
    cells = group(rows, "method", "ratio")

    def cell(method: str, ratio: float) -> str:
        found = cells.get((method, ratio), [])
        return cell_mean(estimate(100 * row["bad_among_kept"] for row in found)) if found else ""

    return "\n".join(["Bad samples among the kept, %:", "", *grid(rows, cell)])


def cost(rows: Rows, ratio: float) -> str:
    """Samples read and time, as multiples of training on everything, medians over the seeds."""
    full = {row["seed"]: row for row in rows if row["method"] == "full"}
    lines = ["| | samples read | of them, to select | CPU time | pays after |", "|---" * 5 + "|"]
    cells = group([row for row in rows if row["ratio"] == ratio], "method")
    for method in order_of(cells):
        found = [(row, full[row["seed"]]) for row in cells[method] if row["seed"] in full]
        if not found:
            continue

        def times_full(name: str, prefix: str, found: list[tuple[Row, Row]] = found) -> float:
            return median(row.get(prefix + name, 0.0) / whole[name] for row, whole in found)

        select, train = (times_full("samples_read", prefix) for prefix in ("selection_", ""))
        seconds = sum(times_full("cpu_seconds", prefix) for prefix in ("selection_", ""))
        pays = f"{select / (1 - train):.1f} trainings" if select and train < 1 else ""
        lines.append(f"| {method} | {select + train:.2f} | {select:.2f} | {seconds:.2f} | {pays} |")
    return "\n".join(lines)


def where(rows: Rows) -> str:
    about = rows[-1]["provenance"]
    recipe = rows[-1]["recipe"]
    commits = ", ".join(sorted({row["provenance"]["commit"] for row in rows}))
    samples = max(row["samples"] for row in rows)
    return (
        f"{about['processor']}, {rows[-1]['device']}, torch {about['torch']}, {about['date']}, "
        f"commits {commits} (+: the tree differed); {samples:,} samples, network "
        f"“{recipe['model']}”, {recipe['epochs']} epochs."
    )


def sections(rows: Rows) -> str:
    """All blocks of one dataset."""
    parts = []
    for (protocol, noise), found in group(rows, "protocol", "noise").items():
        full = [r for r in rows if r["method"] == "full" and r["noise"] == noise]
        found = [row for row in found if row["method"] != "full"]
        if not found or not full:
            continue
        rival = RIVAL[protocol == "joint"]
        title = "trained jointly" if protocol == "joint" else f"retrained, {protocol}"
        parts += [f"### {noise}, {title}", ""]
        if len({row["ratio"] for row in found}) == 1:
            parts += [narrow(found, full, rival), ""]
            continue
        parts += [block(found, full, rival), ""]
        if any(row["bad"] > 0 for row in found):
            parts += [share_of_bad(found), ""]
        if noise == "clean":
            title = f"Cost at {COST_AT:g}, as a multiple of training on everything:"
            parts += [title, "", cost(full + found, COST_AT), ""]
    return "\n".join([*parts, where(rows)])


def tried(rows: Rows) -> str:
    """What was tried on the split: the differences alone."""
    parts = []
    for (protocol, noise), found in group(rows, "protocol", "noise").items():
        rival = RIVAL[protocol == "joint"]
        parts += _differences(found, rival, f"{noise}, {protocol}")
        variants = [row for row in found if row["method"] in (*VARIANTS, "adapruner")]
        parts += _differences(variants, "adapruner", f"{noise}, {protocol}")
    return "\n".join([*parts, where(rows)])


def _differences(rows: Rows, rival: str, title: str) -> list[str]:
    others = [row for row in rows if row["method"] not in ("full", rival)]
    if not others:
        return []
    cells = group(rows, "method", "ratio")

    def cell(method: str, ratio: float) -> str:
        ours, theirs = (by_seed(cells.get((m, ratio), [])) for m in (method, rival))
        return cell_difference(paired(ours, theirs))

    return [f"{title}, difference to {rival}, {counts(others)}:", "", *grid(others, cell), ""]


def short(rows: Rows) -> str:
    """For the README: adapruner beside random and the best of the others."""
    lines = ["| | keep ratio | adapruner | random | best other | all data | n |", "|---" * 7 + "|"]
    for (dataset, protocol, noise), found in group(rows, "dataset", "protocol", "noise").items():
        cells = group(found, "method", "ratio")
        if protocol != "same epochs" or ("full", 1.0) not in cells:
            continue
        full = estimate(by_seed(cells["full", 1.0]).values())
        for ratio in sorted({row["ratio"] for row in found} - {1.0}, reverse=True):
            means = {
                method: estimate(by_seed(cell).values())
                for (method, at), cell in cells.items()
                if at == ratio
            }
            others = {m: e for m, e in means.items() if m in RIVALS and e.n >= SEEDS_TO_SHOW}
            ours, random = means.get("adapruner"), means.get("random")
            if not ours or not random or not others or min(ours.n, random.n) < SEEDS_TO_SHOW:
                continue
            best = max(others, key=lambda m: others[m].mean)
            lines.append(
                f"| {dataset}, {noise} | {ratio:g} | {cell_mean(ours)} | {cell_mean(random)} "
                f"| {cell_mean(others[best])} ({best}) | {cell_mean(full)} | {ours.n} |"
            )
    return "\n".join(lines)


def main() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from report import rewrite

    made = [row for path in sorted(RESULTS.glob("*.jsonl")) for row in read_rows(path)]
    measured = [row for row in made if row["measured_on"] == "test"]
    on_split = [row for row in made if row["measured_on"] == "split"]
    document = ROOT / "docs" / "quality.md"
    markers = set(re.findall(r"<!-- (.+?): begin -->", document.read_text()))
    contents = {dataset: sections(rows) for dataset, rows in group(measured, "dataset").items()}
    contents |= {f"tried on {d}": tried(rows) for d, rows in group(on_split, "dataset").items()}
    rewrite(document, {name: text for name, text in contents.items() if name in markers})
    rewrite(ROOT / "README.md", {"quality": short(measured)})
    draw_differences(measured, ROOT / "docs" / "images" / "quality.png")


if __name__ == "__main__":
    main()
