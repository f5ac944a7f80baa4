"""The subcommands ``show`` and ``info`` of a result: text about its samples and its run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np

from adapruner.cli.console import say
from adapruner.data.sources.base import Source
from adapruner.results.export import find_source
from adapruner.results.reasons import MEANINGS, reason_counts, samples_of
from adapruner.results.result import PruneResult
from adapruner.results.table import rows_of, sample_table

_SHOWN = (
    *("index", "class", "label", "predicted_class", "predicted", "reason", "score", "last_loss"),
    *("relative_loss", "epochs_seen", "path"),
)
_TITLES = {"relative_loss": "relative", "last_loss": "loss", "epochs_seen": "seen"}
_TITLES |= {"predicted_class": "predicted"}
_INSTEAD = {"label": "class", "predicted": "predicted_class"}  # a name says more than a number
_TEXT = ("class", "predicted_class", "reason", "path", "problem")
MOST_LISTED = 20  # samples, where --top does not say


def show(result: PruneResult, arguments: Namespace, source: Source | None) -> None:
    """Print the number of samples of each reason, or the samples of one reason, or the suspects.

    Raises:
        OSError, ValueError: the message is for users.
    """
    if not arguments.suspects and arguments.reason is None:
        if arguments.top is not None:
            raise ValueError("--top N is for a list of samples; give --reason or --suspects too")
        say("\n".join(_reasons(result)))
        return
    if arguments.suspects:
        _check_classes_known(result)
        order = result.suspects().indices.numpy()
    else:
        order = samples_of(result, arguments.reason.replace("-", " "))
    first = order[: arguments.top or MOST_LISTED]
    say("\n".join(_table(result, first, source)))
    if len(order) > len(first):
        say(f"{len(order) - len(first):,} more; --top N shows N")


def describe(result: PruneResult) -> str:
    """Lines about a result: what it keeps, of which dataset, and by which run."""
    config, dataset, saved = result.config, result.dataset, result.saved
    names = dataset.get("class_names")
    lines = [
        ("kept", f"{len(result.indices):,} of {result.num_samples:,} samples"),
        ("keep ratio", _ratio(result)),
        ("dataset", dataset.get("kind")),
        ("place", dataset.get("root")),
        ("classes", None if not names else f"{len(names):,}"),
        ("fingerprint", result.fingerprint or None),
        ("method", config.get("method")),
        ("epochs", config.get("epochs")),
        ("seed", config.get("seed")),
        ("selection", _selection(result)),
        ("samples read", _reads(saved)),
        ("seconds", None if "seconds" not in saved else f"{saved['seconds']:,.1f}"),
        ("not finite", len(result.not_finite) or None),
        ("made with", ", ".join(f"{k} {v}" for k, v in sorted(result.versions.items())) or None),
    ]
    text = [f"{name:<17}{value}" for name, value in lines if value is not None]
    return "\n".join([*text, "reasons", *_counts(result)])


def _ratio(result: PruneResult) -> str:
    if result.run_keep_ratio == result.keep_ratio:
        return f"{result.keep_ratio:g}"
    return f"{result.keep_ratio:g}, taken from a run at {result.run_keep_ratio:g}"


def _selection(result: PruneResult) -> str:
    if result.selected_epoch is not None:
        return f"of epoch {result.selected_epoch}, counted from 0, chosen on held-out data"
    return "of the last epoch" + ("; the run never trained at this ratio" * result.forced)


def _reads(saved: dict[str, Any]) -> str | None:
    if "samples_read" not in saved:
        return None
    read, full = saved["samples_read"], saved["samples_read_full"]
    return f"{read:,}, {100 * read / max(full, 1):.1f} % of an ordinary run"


def _counts(result: PruneResult) -> list[str]:
    total = max(result.num_samples, 1)
    return [
        f"  {reason:<15}{count:>12,}  {100 * count / total:5.1f} %"
        for reason, count in reason_counts(result).items()
    ]


def _reasons(result: PruneResult) -> list[str]:
    lines = _counts(result)
    try:
        _check_classes_known(result)
        lines.append(f"  {'suspects':<15}{len(result.suspects().indices):>12,}  wrong labels?")
    except ValueError as error:
        lines.append(f"  no suspects: {error}")
    meanings = [
        fill(f"{name}: {MEANINGS[name]}", 80, initial_indent="  ", subsequent_indent="    ")
        for name in reason_counts(result)
    ]
    return [*lines, *meanings, "list samples with --reason REASON or --suspects"]


def _check_classes_known(result: PruneResult) -> None:
    if result.targets is None:
        raise ValueError("suspects need the classes of the samples; the result has none")


def _table(result: PruneResult, order: np.ndarray, source: Source | None) -> list[str]:
    """The samples at ``order`` as lines of aligned columns."""
    if not len(order):
        return ["no samples"]
    table = sample_table(result, find_source(result, source, needed="csv"))
    shown = [name for name in _SHOWN if name in table and _INSTEAD.get(name) not in table]
    part = {name: table[name] for name in ("index", *shown[1:])}
    problems = dict(result.unreadable)
    if not problems.keys().isdisjoint(order.tolist()):
        part["problem"] = [problems.get(index, "") for index in range(result.num_samples)]
    rows = [
        [_cell(name, value) for name, value in zip(part, row, strict=True)]
        for row in rows_of(part, order)
    ]
    titles = [_TITLES.get(name, name) for name in part]
    left = [name in _TEXT for name in part]
    return _aligned([titles, *rows], left)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("score", "last_loss", "relative_loss"):
        return f"{float(value):.3f}"
    return str(value)


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[bool]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
