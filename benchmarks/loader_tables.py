"""Tables of the loaders: epochs over the keep ratio, rivals, a new selection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .inputs import OURS
from .tables import factor, machine, time

# From a benchmark's name, whose parts come in any order.
PICTURES = ("CIFAR-10", "256 to 512 pixels")
KINDS = ("folder", "shards")
CURVES = ("CIFAR-10, shards", "256 to 512 pixels, folder")


def rows(
    results: dict[str, Any], test: str, kinds: tuple[str, ...] = KINDS
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a test as "pictures, kind", and their facts; by ratio, the largest first."""
    found = [(name, row) for name, row in results["rows"].items() if name.startswith(f"{test}[")]
    for pictures in PICTURES:
        for kind in kinds:
            these = [row for name, row in found if pictures in name and kind in name]
            for row in sorted(these, key=lambda row: -row.get("ratio", 1.0)):
                yield f"{pictures}, {kind or 'FFCV'}", row


def epoch_curves(results: dict[str, Any]) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Of small images in shards and large ones in a folder: loader to {ratio: seconds}, ours first.

    Ours are those of test_epoch, with a rival at every ratio that it was timed at.
    """
    curves: dict[str, dict[str, dict[float, list[float]]]] = {}
    for title, row in rows(results, "epoch"):
        if title in CURVES:
            timings = row["rivals"].items()
            curves[title] = {OURS: {_ratio(name): timing["seconds"] for name, timing in timings}}
    for title, row in rows(results, "rivals"):
        for name, timing in row["rivals"].items():
            if title in curves and name != OURS:
                curves[title].setdefault(name, {})[row["ratio"]] = timing["seconds"]
    return curves


def _summary_table(results: dict[str, Any]) -> str:
    """Ours at the keep ratios, and the rivals at 1, in a row for each kind of images."""
    rivals = {title: row["rivals"] for title, row in rows(results, "rivals") if row["ratio"] == 1}
    epochs = list(rows(results, "epoch"))
    ratios = ", ".join(f"{_ratio(name):g}" for name in epochs[0][1]["rivals"])
    lines = [
        f"| | images a second | time of an epoch at keep ratio {ratios} "
        "| time of other loaders at 1 as a multiple of ours |",
        "|---|---|---|---|",
    ]
    for title, row in epochs:
        shares = [f"{timing['times_first'][1]:.2f}" for timing in row["rivals"].values()]
        others = [
            f"{name} **{factor(timing['times_first'][1])}**"
            for name, timing in rivals.get(title, {}).items()
            if name != OURS
        ]
        rate = row["images"] / row["rivals"][OURS]["seconds"][1]
        lines.append(f"| {title} | {rate:,.0f} | {', '.join(shares)} | {', '.join(others)} |")
    about = machine(results["provenance"])
    lines.append(f"\nJPEGs decoded and augmented on the CPU, two threads or two workers ({about}).")
    return "\n".join(lines)


def loader_tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/performance.md, by marker."""
    return {
        "loader": _summary_table(results),
        "loader epoch": _epoch_table(results),
        "loader rivals": _rivals_table(results),
        "loader selection": _selection_table(results),
    }


def remote_table(results: dict[str, Any]) -> str:
    """The table of docs/remote.md."""
    lines = [
        "| | images | keep ratio | | time of an epoch, median [quartiles] "
        "| as a multiple of ours [quartiles] | fetched | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pictures in PICTURES:
        found = [row for name, row in results["rows"].items() if pictures in name]
        for row in sorted(found, key=lambda row: -row["ratio"]):
            first = f"{pictures} | {row['images']:,} | {row['ratio']:g}"
            for name, timing in row["rivals"].items():
                lines.append(
                    f"| {first} | {name} | {_times(timing)} | {_multiple(timing)} "
                    f"| {_bytes(row['bytes_read'][name])} | {timing['n']} |"
                )
                first = " | | "
    return "\n".join([*lines, f"\n{machine(results['provenance'])}."])


def _epoch_table(results: dict[str, Any]) -> str:
    lines = [
        "| | images | keep ratio | median [quartiles] | share of the epoch at 1 [quartiles] "
        "| kept images a second | read from disk | by calls of read | n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, row in rows(results, "epoch"):
        first = f"{title} | {row['images']:,}"
        for name, timing in row["rivals"].items():
            low, share, high = timing["times_first"]
            ratio, read = _ratio(name), row["bytes_read"][name]
            rate = ratio * row["images"] / timing["seconds"][1]
            lines.append(
                f"| {first} | {ratio:g} | {_times(timing)} | {share:.3f} [{low:.3f}, {high:.3f}] "
                f"| {rate:,.0f} | {_bytes(read['disk'])} | {_bytes(read['calls'])} "
                f"| {timing['n']} |"
            )
            first = " | "
    return "\n".join([*lines, f"\n{machine(results['provenance'])}."])


def _rivals_table(results: dict[str, Any]) -> str:
    lines = [
        "| | keep ratio | | median [quartiles] | as a multiple of ours [quartiles] "
        "| kept images a second | read from disk | by calls of read | memory | n |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, row in [*rows(results, "rivals"), *rows(results, "ffcv", ("",))]:
        first = f"{title} | {row['ratio']:g}"
        for name, timing in row["rivals"].items():
            read = row["bytes_read"][name]
            lines.append(
                f"| {first} | {name} | {_times(timing)} | {_multiple(timing)} "
                f"| {_rate(row, name)} | {_bytes(read['disk'])} | {_bytes(read['calls'])} "
                f"| {_bytes(row['memory'][name])} | {timing['n']} |"
            )
            first = " | "
    return "\n".join([*lines, f"\n{machine(results['provenance'])}."])


def _selection_table(results: dict[str, Any]) -> str:
    lines = ["| | | median [quartiles] | as a multiple of ours [quartiles] | n |"]
    lines.append("|---|---|---|---|---|")
    for title, row in rows(results, "new_selection"):
        for name, timing in row["rivals"].items():
            lines.append(
                f"| {title} | {name} | {_times(timing)} | {_multiple(timing)} | {timing['n']} |"
            )
            title = ""
    return "\n".join([*lines, f"\n{machine(results['provenance'])}."])


def _ratio(name: str) -> float:
    found = re.fullmatch(r"ratio (.*)", name)
    return float(found[1]) if found else 1.0


def _rate(row: dict[str, Any], name: str) -> str:
    return f"{row['ratio'] * row['images'] / row['rivals'][name]['seconds'][1]:,.0f}"


def _times(timing: dict[str, Any]) -> str:
    lower, median, upper = timing["seconds"]
    return f"{time(median)} [{time(lower)}, {time(upper)}]"


def _multiple(timing: dict[str, Any]) -> str:
    lower, median, upper = timing["times_first"]
    return f"{factor(median)} [{factor(lower)}, {factor(upper)}]"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
