"""The report of a pruning run: one HTML file that needs nothing else, not even a script."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adapruner._util.extras import require
from adapruner._util.files import replace_atomically
from adapruner.report import content
from adapruner.report.figures import FIGURES
from adapruner.report.gallery import MOST_SAMPLES, extremes, find_source, gallery
from adapruner.report.style import NothingToShow, css_variables, printable, to_svg

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

__all__ = ["write_report"]


class _Drawing(NamedTuple):
    name: str
    title: str
    caption: str
    svg: str
    tall: bool
    absent: str  # why there is no drawing


def write_report(
    result: PruneResult, path: str | os.PathLike[str], source: Any | None = None
) -> None:
    """Write the report of ``result`` as one self-contained HTML file.

    What the result lacks (history, targets, losses, class names) the report says is absent. The
    same result and source give the same bytes.

    Args:
        result: the outcome of a run, fresh or loaded.
        path: the file to write; an old one there is replaced, whole or not at all.
        source: the dataset, as a Source or as anything that :func:`adapruner.data.as_source`
            takes, for pictures of the most and the least wanted samples (at most 24 each are
            read, a broken one is shown as such). Where None they come from ``result.source``, or
            from the image folder that ``result.dataset`` names if it is unchanged; otherwise the
            report lists indices and says why.

    Raises:
        ImportError: matplotlib, Jinja2 or Pillow is not installed (the extra "report").
        DatasetMismatchError: ``source`` is another dataset than the one of ``result``.
        OSError: the folder of ``path`` is missing or cannot be written, or the disk is full.

    Example:
        >>> result = PruneResult.load("kept.safetensors")  # doctest: +SKIP
        >>> write_report(result, "report.html")  # doctest: +SKIP
    """

    def write(temporary: Path) -> None:
        # Names of files may hold what UTF-8 cannot; they become "?" rather than an error.
        temporary.write_bytes(_page(result, source).encode("utf-8", errors="replace"))

    replace_atomically(path, write)


def _page(result: PruneResult, source: Any | None) -> str:
    jinja2 = require("jinja2", extra="report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = resources.files("adapruner.report").joinpath("template.html").read_text("utf-8")
    found = find_source(result, source)
    most, least = (gallery(result, indices, found) for indices in extremes(result))
    values: dict[str, Any] = {
        "light": css_variables(dark=False),
        "dark": css_variables(dark=True),
        "headline": content.headline(result),
        "drawings": [_drawing(result, *entry) for entry in FIGURES],
        "galleries": [
            ("most-wanted", "Most wanted", "the largest gate logits", most),
            ("least-wanted", "Least wanted", "the smallest gate logits", least),
        ],
        "most_samples": MOST_SAMPLES,
        "ranking": content.ranking,
        "classes": content.classes(result),
        "unreadable": content.unreadable(result, found),
        "not_finite": content.not_finite(result, found),
        "settings": content.settings(result),
        "history": content.history(result),
    }
    page: str = environment.from_string(text).render(values)
    return page


def _drawing(result: PruneResult, name: str, title: str, caption: str, draw: Any) -> _Drawing:
    try:
        figure = draw(result)
    except NothingToShow as nothing:
        return _Drawing(name, title, caption, "", False, printable(nothing))
    tall = figure.get_figheight() > 1.35 * figure.get_figwidth()
    return _Drawing(name, title, caption, to_svg(figure, name, f"{title}. {caption}"), tall, "")
