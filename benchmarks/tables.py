"""How tables write what was measured."""

from __future__ import annotations

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
