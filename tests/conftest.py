"""Settings of the whole suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# The networks of the tests are too small for more threads to help, and waiting ones slow each other
# down on a busy machine. Tests that are about threads set their own.
torch.set_num_threads(1)


@pytest.fixture
def seeded() -> Iterator[None]:
    """The same random numbers in every run of a test, and the others' left as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
