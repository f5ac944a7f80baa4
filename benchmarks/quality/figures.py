"""The pictures of the quality suite."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .static import STATIC
from .statistics import Row, by_seed, group, paired
from .table import CIFAR, CLEAN_OR_NOISY

DATASETS = {"digits": "digits", CIFAR: "a part of CIFAR-10"}
OURS = {"adapruner as published": "#56b4e9", "adapruner": "#0072b2"}
RIVALS = ("#c75400", "#8a8a8a", "#cc79a7", "#009e73", "#90432f", "#b59a00", "#7a4fa3", "#444444")
MARKERS = "sv^D<PX*"
SEEDS = 5  # fewer are not drawn
Cells = dict[tuple[str, float], dict[int, float]]  # method and ratio: seed to accuracy


def draw_differences(rows: Iterable[Row], path: Path) -> None:
    """Accuracy above random over the keep ratio: a line of panels for each dataset, a column for
    clean and for wrong labels. Nothing is drawn where no panel has enough."""
    retrained = [r for r in rows if r["protocol"] == "same epochs" and r["method"] != "full"]
    found = group(retrained, "dataset", "noise")
    panels: dict[tuple[str, str], Cells] = {}
    for place in ((dataset, noise) for dataset in DATASETS for noise in CLEAN_OR_NOISY):
        cells = {
            key: by_seed(cell)
            for key, cell in group(found.get(place, []), "method", "ratio").items()
            if len(by_seed(cell)) >= SEEDS
        }
        if len({ratio for method, ratio in cells if method == "random"}) > 1:
            panels[place] = cells
    if not panels:
        return
    lines = len({dataset for dataset, _ in panels})
    figure = Figure(figsize=(12, 4.4 * lines), layout="constrained")
    grid = figure.subplots(lines, len(CLEAN_OR_NOISY), squeeze=False)
    for i, dataset in enumerate(dict.fromkeys(dataset for dataset, _ in panels)):
        for j, noise in enumerate(CLEAN_OR_NOISY):
            if (dataset, noise) in panels:
                _draw(grid[i][j], panels[dataset, noise])
                grid[i][j].set_title(f"{DATASETS[dataset]}, {noise}, {_n(panels[dataset, noise])}")
            else:
                grid[i][j].axis("off")
        grid[i][0].set_ylabel("points of accuracy above random's")
    handles = {
        label: handle
        for ax in grid.flat
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside right center")
    figure.savefig(path, dpi=110)


def _n(cells: Cells) -> str:
    sizes = sorted({len(cell) for cell in cells.values()})
    return f"n = {sizes[0]}" + f" to {sizes[-1]}" * (len(sizes) > 1)


def _draw(ax: Axes, cells: Cells) -> None:
    """Ratios side by side, not to scale: most of them are close together."""
    ratios = sorted({ratio for _, ratio in cells})
    rivals = (method for method in STATIC if method != "random")
    styles = dict(zip(rivals, cycle(zip(RIVALS, MARKERS, strict=True)), strict=False))
    styles |= {method: (colour, "o") for method, colour in OURS.items()}
    for k, (method, (colour, marker)) in enumerate(styles.items()):
        found = [
            (place, paired(cells[method, ratio], cells["random", ratio]))
            for place, ratio in enumerate(ratios)
            if (method, ratio) in cells and ("random", ratio) in cells
        ]
        points = [(place, difference) for place, difference in found if difference]
        if not points:
            continue
        aside = 0.05 * (k - (len(styles) - 1) / 2)  # so that bars do not cover one another
        ax.errorbar(
            [place + aside for place, _ in points],
            [difference.mean for _, difference in points],
            [difference.standard_error for _, difference in points],
            fmt=f"{marker}-",
            color=colour,
            lw=2.4 if method in OURS else 1,
            ms=6 if method in OURS else 4.5,
            zorder=3 if method in OURS else 2,
            label=method,
        )
    ax.axhline(0, color="black", lw=1, label="random")
    ax.set_yscale("symlog", linthresh=2)
    ax.set_yticks([-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    ax.set_xlabel("keep ratio")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
