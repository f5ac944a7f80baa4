"""The texts, numbers and tables of a report, all read from the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adapruner.pruning.doubts import small_classes
from adapruner.pruning.selection import keep_count
from adapruner.report.values import (
    ABSENT,
    class_counts,
    class_name,
    compared,
    count,
    duration,
    known_paths,
    number,
    setting,
    share,
    size,
)
from adapruner.results.reasons import MEANINGS, reason_counts

if TYPE_CHECKING:
    from adapruner.report.gallery import Gallery
    from adapruner.results.original import Found
    from adapruner.results.result import PruneResult

MOST_ROWS = 1000  # rows of a table in the page; a result may list millions of samples


class Tile(NamedTuple):
    """A number in the headline with its meaning."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Table:
    """Cells as text. ``text_columns`` are aligned left and may wrap. Other columns are numbers."""

    columns: list[str]
    rows: list[list[str]]
    text_columns: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """The texts at the top of the report."""

    kept: str
    total: str
    kept_share: str
    pruned_share: str
    percent: float  # length of the bar
    asked: str
    dataset: str
    selection: str
    fit: str  # "" where the history does not tell
    tiles: list[Tile]


def headline(result: PruneResult) -> Headline:
    """The number of kept samples, and the savings."""
    kept, total = result.indices.numel(), result.num_samples
    return Headline(
        kept=count(kept),
        total=count(total),
        kept_share=share(kept, total),
        pruned_share=share(total - kept, total),
        percent=100 * kept / total if total else 100,
        asked=f"{result.keep_ratio:g}",
        dataset=_dataset(result),
        selection=_selection(result),
        fit=result.fit,
        tiles=_tiles(result),
    )


def _dataset(result: PruneResult) -> str:
    parts = [str(result.dataset.get(key) or "") for key in ("kind", "root")]
    names = result.dataset.get("class_names")
    if names:
        parts.append(f"{count(len(names))} classes" if len(names) > 1 else "1 class")
    return " · ".join(part for part in parts if part) or "unnamed dataset"


def _selection(result: PruneResult) -> str:
    if result.selected_epoch is not None:
        return f"epoch {result.selected_epoch}, counted from 0, chosen on held-out data"
    if result.partial:
        return f"by {_counted(len(result.history), 'epoch')} of the run, which had not ended"
    return "the last one, at the end of the run"


def warnings(result: PruneResult) -> list[str]:
    """What a reader of the result should know before use; empty for a result without faults."""
    found = [f"{text[:1].upper()}{text[1:]}." for text in result.warnings]
    if result.run_keep_ratio != result.keep_ratio:
        found.append(
            f"The kept set was taken from a run at keep ratio {result.run_keep_ratio:g}. A run at "
            f"{result.keep_ratio:g} would keep other samples in part."
        )
    if result.forced:
        found.append(_forced(result))
    wanted = keep_count(result.keep_ratio, result.num_samples)
    if wanted > result.indices.numel():
        found.append(
            f"Fewer samples are kept than asked for: {count(result.indices.numel())} of "
            f"{count(wanted)}. No more can be read."
        )
    if result.not_finite:
        found.append(
            f"{_counted(len(result.not_finite), 'sample')} had a loss that was not finite."
        )
    balance = result.config.get("balance")
    few = small_classes(result.targets, result.indices, balance)
    if few is not None and few not in result.warnings:  # a result of an earlier version
        found.append(f"{few}.")
    return found


