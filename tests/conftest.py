"""Settings of the whole suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from adapruner.arguments import why_no_cuda

# The networks of the tests are too small for more threads to help, and waiting ones slow each other
# down on a busy machine. Tests that are about threads set their own.
torch.set_num_threads(1)


NO_CUDA = why_no_cuda()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if NO_CUDA and item.get_closest_marker("cuda"):
        pytest.skip(NO_CUDA)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the CPU and, where there is one, on a GPU.

    New tensors are on that device where nothing else is said. So are sample inputs and gates of
    tests/sample_inputs.py, of the same values on both, and the references' own tensors. A file runs
    on both by ``pytestmark = pytest.mark.usefixtures("device")``.
    """
    if request.param == "cpu":
        yield "cpu"
        return
    with torch.device(request.param):
        yield request.param


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same random numbers in every run of a test, and the others' left as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
