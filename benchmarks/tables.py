"""How tables write what was measured, and where they stand in the documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def each(values: Iterable[Any]) -> str:
    """Every different value once, in order: "AMD EPYC, Intel Xeon"."""
    return ", ".join(str(value) for value in sorted(set(values)))


def machine(*abouts: dict[str, Any]) -> str:
    """The machines, versions and commits of results. The date is that of the last one."""
    commits = each(about["commit"] for about in abouts)
    return (
        f"{each(about['processor'] for about in abouts)}, "
        f"{each(about['cores'] for about in abouts)} cores, "
        f"torch {each(about['torch'] for about in abouts)}, "
        f"{max(about['date'] for about in abouts)}, commit{'s' * (', ' in commits)} {commits}"
    )


def time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def factor(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def between(text: str, marker: str, content: str) -> str:
    """``text`` with what stands between the markers replaced."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"the document lacks the markers {begin} and {end}")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def rewrite(document: Path, contents: dict[str, str]) -> None:
    text = document.read_text()
    for marker, content in contents.items():
        text = between(text, marker, content)
    document.write_text(text)