def _counted(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def _forced(result: PruneResult) -> str:
    held = sum(entry.get("decision") in ("pause", "back off") for entry in result.history)
    epochs = f" It paused or backed off in {held} of {len(result.history)} epochs." if held else ""
    return (
        "The keep ratio was forced. The run ended before it trained an epoch at this keep ratio, "
        f"so the last selection was cut to size.{epochs} Use more epochs or a higher keep ratio."
    )


def reasons(result: PruneResult) -> Table:
    """The number of samples of each reason, and its meaning."""
    rows = [
        [name, count(number), share(number, result.num_samples), MEANINGS[name]]
        for name, number in reason_counts(result).items()
    ]
    return Table(["reason", "samples", "share", "meaning"], rows, frozenset({0, 3}))


def _tiles(result: PruneResult) -> list[Tile]:
    saved, total = result.saved, result.num_samples
    samples = saved.get("samples")
    samples = total - result.indices.numel() if samples is None else samples
    num_bytes, read, seconds = (saved.get(key) for key in ("bytes", "samples_read", "seconds"))
    read_full, seconds_full = saved.get("samples_read_full"), saved.get("seconds_full")
    return [
        Tile("Samples saved", count(samples), f"{share(samples, total)} of {count(total)}"),
        Tile("Disk saved", size(num_bytes), "the files of the pruned samples")
        if num_bytes is not None
        else Tile("Disk saved", ABSENT, "not known"),
        _cost("Samples read by the run", read, read_full, count, ""),
        _cost("Time of the run", seconds, seconds_full, duration, "estimated "),
    ]


def _cost(label: str, value: Any, full: Any, text: Callable[[float], str], about: str) -> Tile:
    if value is None:
        return Tile(label, ABSENT, "not recorded")
    if full is None:
        return Tile(label, text(value), "cost of an ordinary run not recorded")
    detail = f"{compared(value, full)} an ordinary run ({about}{text(full)})"
    return Tile(label, text(value), detail)


def _cut(rows: Iterable[Sequence[str]], total: int, where: str) -> tuple[list[list[str]], str]:
    """The first ``MOST_ROWS`` rows, and a note on the rows left out."""
    shown = [list(row) for _, row in zip(range(MOST_ROWS), rows, strict=False)]
    left = total - len(shown)
    return shown, f"{count(left)} more are in the result, in {where}." if left else ""


def classes(result: PruneResult) -> Table | None:
    """Kept samples per class, the class with the smallest share first; None without targets."""
    if result.targets is None or not result.num_samples:
        return None
    labels, totals, kept = (column.tolist() for column in class_counts(result))
    order = sorted(range(len(labels)), key=lambda place: kept[place] / totals[place])
    rows = (
        [
            class_name(result, labels[place]),
            count(kept[place]),
            count(totals[place]),
            share(kept[place], totals[place]),
        ]
        for place in order
    )
    shown, note = _cut(rows, len(labels), "targets and indices")
    return Table(["class", "kept", "samples", "share kept"], shown, frozenset({0}), note)


def _with_paths(table: Table, result: PruneResult, found: Found, indices: Sequence[int]) -> Table:
    """``table`` with the path of each sample after the index, where paths are known."""
    shown = np.array(indices[: len(table.rows)], dtype=np.int64)
    paths = known_paths(result, found.source, shown)
    if not paths:
        return table
    rows = [[row[0], path, *row[1:]] for row, path in zip(table.rows, paths, strict=True)]
    moved = frozenset({1} | {place + 1 for place in table.text_columns})
    return Table([table.columns[0], "path", *table.columns[1:]], rows, moved, table.note)


def unreadable(result: PruneResult, found: Found) -> Table:
    """The unreadable samples, with the reasons."""
    rows = ([str(index), reason] for index, reason in result.unreadable)
    shown, note = _cut(rows, len(result.unreadable), "unreadable")
    table = Table(["index", "reason"], shown, frozenset({1}), note)
    return _with_paths(table, result, found, [index for index, _ in result.unreadable])


def not_finite(result: PruneResult, found: Found) -> Table:
    """The samples that had a loss that was not finite."""
    targets = result.targets
    rows = (
        [
            str(index),
            ABSENT if targets is None else class_name(result, int(targets[index])),
            number(float(result.gate_logits[index])),
        ]
        for index in result.not_finite
    )
    shown, note = _cut(rows, len(result.not_finite), "not_finite")
    table = Table(["index", "class", "score"], shown, frozenset({1}), note)
    return _with_paths(table, result, found, result.not_finite)


def listing(gallery: Gallery) -> Table:
    """The samples of a gallery as a table, for a gallery without pictures."""
    columns = ["index", "class", "predicted", "reason", "score", "loss", "relative loss"]
    rows = [
        [str(s.index), s.class_name, s.predicted, s.reason, s.score, s.loss, s.relative]
        for s in gallery.samples
    ]
    if any(sample.path for sample in gallery.samples):
        columns.append("path")
        rows = [[*row, s.path] for row, s in zip(rows, gallery.samples, strict=True)]
    return Table(columns, rows, frozenset({1, 2, 3, 7}))


def settings(result: PruneResult) -> Table:
    """Settings of the run, its dataset, and versions of the software."""
    dataset = {key: value for key, value in result.dataset.items() if key != "class_names"}
    groups = {
        "run": result.config,
        "dataset": {**dataset, "samples": result.num_samples, "fingerprint": result.fingerprint},
        "versions": result.versions,
    }
    rows = [
        [group, str(name), setting(value)]
        for group, entries in groups.items()
        for name, value in sorted(entries.items())  # as in a loaded result
    ]
    return Table(["group", "name", "value"], rows, frozenset({0, 1, 2}))


def _fixed(places: int) -> Callable[[float], str]:
    """A function that writes numbers with a fixed number of decimal places."""
    return lambda value: f"{value:.{places}f}" if math.isfinite(value) else number(value)


_HISTORY: dict[str, tuple[str, Callable[[Any], str]]] = {
    "epoch": ("epoch", str),
    "phase": ("phase", str),
    "kept": ("kept", count),
    "explored": ("explored", count),
    "samples_read": ("read", count),
    "keep_ratio": ("scheduled", _fixed(3)),
    "slope": ("slope", _fixed(2)),
    "mean_gate": ("mean gate", _fixed(3)),
    "open_share": ("open gates", _fixed(3)),
    "fitted": ("fitted", _fixed(3)),
    "chance": ("chance", _fixed(3)),
    "neighbours": ("neighbours", _fixed(3)),
    "training_loss": ("training loss", number),
    "validation_loss": ("held-out loss", number),
    "decision": ("decision", str),
    "seconds": ("seconds", _fixed(1)),
}
_HISTORY_TEXT = ("phase", "decision")


def history(result: PruneResult) -> Table:
    """A row per epoch, counted from 0. Columns without a value are left out."""
    keys = [key for key in _HISTORY if any(entry.get(key) is not None for entry in result.history)]
    rows = [[_cell(key, entry.get(key)) for key in keys] for entry in result.history]
    text = frozenset(place for place, key in enumerate(keys) if key in _HISTORY_TEXT)
    return Table([_HISTORY[key][0] for key in keys], rows, text, "Epochs are counted from 0.")


def _cell(key: str, value: Any) -> str:
    return ABSENT if value is None else _HISTORY[key][1](value)
