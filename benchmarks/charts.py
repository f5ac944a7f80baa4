"""The pictures drawn from the result files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

OURS, RIVAL = "#0072b2", "#8a8a8a"


def draw_speed(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Rivals' times as multiples of ours on a logarithmic axis: a dot each, a line for quartiles.

    ``rows``: title to {rival: timing}.
    """
    figure = Figure(figsize=(8, 0.34 * len(rows) + 1.1), layout="constrained")
    ax = figure.subplots()
    rivals = list(dict.fromkeys(rival for row in rows.values() for rival in row))
    marks = dict(zip(rivals, "osDv^<>Pp*hX", strict=False))
    for height, row in enumerate(reversed(rows.values())):
        for rival, timing in row.items():
            lower, median, upper = timing["times_first"]
            ax.hlines(height, lower, upper, color=RIVAL, lw=1.5)
            ax.plot(median, height, marks[rival], color=RIVAL if median >= 1 else "#c75400", ms=6)
    ax.axvline(1, color=OURS, lw=2)
    ax.text(1, len(rows) - 0.3, "adapruner", color=OURS, ha="center", va="bottom")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    ax.set_yticks(range(len(rows)), list(reversed(rows)))
    ax.set_ylim(-0.6, len(rows) + 0.2)
    ax.set_xlabel("rival's time as a multiple of ours, median and quartiles")
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    handles = [ax.plot([], [], marks[rival], color=RIVAL, ms=6, label=rival)[0] for rival in rivals]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def draw_growth(rows: list[Mapping[str, Any]], path: Path) -> None:
    """A run's time over the number of samples; and the same per sample of an ordinary run."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    whole, each = figure.subplots(1, 2)
    samples = [row["samples"] for row in rows]
    names = list(rows[0]["rivals"])
    for name, colour in zip(names, (OURS, RIVAL), strict=True):
        seconds = [row["rivals"][name]["seconds"] for row in rows]
        epochs = rows[0]["epochs"]
        whole.plot(samples, [s[1] for s in seconds], "o-", color=colour, label=name, ms=4)
        per_sample = [1e9 * s[1] / (n * epochs) for n, s in zip(samples, seconds, strict=True)]
        each.plot(samples, per_sample, "o-", color=colour, label=name, ms=4)
    ending = [row["seconds_ending_epochs"] for row in rows]
    whole.plot(samples, ending, "o--", color=OURS, ms=4, label="of it, ending its epochs")
    whole.set_yscale("log")
    whole.set_ylabel("seconds of a run")
    each.set_ylabel("nanoseconds per sample and epoch")
    each.set_ylim(0)
    for ax in (whole, each):
        ax.set_xscale("log")
        ax.set_xlabel("samples")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    whole.legend(frameon=False)
    figure.suptitle(f"A run of {rows[0]['epochs']} epochs to 0.7 with a model of six weights")
    figure.savefig(path, dpi=150)
