"""Keys that draw samples without replacement, beside the same made of torch's random numbers."""

from __future__ import annotations

import pytest
import torch

from adapruner import ops
from adapruner.ops import reference

from .inputs import OURS, generator

SCALE, TURNS, KEY = 1.5, 0.5, 12345
QUICK = 10_000_000


@pytest.mark.parametrize("n", [10**6, 10**7, 10**8], ids=lambda n: f"{n:.0e}")
def test_sampling_keys(compare, threads, full, n):
    if n > QUICK and not full:
        pytest.skip("part of --full")
    m = torch.randn(n, generator=generator(9))
    age = torch.randint(0, 256, (n,), dtype=torch.uint8, generator=generator(10))

    def ours():
        return ops.sampling_keys(m, age, SCALE, TURNS, KEY)

    random = generator(11)

    def gumbel():  # in float32
        noise = torch.empty(n).exponential_(generator=random).log_()
        return SCALE * m + TURNS * age.clamp(min=1).log() - noise

    some = slice(0, 1000)
    expected = reference.sampling_keys(m[some].tolist(), age[some].tolist(), SCALE, TURNS, KEY)
    torch.testing.assert_close(ours()[some], expected.float(), rtol=2e-7, atol=0)
    compare({OURS: ours, "torch, exponential_ and log": gumbel}, least=3)
