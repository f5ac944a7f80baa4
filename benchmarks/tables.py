"""How tables write what was measured, and where they stand in the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def machine(about: dict[str, Any]) -> str:
    return (
        f"{about['processor']}, {about['cores']} cores, torch {about['torch']}, {about['date']}, "
        f"commit{'s' * (', ' in about['commit'])} {about['commit']}"
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
