"""The pictures drawn from the result files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

OURS, RIVAL, AHEAD = "#0072b2", "#8a8a8a", "#c75400"


def draw_speed(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Rivals' times as multiples of ours on a logarithmic axis: a dot each, a line for quartiles.

    ``rows``: title to {rival: timing}.
    """
    lines = [(title, rival, timing) for title, row in rows.items() for rival, timing in row.items()]
    figure = Figure(figsize=(8, 0.21 * len(lines) + 0.9), layout="constrained")
    ax = figure.subplots()
    for height, (_, rival, timing) in enumerate(reversed(lines)):
        lower, median, upper = timing["times_first"]
        colour = AHEAD if median < 1 else RIVAL
        ax.hlines(height, lower, upper, color=colour, lw=1.5)
        ax.plot(median, height, "o", color=colour, ms=5)
        ax.annotate(rival, (upper, height), (6, 0), textcoords="offset points", va="center", size=8)
    ax.axvline(1, color=OURS, lw=2)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    # The title of a row at the first of its rivals.
    titles = ["" if i and lines[i - 1][0] == line[0] else line[0] for i, line in enumerate(lines)]
    ax.set_yticks(range(len(lines)), list(reversed(titles)), fontsize=8)
    ax.set_ylim(-0.8, len(lines) - 0.2)
    ax.set_xlim(right=ax.get_xlim()[1] * 5)  # room for the last name
    ax.set_xlabel("rival's time as a multiple of ours (the blue line), median and quartiles")
    ax.grid(axis="x", alpha=0.3)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
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


def draw_epochs(
    panels: Mapping[str, Mapping[str, Mapping[float, list[float]]]], path: Path
) -> None:
    """The time of an epoch over the keep ratio: ours and the rivals', median and quartiles.

    ``panels``: title to {loader: {keep ratio: quartiles of seconds}}, ours the first.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    for ax, (title, loaders) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        top = 1.1 * max(quartiles[2] for times in loaders.values() for quartiles in times.values())
        below = -top
        for name, times in sorted(loaders.items(), key=lambda item: item[1][max(item[1])][1]):
            ratios = sorted(times)
            colour, width = (OURS, 2.2) if name == next(iter(loaders)) else (RIVAL, 1)
            lower, median, upper = zip(*(times[ratio] for ratio in ratios), strict=True)
            ax.plot(ratios, median, "o-", color=colour, lw=width, ms=4)
            ax.vlines(ratios, lower, upper, color=colour, lw=width)
            below = max(median[-1], below + 0.06 * top)  # names do not lie on each other
            ax.text(1.03, below, name, va="center", size=8, color=colour)
        ax.set_xlim(0, 1.7)
        ax.set_ylim(0, top)
        ax.set_xticks(sorted(next(iter(loaders.values()))))
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("keep ratio")
        ax.set_ylabel("seconds of an epoch")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
