"""Colours and style of the report's figures.

Figures are drawn in the light colours. :func:`to_svg` replaces each colour by the CSS variable of
the same name. :func:`css_variables` defines the variables for light and for dark mode.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from adapruner._util.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from adapruner.results.result import PruneResult

# name: (light, dark). Blue, vermilion and green follow Okabe and Ito: people with a common colour
# blindness can tell them apart. Things that differ in colour also differ in line, mark or place.
PALETTE = {
    "page": ("#f5f6f8", "#12161b"),
    "card": ("#ffffff", "#1b2128"),
    "ink": ("#1a2027", "#e7ebef"),
    "muted": ("#57626e", "#9ba7b3"),
    "line": ("#dce1e6", "#323b45"),
    "kept": ("#0072b2", "#56b4e9"),
    "pruned": ("#c75400", "#f0a35a"),
    "third": ("#00805d", "#3cc79d"),
    "warm": ("#eceff3", "#252d36"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}

WIDTH = 4.1  # inches; narrow, so that a telephone does not shrink text of 8.5 points
HEIGHT = 2.75

_STYLE: dict[str, Any] = {
    "figure.figsize": (WIDTH, HEIGHT),
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # the name of a class may be "$5"
    "axes.labelsize": 8.5,
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["line"],
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.0,
    "legend.columnspacing": 1.4,
    "savefig.transparent": True,
    "svg.fonttype": "none",  # text stays text: selectable, read aloud, in the page's font
    "svg.hashsalt": "adapruner",  # the same result gives the same bytes
}


class NothingToShow(ValueError):
    """The result lacks the data of a figure. The message names the data."""


@contextmanager
def context() -> Iterator[None]:
    """Use matplotlib's defaults and the report's style, and restore the user's settings."""
    matplotlib_style = require("matplotlib.style", extra="report")
    with matplotlib_style.context(["default", _STYLE]), warnings.catch_warnings():
        # Text stays text in the SVG, so the fonts of the reader draw it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def styled(draw: Callable[[PruneResult], Figure]) -> Callable[[PruneResult], Figure]:
    """Run ``draw`` in the report's style."""

    @wraps(draw)
    def inside(result: PruneResult) -> Figure:
        with context():
            return draw(result)

    return inside


def css_variables(dark: bool) -> str:
    """The palette as CSS declarations: ``--kept: #0072b2; …``."""
    return " ".join(f"--{name}: {shades[dark]};" for name, shades in PALETTE.items())


# Control characters and lone surrogates. Names of files and classes can hold them; XML cannot.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: object) -> str:
    """``str(text)`` with each character that XML or UTF-8 cannot hold replaced by U+FFFD."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(text))


_SVG = "{http://www.w3.org/2000/svg}"
_NOT_DRAWN = {f"{_SVG}metadata", f"{_SVG}style"}
_COLOURS = {light: f"var(--{name})" for name, light in LIGHT.items()}


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Render ``figure`` as an ``<svg>`` element for an HTML page.

    Args:
        figure: the figure.
        name: prefix of its ids, different for each figure of a page.
        label: text of the figure for screen readers.
    """
    buffer = io.BytesIO()
    with context():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _NOT_DRAWN]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = _attributes(element.attrib, name)
        if element.tag == "g":
            element.attrib.pop("id", None)  # nothing refers to groups
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    # These replace the style sheet that was removed, which would apply to the whole page.
    root.attrib |= {"role": "img", "aria-label": label, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(attributes: dict[str, str], name: str) -> dict[str, str]:
    """Attributes without namespaces, with prefixed ids, and with colours as CSS variables."""
    changed = {}
    for key, value in attributes.items():
        key = key.rsplit("}", 1)[-1]
        if key == "id":
            value = f"{name}-{value}"
        elif key == "href":
            value = f"#{name}-{value.removeprefix('#')}"
        elif key == "clip-path":
            value = value.replace("url(#", f"url(#{name}-")
        elif key == "style":
            value = re.sub(r"#[0-9a-f]{6}", lambda match: _COLOURS.get(match[0], match[0]), value)
            # The font family is that of the page. Matplotlib only measured text with its own.
            value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
            value = re.sub(r"font-family: [^;]*;? ?", "", value)
        changed[key] = value
    return changed
