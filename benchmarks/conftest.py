"""Shared by the suites: threads, bandwidth, and the comparison with rivals in one process."""

from __future__ import annotations

import json
import os
import sys

# Huge pages for torch, before the first tensor: NumPy asks for them by itself. Without them the
# page faults of fresh outputs drown the rest. The tests of benchmarks/tests do without.
if "--benchmark-only" in sys.argv:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from .alternate import alternate
from .bandwidth import Bandwidth, measure_bandwidth
from .provenance import provenance

ALL = torch.get_num_threads()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="everything at full size")
    parser.addoption("--results", help="folder for a JSON file per suite")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every benchmark that names ``threads`` runs with one and with all of them."""
    if "threads" in metafunc.fixturenames:
        counts = sorted({1, ALL}, reverse=True)
        metafunc.parametrize("threads", counts, ids=[f"{c} threads" for c in counts], indirect=True)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the run at full size."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    # What torch.compile has compiled is for the number of threads that there were.
    torch._dynamo.reset()
    yield request.param
    torch.set_num_threads(ALL)


@pytest.fixture(scope="session")
def _bandwidths() -> dict[int, Bandwidth]:
    return {}


@pytest.fixture
def bandwidth(_bandwidths: dict[int, Bandwidth]) -> Bandwidth:
    """The machine's own, at the present number of threads; measured once for each."""
    count = torch.get_num_threads()
    if count not in _bandwidths:
        _bandwidths[count] = measure_bandwidth()
    return _bandwidths[count]


@pytest.fixture
def compare(benchmark) -> Callable[..., Any]:
    """Time rivals in turns; the first one is ours. What was measured goes to ``extra_info``.

    ``facts`` are numbers of the row besides times: bytes, samples. Gives what ours gave.
    """

    def run(
        rivals: Mapping[str, Callable[[], object]],
        seconds: float = 2.0,
        least: int = 5,
        **facts: Any,
    ) -> Any:
        # What pytest-benchmark's own table shows is ours alone, one run of it.
        outcome = benchmark.pedantic(next(iter(rivals.values())), rounds=1)
        timings = alternate(rivals, seconds, least)
        benchmark.extra_info["threads"] = torch.get_num_threads()
        benchmark.extra_info["rivals"] = {name: asdict(t) for name, t in timings.items()}
        benchmark.extra_info.update(facts)
        return outcome

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    terminalreporter.section("beside the rivals, alternating in one process")
    suites: dict[str, dict[str, Any]] = {}
    for bench in session.benchmarks:
        suite = Path(bench.fullname.split("::")[0]).stem.removeprefix("test_")
        suites.setdefault(suite, {})[bench.name.removeprefix("test_")] = bench.extra_info
        terminalreporter.write_line(bench.name)
        for name, row in bench.extra_info.get("rivals", {}).items():
            lower, median, upper = (1e3 * second for second in row["seconds"])
            terminalreporter.write_line(
                f"  {name:<32}{median:>12.4f} ms [{lower:.4f}, {upper:.4f}]"
                f"{row['times_first'][1]:>10.3f} × ours   n = {row['n']}"
            )
    if folder := config.getoption("--results"):
        for suite, rows in suites.items():
            write_results(Path(folder) / f"{suite}.json", rows)


def write_results(path: Path, rows: Mapping[str, Any]) -> None:
    """One suite's rows, with where they come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"provenance": provenance(), "rows": rows}
    path.write_text(json.dumps(about, indent=1) + "\n")
