"""Settings of the tests of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from adapruner.ops.device import why_no_cuda

NO_CUDA = why_no_cuda()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if NO_CUDA and item.get_closest_marker("cuda"):
        pytest.skip(NO_CUDA)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks of the tests are too small for more threads to help."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same random numbers in every run of a test, and the others' left as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
