"""The report of a pruning run: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adapruner._util.extras import require
from adapruner._util.files import replace_atomically
from adapruner.report import content
from adapruner.report.figures import FIGURES
from adapruner.report.gallery import MOST_SAMPLES, find_source, galleries
from adapruner.report.style import NothingToShow, css_variables, printable, to_svg
from adapruner.results.protected import check_replaces_no_data

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

__all__ = ["write_report"]


class _Drawing(NamedTuple):
    name: str
    title: str
    caption: str
    svg: str
    tall: bool
    absent: str  # the reason why there is no drawing


def write_report(
    result: PruneResult, path: str | os.PathLike[str], source: Any | None = None
) -> None:
    """Write the report of ``result`` as one self-contained HTML file.

    The report names the parts that the result lacks, such as history, targets, losses or class
    names. The same result and source give the same bytes.

    Args:
        result: the result of a run.
        path: the HTML file. An old file is replaced atomically.
        source: the dataset, as a Source or in any form that :func:`adapruner.data.as_source` takes.
            The report shows pictures of at most 24 samples that were kept, that were easy, that do
            not fit, and whose labels are likely wrong, and marks broken ones. Where None, the
            pictures come from ``result.source``, or from the image folder or the shards that
            ``result.dataset`` names, if they have not changed. Otherwise the report lists indices
            and gives the reason.

    Raises:
        ImportError: matplotlib, Jinja2 or Pillow is not installed (the extra "report").
        DatasetMismatchError: ``source`` is not the dataset of ``result``.
        ValueError: ``path`` is a file of the dataset.
        OSError: the folder of ``path`` is missing or cannot be written, or the disk is full.

    Example:
        >>> result = PruneResult.load("kept.safetensors")  # doctest: +SKIP
        >>> write_report(result, "report.html")  # doctest: +SKIP
    """

    def write(temporary: Path) -> None:
        # File names may hold characters that UTF-8 lacks. These become "?".
        temporary.write_bytes(_page(result, source).encode("utf-8", errors="replace"))

    check_replaces_no_data(path, result.dataset, result.paths, result.source)
    replace_atomically(path, write)


def _page(result: PruneResult, source: Any | None) -> str:
    jinja2 = require("jinja2", extra="report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = resources.files("adapruner.report").joinpath("template.html").read_text("utf-8")
    found = find_source(result, source)
    values: dict[str, Any] = {
        "light": css_variables(dark=False),
        "dark": css_variables(dark=True),
        "headline": content.headline(result),
        "drawings": [_drawing(result, *entry) for entry in FIGURES],
        "warnings": content.warnings(result),
        "reasons": content.reasons(result),
        "galleries": galleries(result, found),
        "most_samples": MOST_SAMPLES,
        "listing": content.listing,
        "classes": content.classes(result),
        "unreadable": content.unreadable(result, found),
        "not_finite": content.not_finite(result, found),
        "settings": content.settings(result),
        "history": content.history(result),
    }
    page: str = environment.from_string(text).render(values)
    return page


def _drawing(result: PruneResult, name: str, title: str, caption: Any, draw: Any) -> _Drawing:
    caption = caption(result) if callable(caption) else caption
    try:
        figure = draw(result)
    except NothingToShow as nothing:
        return _Drawing(name, title, caption, "", False, printable(nothing))
    tall = figure.get_figheight() > 1.35 * figure.get_figwidth()
    return _Drawing(name, title, caption, to_svg(figure, name, f"{title}. {caption}"), tall, "")
