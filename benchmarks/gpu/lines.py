"""Files of one JSON object a line, each written at once, so that a killed process loses none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def append(file: Path, line: dict[str, Any]) -> None:
    """Add one line in a single write, so that lines of several processes do not mix."""
    with file.open("ab", buffering=0) as opened:
        opened.write(json.dumps(line).encode() + b"\n")


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, none where it does not exist. A last line cut short is left out."""
    if not file.exists():
        return []
    whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def reason(text: str) -> str:
    """The line of a long error that names it: what pytest marks so, or the first line."""
    rows = [row.strip() for row in text.strip().splitlines()] or [""]
    named = [row.removeprefix("E ").strip() for row in rows if row.startswith("E ")]
    return named[0] if named else rows[0]
