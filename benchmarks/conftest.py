"""Shared by the benchmark suites: threads, and the comparison with rivals in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from alternate import Timing, alternate
from provenance import provenance

from adapruner.ops import _C


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=0, help="threads of torch; 0: all cores")
    parser.addoption("--results", help="JSON file to write the comparison with the rivals to")


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> None:
    if threads := request.config.getoption("--threads"):
        torch.set_num_threads(threads)


@pytest.fixture
def compare(benchmark) -> Callable[[Mapping[str, Callable[[], object]]], dict[str, Timing]]:
    """Time rivals in turns; the first one is ours. Ratios go to the benchmark's extra_info."""

    def run(rivals: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        timings = alternate(rivals)
        ours = next(iter(rivals))
        for name, timing in timings.items():
            benchmark.extra_info[name] = {
                "seconds": [timing.lower, timing.median, timing.upper],
                "n": timing.n,
                "times_ours": timing.median / timings[ours].median,
            }
        # What pytest-benchmark's own table shows is ours alone, a few runs of it.
        benchmark.pedantic(rivals[ours], rounds=5, warmup_rounds=1)
        return timings

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    terminalreporter.section(f"beside the rivals, alternating, {torch.get_num_threads()} threads")
    for bench in session.benchmarks:
        terminalreporter.write_line(bench.name)
        for name, row in bench.extra_info.items():
            lower, median, upper = (1e3 * second for second in row["seconds"])
            terminalreporter.write_line(
                f"  {name:<24}{median:>11.4f} ms [{lower:.4f}, {upper:.4f}]"
                f"{row['times_ours']:>10.2f} × ours   n = {row['n']}"
            )
    if path := config.getoption("--results"):
        about = provenance() | {"instruction_set": _C.build_info()["instruction_set"]}
        rows = {bench.name: bench.extra_info for bench in session.benchmarks}
        Path(path).write_text(json.dumps({"provenance": about, "rows": rows}, indent=1) + "\n")
