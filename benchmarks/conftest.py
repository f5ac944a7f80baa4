"""Shared by the benchmark suites: threads, and the comparison with rivals in one process."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping

import pytest
import torch
from alternate import Timing, alternate

import adapruner
from adapruner.ops import _C


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=0, help="threads of torch; 0: all cores")


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> None:
    if threads := request.config.getoption("--threads"):
        torch.set_num_threads(threads)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["adapruner"] = adapruner.__version__
    machine_info["instruction_set"] = _C.build_info()["instruction_set"]
    machine_info.pop("node", None)
    machine_info["system"] = platform.system()


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
