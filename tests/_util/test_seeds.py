"""Seeds differ for all arguments and streams. SplitMix64 gives the published numbers."""

from __future__ import annotations

import itertools

import numpy as np

from adapruner._util.seeds import Stream, epoch_seed, sample_seed, splitmix, stream_seed


def test_seeds_depend_on_every_argument() -> None:
    runs = list(itertools.product(range(6), repeat=2))
    seeds = [
        *(epoch_seed(*run) for run in runs),
        *(stream_seed(*run, stream) for run in runs for stream in Stream),
        *(sample_seed(*run, index) for run in runs for index in range(50)),
    ]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_streams_have_numbers_of_their_own() -> None:
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)


def test_splitmix_gives_the_published_sequence() -> None:
    # As a generator: the state grows by the golden gamma, then is mixed.
    state, expected = 1234567, []
    for _ in range(100):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        x = state
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        expected.append(x ^ x >> 31)
    assert splitmix(np.arange(1, 101, dtype=np.uint64), 1234567).tolist() == expected
