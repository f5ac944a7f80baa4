"""Draw the figures of the last campaign in docs/reliability.md from benchmarks/results/torture.

python -m torture.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.tables import machine, rewrite

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "torture"
# What a kind counts, in words.
COUNTS = {
    "kill": ("kills", "kills of workers", "runs"),
    "ranks": ("kills", "runs"),
    "fuzz": ("inputs",),
    "disk": ("faults",),
    "pictures": ("images",),
    "native": ("calls",),
    "sanitize": ("calls",),
    "load": (),
}


def table(results: list[dict[str, Any]]) -> str:
    """The machine, and a row for each kind with the sums over all campaigns."""
    lines = ["| kind | tried | minutes | findings |", "|---|---|---|---|"]
    for kind, names in COUNTS.items():
        told = [result["kinds"][kind] for result in results if kind in result["kinds"]]
        if not told:
            continue
        figures = [one["figures"] for one in told]
        tried = [f"{sum(one[name] for one in figures):,} {name}" for name in names]
        if kind == "load":
            tried = [long_runs(one) for one in figures]
        minutes = sum(one["seconds"] for one in figures) / 60
        findings = sum(len(one["findings"]) for one in told)
        lines.append(f"| {kind} | {', '.join(tried)} | {minutes:.1f} | {findings} |")
    seeds = ", ".join(str(result["seed"]) for result in results)
    hours = sum(result["hours"] for result in results)
    about = f"{machine(*results)}; {hours:.2f} hours beside other work, seeds {seeds}."
    return "\n".join([about, "", *lines])


def long_runs(figures: dict[str, Any]) -> str:
    samples, epochs = figures["many samples"], figures["many epochs"]
    return (
        f"{samples['samples']:,} samples (memory grew by {samples['growth KiB']:,} KiB), "
        f"{epochs['epochs']:,} epochs ({epochs['growth KiB']:,} KiB)"
    )


def main() -> None:
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rewrite(ROOT / "docs" / "reliability.md", {"torture": "\n" + table(results) + "\n"})


if __name__ == "__main__":
    main()
