"""The pictures of the quality suite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .statistics import Row, by_seed, paired
from .table import STATIC_METHODS

OURS, PUBLISHED = "#0072b2", "#56b4e9"
SEEDS = 5  # fewer are not drawn
RIVALS = ("#c75400", "#8a8a8a", "#cc79a7", "#009e73", "#b59a00", "#7a4fa3", "#444444", "#999999")


def draw_differences(rows: Iterable[Row], path: Path) -> None:
    """Accuracy above random over the keep ratio, a panel for each dataset and noise."""
    found: dict[tuple[str, str], dict[tuple[str, float], list[Row]]] = {}
    for row in rows:
        if row["protocol"] == "same epochs" and row["method"] != "full":
            panel = found.setdefault((row["dataset"], row["noise"]), {})
            panel.setdefault((row["method"], row["ratio"]), []).append(row)
    for cells in found.values():
        for key in [key for key, cell in cells.items() if len(by_seed(cell)) < SEEDS]:
            del cells[key]
    panels = {key: cells for key, cells in found.items() if len({r for _, r in cells}) > 1}
    if not panels:
        return
    figure = Figure(figsize=(3.9 * len(panels) + 2, 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    rivals = [m for m in STATIC_METHODS if m not in ("full", "random") and "adapruner" not in m]
    colours = dict(zip(rivals, RIVALS, strict=False))
    colours |= {"adapruner": OURS, "adapruner as published": PUBLISHED}
    for ax, ((dataset, noise), cells) in zip(axes, panels.items(), strict=True):
        for method, colour in colours.items():
            ratios = sorted(ratio for name, ratio in cells if name == method)
            points = [
                (ratio, paired(by_seed(cells[method, ratio]), by_seed(cells["random", ratio])))
                for ratio in ratios
                if ("random", ratio) in cells
            ]
            points = [(ratio, difference) for ratio, difference in points if difference]
            ax.errorbar(
                [ratio for ratio, _ in points],
                [difference.mean for _, difference in points],
                [difference.standard_error for _, difference in points],
                fmt="o-",
                color=colour,
                lw=2.2 if "adapruner" in method else 1.2,
                ms=4,
                label=method,
            )
        ax.axhline(0, color="black", lw=0.8)
        ax.set_yscale("symlog", linthresh=2)
        ax.set_yticks([-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20])
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_title(f"{dataset}, {noise}", fontsize=10)
        ax.set_xlabel("keep ratio")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("points of accuracy above random's")
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right center"
    )
    figure.savefig(path, dpi=150)
