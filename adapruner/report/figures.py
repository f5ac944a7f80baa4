"""The figures of a report: functions from a :class:`PruneResult` to a matplotlib ``Figure``.

Each function raises :class:`NothingToShow` if the result lacks its data. The functions do not use
pyplot, so no global state changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapruner._util.extras import require
from adapruner.pruning.methods.base import NEVER_FINITE
from adapruner.report.style import HEIGHT, LIGHT, WIDTH, NothingToShow, printable, styled
from adapruner.report.values import class_counts, class_name, finite_losses, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adapruner.results.result import PruneResult

MOST_BARS = 40  # classes; with more classes, bars are too thin to read
_BINS = 40
_MOST_MARKS = 50  # epochs
_DECISIONS = {"warm-up": "muted", "advance": "third", "pause": "pruned", "back off": "ink"}


def _figure(height: float = HEIGHT) -> Figure:
    figure: Figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(WIDTH, height), layout="constrained"
    )
    return figure


def _ticker() -> Any:
    return require("matplotlib.ticker", extra="report")


@styled
def kept_per_class(result: PruneResult) -> Figure:
    """A bar per class of its kept samples; with over ``MOST_BARS`` classes, a curve of shares."""
    if result.targets is None or result.num_samples == 0:
        raise NothingToShow("the result does not hold the classes of the samples")
    classes, totals, kept = class_counts(result)
    if len(classes) > MOST_BARS:
        return _class_curve(kept / totals, float(kept.sum() / totals.sum()))
    return _class_bars([class_name(result, int(label)) for label in classes], totals, kept)


def _class_bars(names: list[str], totals: NDArray[np.int64], kept: NDArray[np.int64]) -> Figure:
    figure = _figure(max(HEIGHT, 0.55 + 0.19 * len(names)))
    axes = figure.add_subplot()
    places = np.arange(len(names))
    axes.barh(places, totals, height=0.72, color=LIGHT["line"], label="all")
    axes.barh(places, kept, height=0.72, color=LIGHT["kept"], label="kept")
    for place, total, part in zip(places, totals, kept, strict=True):
        text = f"{100 * part / total:.0f}\u202f%"
        axes.annotate(
            text,
            (total, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=LIGHT["muted"],
        )
    axes.set_yticks(places, [_shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first class on top
    axes.set_xlim(0, 1.14 * totals.max())
    axes.grid(False)
    _count_axis(axes.xaxis)
    axes.set_xlabel("samples")
    _legend(axes)
    return figure


def _shortened(name: str) -> str:
    """The beginning and the end of a name, at most 18 characters, since names differ in either."""
    return name if len(name) <= 18 else f"{name[:10]}…{name[-7:]}"


def _class_curve(shares: NDArray[np.float64], overall: float) -> Figure:
    figure = _figure()
    axes = figure.add_subplot()
    ranks = np.arange(1, len(shares) + 1)
    axes.plot(ranks, np.sort(shares), color=LIGHT["kept"], drawstyle="steps-mid", label="one class")
    axes.axhline(overall, color=LIGHT["ink"], lw=1, ls=(0, (4, 3)), label="all classes together")
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(_ticker().PercentFormatter(1, decimals=0))
    axes.set_xlabel(f"{len(shares):,} classes with samples, least kept first")
    axes.set_ylabel("share kept")
    _legend(axes)
    return figure


@styled
def gate_logits(result: PruneResult) -> Figure:
    """Histograms of the gate logits of kept and of pruned samples, over the same bins.

    Samples that never had a finite loss are left out.
    """
    logits = result.gate_logits.double().numpy()
    finite = np.isfinite(logits) & (logits > NEVER_FINITE)
    if not finite.any():
        raise NothingToShow("no sample was readable and had a finite loss")
    edges = np.histogram_bin_edges(logits[finite], bins=_BINS)
    figure = _figure()
    axes = figure.add_subplot()
    _kept_and_pruned(axes, logits, finite, result.kept.numpy(), edges)
    axes.set_xlabel("score")
    return figure


@styled
def sample_losses(result: PruneResult) -> Figure:
    """Histograms of the last losses of kept and of pruned samples, on a logarithmic axis.

    Losses that are not finite are left out. Losses near zero are in the leftmost bin.
    """
    losses = finite_losses(result)
    finite = np.isfinite(losses)
    if not finite.any():
        raise NothingToShow("the result has no finite loss of any sample")
    edges = _log_edges(losses[finite])
    figure = _figure()
    axes = figure.add_subplot()
    clipped = np.clip(losses, edges[0], edges[-1])
    _kept_and_pruned(axes, clipped, finite, result.kept.numpy(), edges)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    few = np.log10(edges[-1] / edges[0]) < 2
    axes.xaxis.set_major_locator(_ticker().LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
    axes.xaxis.set_minor_locator(_ticker().NullLocator())
    axes.xaxis.set_major_formatter(_ticker().FuncFormatter(_power))
    missing = int((~finite).sum())
    axes.set_xlabel("per-sample loss" + (f" ({missing:,} without a loss)" if missing else ""))
    return figure


def _log_edges(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of bins of equal width on a logarithmic axis, over at most seven decades."""
    high = max(float(losses.max()), 1e-12)
    low = max(float(losses.min()), high * 1e-7)
    if high < 1.01 * low:
        low, high = low / 2, high * 2
    return np.geomspace(low, high, _BINS + 1)


