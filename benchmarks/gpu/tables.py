"""The tables of docs/performance.md about a GPU, from the results of gpu-check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..tables import factor, time
from . import lines

NOTHING = "**Nothing has been measured on a GPU yet.**"


def gpu_tables(results: Path) -> dict[str, str]:
    """By marker: how the stages ended, and every row that was measured."""
    file = results / "summary.json"
    if not file.exists():
        return {"gpu checks": NOTHING, "gpu": NOTHING}
    summary = json.loads(file.read_text())
    about = machine(summary["provenance"])
    rows = [*lines.read(results / "suites.jsonl"), *lines.read(results / "step.jsonl")]
    checks = [*stages_table(summary), *failures(results), f"\n{about}."]
    measured = [*rows_table(rows), f"\n{about}."] if rows else [NOTHING]
    return {"gpu checks": "\n".join(checks), "gpu": "\n".join(measured)}


def machine(about: dict[str, Any]) -> str:
    kernels = about["kernels"] or {}
    return (
        f"{about['device']}, driver {about.get('driver_version', 'unknown')}, "
        f"SM clock at most {about.get('clocks.max.sm', 'unknown')}, "
        f"memory clock {about.get('clocks.mem', 'unknown')}, "
        f"power limit {about.get('power.limit', 'unknown')}, kernels of CUDA "
        f"{kernels.get('version')} for {kernels.get('architectures')}, torch {about['torch']}, "
        f"Python {about['python']}, {about['date']}, commit {about['commit']}"
    )


def stages_table(summary: dict[str, Any]) -> list[str]:
    table = ["| stage | | seconds | |", "|---|---|---|---|"]
    for name, stage in summary["stages"].items():
        table.append(f"| {name} | {stage['verdict']} | {stage['seconds']:.0f} | {stage['text']} |")
    return [*table, *([""] if summary["absent"] else []), *(f"- {a}" for a in summary["absent"])]


def failures(results: Path) -> list[str]:
    """Each call and each test that failed."""
    calls = [
        f"- {line['operator']}, {line['name']}: {line['error']}"
        for line in lines.read(results / "smoke.jsonl")
        if line["ok"] is False
    ]
    tests = [
        f"- `{line['test']}`: {line['text']}"
        for line in lines.read(results / "tests.jsonl")
        if line["outcome"] == "failed"
    ]
    found = [*calls, *tests]
    return ["\nWhat failed:\n", *found] if found else []


def rows_table(rows: list[dict[str, Any]]) -> list[str]:
    """Rivals and budgets of each row, and the error of a row that failed."""
    table = ["| | | median [quartiles] | as a multiple of ours | n |", "|---|---|---|---|---|"]
    for line in rows:
        first = f"{line['suite'].replace('_', ' ')} [{line['name']}]"
        first += f", SM clock {line['clock']}" if line.get("clock") else ""
        if "error" in line:
            table.append(f"| {first} | failed: {line['error']} | | | |")
            continue
        row = line["row"]
        for name, timing in row["rivals"].items():
            lower, median, upper = map(time, timing["seconds"])
            times = factor(timing["times_first"][1])
            table.append(
                f"| {first} | {name} | {median} [{lower}, {upper}] | {times} | {timing['n']} |"
            )
            first = ""
        table += [f"| | {name} | failed: {why} | | |" for name, why in row["failed"].items()]
        for claim in row["claims"]:
            if claim["value"] is not None:
                budget = f"budget {'≤' if claim['most'] else '≥'} {claim['limit']}"
                table.append(f"| | {factor(claim['value'])} {claim['text']} ({budget}) | | | |")
    return table
