"""The pictures of what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .kept import Look

KEPT, PRUNED, WRONG, CHANCE = "#0072b2", "#c75400", "#1c1c1c", "#8a8a8a"
RIVAL = "#555555"
PERCENT = PercentFormatter(1, decimals=0, symbol="\u202f%")
# Ten that stay apart for the colour-blind, dark and light in turn (after Paul Tol's "muted").
CLASSES = (
    *("#332288", "#88ccee", "#117733", "#ddcc77", "#aa4499"),
    *("#44aa99", "#882255", "#999933", "#cc6677", "#ee8833"),
)
DPI = 120
COLUMNS, SHOWN = 12, 24  # images in a row, and of each kind


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def draw_map(look: Look, names: Sequence[str], points: int, path: Path) -> None:
    """t-SNE of the recorded network's features: the kept filled, the pruned hollow."""
    from sklearn.manifold import TSNE

    count = len(look.kept)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:points]
    made = TSNE(perplexity=30, init="pca", learning_rate="auto", random_state=0, n_jobs=1)
    place = made.fit_transform(look.features[chosen].numpy())
    kept, label = look.kept[chosen].numpy(), look.data.y[chosen].numpy()
    colour = np.array(CLASSES)[label]
    figure = Figure(figsize=(6.6, 6.4), layout="constrained")
    ax = figure.subplots()
    ax.scatter(*place[kept].T, s=11, c=colour[kept], lw=0, alpha=0.85)
    ax.scatter(*place[~kept].T, s=15, facecolors="none", edgecolors="#3a3a3a", lw=0.7)
    for c, name in enumerate(names):
        if (label == c).any():
            text = ax.text(*np.median(place[label == c], axis=0), name, size=9)
            text.set(color="black", ha="center", va="center")
            text.set_bbox(
                {
                    "boxstyle": "round,pad=0.25",
                    "facecolor": (1, 1, 1, 0.85),
                    "edgecolor": CLASSES[c],
                    "linewidth": 1.8,
                }
            )
    ax.scatter([], [], s=24, c=CHANCE, lw=0, label=f"kept ({kept.sum():,}), coloured by class")
    ax.scatter(
        [], [], s=24, facecolors="none", edgecolors="#3a3a3a", label=f"pruned ({(~kept).sum():,})"
    )
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.axis("off")
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def draw_losses(numbers: Mapping[str, Any], path: Path) -> None:
    """The kept upwards, the pruned downwards, over the mean loss; wrong labels dark."""
    edges = np.array(numbers["loss edges"])
    figure = Figure(figsize=(9.2, 3.5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, (noise, found) in zip(panels, numbers["difficulty"].items(), strict=True):
        counts = {name: np.array(values) for name, values in found["counts"].items()}
        for name, sign, colour in (("kept", 1, KEPT), ("pruned", -1, PRUNED)):
            wrong = counts[f"{name}, wrong"]
            ax.stairs(sign * counts[name], edges, fill=True, color=colour, label=name)
            ax.stairs(sign * wrong, edges, fill=True, color=WRONG)
            ax.axvline(found["median"][name], color=colour, lw=1.2, ls=(0, (4, 2)), zorder=0)
        ax.stairs([], [0], fill=True, color=WRONG, label="wrong label")
        ax.axhline(0, color="white", lw=1)
        title = "clean" if noise == "clean" else f"20 % of the labels wrong ({noise})"
        ax.set_title(title, fontsize=10)
        ax.set_xscale("log")
        few = edges[-1] < 100 * edges[0]
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.set_xlabel("loss, mean over the epochs (dashed: medians)")
        ax.grid(alpha=0.25)
        _bare(ax)
    panels[0].set_ylabel("samples: kept above, pruned below")
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{abs(y):g}"))
    figure.legend(
        *panels[1].get_legend_handles_labels(),
        frameon=False,
        ncols=3,
        loc="outside upper center",
    )
    figure.savefig(path, dpi=DPI)


def draw_shares(numbers: Mapping[str, Any], path: Path) -> None:
    """Kept of each class; common to the selections of two seeds; from epoch to epoch."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    classes, seeds, epochs = figure.subplots(1, 3, width_ratios=(1.05, 1, 1))
    _draw_classes(classes, numbers)
    _draw_seeds(seeds, numbers)
    _draw_epochs(epochs, numbers["epochs"])
    for ax in (classes, seeds, epochs):
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
        _bare(ax)
    figure.savefig(path, dpi=DPI)


def _draw_classes(ax: Axes, numbers: Mapping[str, Any]) -> None:
    shares = np.array(numbers["kept of class"]) / np.array(numbers["samples of class"])
    places = np.arange(shares.shape[1])
    ax.barh(places, shares.mean(0), height=0.7, color=KEPT, alpha=0.75)
    ax.hlines(places, shares.min(0), shares.max(0), color=WRONG, lw=1.6)
    ax.axvline(numbers["ratio"], color=CHANCE, lw=1.4, ls="--")
    ax.set_yticks(places, numbers["classes"])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PERCENT)
    ax.set_xlabel("line: least to most of the seeds; dashed: of all classes")
    ax.set_title("kept of each class", fontsize=10)


def _draw_seeds(ax: Axes, numbers: Mapping[str, Any]) -> None:
    found = numbers["between seeds"]
    for place, (name, shares) in enumerate(found.items()):
        colour = KEPT if name == "adapruner" else RIVAL
        ax.plot(shares, [place] * len(shares), "o", color=colour, ms=5, alpha=0.35, mew=0)
        if shares:
            ax.plot(mean(shares), place, "D", color=colour, ms=8)
            above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
            ax.annotate(PERCENT(mean(shares)), (mean(shares), place), **above)
    ax.axvline(numbers["ratio"], color=CHANCE, lw=1.4, ls="--")
    ax.annotate(
        "chance", (numbers["ratio"], -0.45), (4, 0), textcoords="offset points", color=CHANCE
    )
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlim(min(numbers["ratio"], *map(min, found.values())) - 0.05, 1.02)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(PERCENT)
    ax.set_xlabel("of the kept; diamond: mean of the pairs")
    ax.set_title("common to the selections of two seeds", fontsize=10)


def _draw_epochs(ax: Axes, found: Mapping[str, list[float]]) -> None:
    epochs = range(1, len(found["share kept"]) + 1)
    ax.plot(epochs, found["with the last"], "o-", color=KEPT, ms=4, label="with the last one")
    before = found["with the one before"]
    ax.plot(epochs[1:], before, "s-", color=PRUNED, ms=4, label="with the one before")
    ax.plot(epochs, found["share kept"], "--", color=CHANCE, label="by chance: the share kept")
    ax.yaxis.set_major_formatter(PERCENT)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("selection at the end of the epoch")
    ax.set_title("common to the selections of two epochs", fontsize=10)
    ax.legend(frameon=False, fontsize=8)


def draw_images(
    blocks: Mapping[str, tuple[Look, Tensor]], names: Sequence[str], path: Path
) -> None:
    """A block of images for each title, as the network saw them, with the class each has in the
    training; a wrong one in colour, the right one after it."""
    rows = SHOWN // COLUMNS
    # Height of a row: with a second line where one is needed.
    steps = [
        1.4 if (look.data.y != look.labels)[indices].any() else 1.25
        for look, indices in blocks.values()
    ]
    figure = Figure(figsize=(COLUMNS, rows * sum(steps) + 0.3 * len(blocks)), layout="constrained")
    panels = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=steps)[:, 0]
    for ax, step, (title, (look, indices)) in zip(panels, steps, blocks.items(), strict=True):
        for n, index in enumerate(indices.tolist()):
            left, low = n % COLUMNS, -step * (n // COLUMNS)
            image = look.data.x[index]
            image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
            ax.imshow(
                image.expand(-1, -1, 3).numpy(),
                extent=(left + 0.03, left + 0.97, low, low + 0.94),
                interpolation="catrom",
            )
            label, right = int(look.data.y[index]), int(look.labels[index])
            wrong = label != right
            text = f"{names[label]}\n(is {names[right]})" if wrong else names[label]
            style = {"color": PRUNED} if wrong else {}
            ax.text(left + 0.5, low - 0.04, text, ha="center", va="top", size=8, **style)
        ax.set(xlim=(0, COLUMNS), ylim=(-step * rows + 0.96, 0.96), aspect="equal")
        ax.set_title(title, fontsize=11, loc="left")
        ax.axis("off")
    figure.savefig(path, dpi=90, bbox_inches="tight")
