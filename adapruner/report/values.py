"""Values of a result for the report: counts per class, series over epochs, numbers as text."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adapruner.report.style import printable
from adapruner.results.table import paths_of

if TYPE_CHECKING:
    from adapruner.data.sources.base import Source
    from adapruner.results.result import PruneResult

ABSENT = "—"


def class_counts(
    result: PruneResult,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Classes, ascending, with their numbers of samples and of kept samples, each int64.

    Raises:
        ValueError: the result has no targets.
    """
    if result.targets is None:
        raise ValueError("expected a result with the class of every sample; found no targets")
    targets = result.targets.numpy()
    classes, place, totals = np.unique(targets, return_inverse=True, return_counts=True)
    kept = np.bincount(place[result.indices.numpy()], minlength=len(classes))
    return classes.astype(np.int64), totals.astype(np.int64), kept.astype(np.int64)


def class_name(result: PruneResult, label: int) -> str:
    """The name of class ``label``, or the number if names are not known."""
    names = result.dataset.get("class_names") or []
    return printable(names[label]) if 0 <= label < len(names) else str(label)


def known_paths(
    result: PruneResult, source: Source | None, indices: NDArray[np.int64]
) -> list[str] | None:
    """The paths of samples; None if they are not known. Shards that are gone end no report."""
    try:
        return paths_of(result, source, indices)
    except OSError:
        return None


def finite_losses(result: PruneResult) -> NDArray[np.float64]:
    """Last loss of every sample, float64 ``[N]``; NaN where it is absent or not finite."""
    if result.sample_losses is None:
        return np.full(result.num_samples, np.nan)
    losses = result.sample_losses.double().numpy()
    return np.where(np.isfinite(losses), losses, np.nan)


def series(result: PruneResult, key: str) -> NDArray[np.float64]:
    """One column of the history, float64 ``[epochs]``; NaN where an epoch lacks it."""
    values = [entry.get(key) for entry in result.history]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def count(value: float) -> str:
    """1234 -> "1,234"."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """(1, 3) -> "33.3 %"; more digits where fewer would round to a false 0 or 100."""
    if not whole:
        return ABSENT
    percent = 100 * part / whole
    digits = 1
    while digits < 6 and percent not in (0, 100) and round(percent, digits) in (0, 100):
        digits += 1
    return f"{percent:.{digits}f}\u202f%"


def number(value: float | None, digits: int = 4) -> str:
    """2.5 -> "2.500"; int 2 -> "2"; None and NaN -> "—"; -inf -> "−∞"."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int):
        return count(value)
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def size(num_bytes: float) -> str:
    """1500000 -> "1.5 MB", with units of 1000, as makers of disks use them."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if abs(num_bytes) < 999.5 or unit == "PB":
            break
        num_bytes /= 1000
    text = f"{num_bytes:.0f}" if unit == "bytes" else f"{num_bytes:.3g}"
    return f"{text}\u202f{unit}"


def duration(seconds: float) -> str:
    """93.4 -> "1 min 33 s"."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f}\u202fs"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}\u202fh {minutes:02d}\u202fmin"
    return f"{minutes}\u202fmin {whole_seconds:02d}\u202fs"


def compared(value: float, against: float) -> str:
    """(80, 100) -> "20.0 % less than"."""
    if value == against or not against:
        return "as much as"
    return f"{share(abs(against - value), against)} {'less' if value < against else 'more'} than"


def setting(value: Any) -> str:
    """The text of a value that JSON can hold."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(value, ensure_ascii=False, default=str)