def _kept_and_pruned(
    axes: Axes,
    values: NDArray[np.float64],
    shown: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    edges: NDArray[np.float64],
) -> None:
    """Two histograms over each other, which differ in colour and outline."""
    for name, chosen, line in (("kept", kept, "-"), ("pruned", ~kept, (0, (2.5, 1)))):
        counts, _ = np.histogram(values[chosen & shown], bins=edges)
        colour = LIGHT[name]
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.22, lw=0)
        label = f"{name} ({counts.sum():,})"
        axes.stairs(counts, edges, color=colour, ls=line, lw=1.3, label=label)
    _count_axis(axes.yaxis)
    axes.set_ylabel("samples")
    _legend(axes)


@styled
def keep_ratio(result: PruneResult) -> Figure:
    """The share kept in each epoch, and the scheduled share."""
    epochs = _epochs(result, "kept", "keep_ratio")
    figure = _figure()
    axes = figure.add_subplot()
    kept = series(result, "kept") / max(result.num_samples, 1)
    scheduled = series(result, "keep_ratio")
    # A wide band under the line, so that both are visible where they agree.
    band: dict[str, Any] = {"lw": 6, "alpha": 0.35, "solid_capstyle": "butt"}
    axes.plot(epochs, scheduled, color=LIGHT["pruned"], label="scheduled", **band)
    axes.plot(epochs, kept, color=LIGHT["kept"], marker=_marker(epochs, "o"), label="kept")
    axes.axhline(result.keep_ratio, color=LIGHT["muted"], lw=0.9, ls=(0, (1, 2)), label="asked for")
    axes.yaxis.set_major_formatter(_ticker().PercentFormatter(1, decimals=0))
    low = np.nanmin(np.concatenate([kept, scheduled, [result.keep_ratio]]))
    axes.set_ylim(max(0, low - 0.08), 1.03)
    _epoch_axis(axes, result)
    _mark_selected(axes, result)
    _legend(axes)
    return figure


@styled
def gates(result: PruneResult) -> Figure:
    """Mean gate and share of open gates over the epochs, above the slope if it changes."""
    epochs = _epochs(result, "mean_gate", "slope")
    figure = _figure()
    if _has_slope(result):
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        style: dict[str, Any] = {"color": LIGHT["pruned"], "marker": _marker(epochs, "o")}
        below.plot(epochs, series(result, "slope"), label="slope", **style)
        below.set_ylim(bottom=0)
        below.set_ylabel("slope")
        _epoch_axis(below, result)
        above.tick_params(labelbottom=False)
    else:
        above = figure.add_subplot()
    mean, share = series(result, "mean_gate"), series(result, "open_share")
    above.plot(epochs, mean, color=LIGHT["kept"], marker=_marker(epochs, "o"), label="mean gate")
    if np.isfinite(share).any():
        label = "gates with m > 0"
        above.plot(epochs, share, color=LIGHT["third"], ls=(0, (3, 1.5)), label=label)
    above.set_ylim(0, 1.05)
    above.set_yticks([0, 0.5, 1])
    above.set_ylabel("gate")
    _epoch_axis(above, result, label=not _has_slope(result))
    _legend(above)
    return figure


@styled
def losses(result: PruneResult) -> Figure:
    """Training and held-out loss over the epochs, above the controller's decisions."""
    epochs = _epochs(result, "training_loss", "validation_loss")
    made = [entry.get("decision") for entry in result.history]
    known = [name for name in _DECISIONS if name in made]
    rows = known + sorted({str(name) for name in made if name and name not in _DECISIONS})
    figure = _figure(HEIGHT + 0.12 * max(0, len(rows) - 2))
    ratios = [1.75, 0.17 * max(len(rows), 1) + 0.08]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    training, held_out = series(result, "training_loss"), series(result, "validation_loss")
    above.plot(epochs, training, color=LIGHT["kept"], marker=_marker(epochs, "o"), label="training")
    if np.isfinite(held_out).any():
        style: dict[str, Any] = {"marker": _marker(epochs, "s"), "ls": (0, (3, 1.5))}
        above.plot(epochs, held_out, color=LIGHT["pruned"], label="held out", **style)
    above.set_ylabel("loss")
    for row, name in enumerate(rows):
        at = [epoch for epoch, decision in zip(epochs, made, strict=True) if decision == name]
        colour = LIGHT[_DECISIONS.get(name, "ink")]
        mark = _marker(epochs, "s") or "|"
        below.scatter(at, [row] * len(at), marker=mark, s=12, color=colour, label=name)
    below.set_yticks(range(len(rows)), [printable(name) for name in rows])
    below.set_ylim(len(rows) - 0.4, -0.6)
    _epoch_axis(above, result, label=False)
    _epoch_axis(below, result)
    above.tick_params(labelbottom=False)
    _mark_selected(above, result)
    _legend(above)
    return figure


