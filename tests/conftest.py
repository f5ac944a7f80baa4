"""Settings of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from adapruner.ops.device import why_no_cuda

# gcsfs asks for the kind of a bucket by gRPC, which the emulator of the tests does not speak, for a
# minute. It reads this when it is first imported, which other packages do.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

# More threads do not help the small networks of the tests, and waiting threads are slow on a busy
# machine. Tests about threads set their own number.
torch.set_num_threads(1)


NO_CUDA = why_no_cuda()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if NO_CUDA and item.get_closest_marker("cuda"):
        pytest.skip(NO_CUDA)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the CPU and, where there is one, on a GPU.

    The device is torch's default device during the test. Sample inputs and gates of
    tests/support/sample_inputs.py are on it too, with the same values on both devices, and so are
    the tensors of the reference. A file runs on both devices with
    ``pytestmark = pytest.mark.usefixtures("device")``.
    """
    if request.param == "cpu":
        yield "cpu"
        return
    with torch.device(request.param):
        yield request.param


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same random numbers in every run of a test. Other tests keep theirs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=["torch", "workers", "dali"])
def loader_for(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a loader of images for a pruner, once for each kind of loader."""

    def call(data: Any, pruner: Any, on_error: str = "skip") -> Any:
        from adapruner import as_source
        from adapruner.vision import evaluation_transform

        source = as_source(data, transform=evaluation_transform(16))
        if request.param == "dali":
            pytest.importorskip("nvidia.dali")
            from adapruner.data.dali.loader import DaliLoader

            return DaliLoader(source, pruner, 4, on_error=on_error, num_threads=1)
        workers = 1 if request.param == "workers" else 0
        return pruner.loader(source, 4, num_workers=workers, on_error=on_error)

    return call