def _epochs(result: PruneResult, *keys: str) -> NDArray[np.float64]:
    """The epochs along the axis. Raises NothingToShow if the history has no value of ``keys``."""
    if not result.history:
        raise NothingToShow("the result has no history of epochs")
    if keys and not any(np.isfinite(series(result, key)).any() for key in keys):
        raise NothingToShow(f"the history has no {' or '.join(keys).replace('_', ' ')}")
    epochs = series(result, "epoch")
    return np.where(np.isnan(epochs), np.arange(len(epochs)), epochs)


def _marker(epochs: NDArray[np.float64], shape: str) -> str:
    """``shape`` for a mark at each epoch, or "" if there are too many epochs for marks."""
    return shape if len(epochs) <= _MOST_MARKS else ""


def _epoch_axis(axes: Axes, result: PruneResult, label: bool = True) -> None:
    """Set up an axis of whole epochs, with the warm-up shaded."""
    epochs = _epochs(result)
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(8, integer=True, min_n_ticks=1))
    phases = [entry.get("phase") for entry in result.history]
    warm = [epoch for epoch, phase in zip(epochs, phases, strict=True) if phase == "warm-up"]
    if warm:
        first, last = min(warm) - 0.5, max(warm) + 0.5
        axes.axvspan(first, last, color=LIGHT["warm"], lw=0, zorder=0, label="_warm-up")
    if label:
        axes.set_xlabel("epoch (shaded: warm-up)" if warm else "epoch")


def _mark_selected(axes: Axes, result: PruneResult) -> None:
    if result.selected_epoch is not None:
        axes.axvline(result.selected_epoch, color=LIGHT["ink"], lw=0.9, label="selected")


def _legend(axes: Axes) -> None:
    """Put the legend in one line over the figure, from its left edge."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(len(handles), 1)
    axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def _count_axis(axis: Any) -> None:
    axis.set_major_locator(_ticker().MaxNLocator(5, integer=True))
    axis.set_major_formatter(_ticker().FuncFormatter(_short_count))


def _short_count(value: float, _position: int | None = None) -> str:
    """25000 -> "25k"; "" for negative values, which an axis of counts does not label."""
    if value < 0:
        return ""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def _power(value: float, _position: int | None = None) -> str:
    """0.01 -> "0.01"; 0.00001 -> "10⁻⁵"."""
    if 1e-3 <= value < 1e5 or value <= 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if mantissa == "1" else f"{mantissa}·") + f"10{raised}"


def _scores_caption(result: PruneResult) -> str:
    if result.draw_keys is not None:
        how = "The kept set was drawn, and samples with larger scores had better chances."
    elif result.selected_epoch is not None:
        how = "These are the scores at the end. The kept set is the selection of an earlier epoch."
    else:
        how = "The samples with the largest scores are kept."
    hidden = "Unreadable samples and samples that never had a finite loss are not shown."
    return f"Larger is better. {how} {hidden}"


def _gates_caption(result: PruneResult) -> str:
    if _has_slope(result):
        return "The mean gate σ(k·m) over all samples, the share of open gates, and the slope k."
    return "The mean gate over all samples, and the share of open gates. The slope is constant."


def _has_slope(result: PruneResult) -> bool:
    """Whether the slope of the gates changes in the run."""
    slopes = series(result, "slope")
    return len(np.unique(slopes[np.isfinite(slopes)])) > 1


class Entry(NamedTuple):
    """A figure's place in the report."""

    name: str
    title: str
    caption: str | Callable[[PruneResult], str]
    draw: Callable[[PruneResult], Figure]


FIGURES = (
    Entry(
        "classes",
        "Kept per class",
        "The share of each class that was kept. A class far from the overall share is easier or "
        "harder than the others.",
        kept_per_class,
    ),
    Entry(
        "logits",
        "Scores",
        _scores_caption,
        gate_logits,
    ),
    Entry(
        "sample-losses",
        "Per-sample losses",
        "The last loss of each sample. Losses near zero are at the left end.",
        sample_losses,
    ),
    Entry(
        "ratio",
        "Keep ratio",
        "The share of the samples kept in each epoch, and the scheduled share.",
        keep_ratio,
    ),
    Entry(
        "gates",
        "Gates",
        _gates_caption,
        gates,
    ),
    Entry(
        "losses",
        "Loss and pace",
        "The loss over the epochs. Below it, the decision of the controller after each epoch.",
        losses,
    ),
)
