"""Seeds. Each random number of a run depends on its seed, an epoch and a named stream."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

# Held by a thread while it has seeded the global generators of torch, NumPy and random.
GENERATORS = threading.RLock()


class Stream(IntEnum):
    """The uses of random numbers in an epoch. Each use has its own seed."""

    MODEL = 1  # dropout, for example
    EXPLORATION = 2  # which pruned samples an epoch reads
    DRAW = 3  # which samples a sampled method draws
    AUGMENTATION = 4  # windows, mirroring and the random numbers of a DALI graph


def epoch_seed(seed: int, epoch: int) -> int:
    """The 63-bit seed of the order of an epoch."""
    return _hashed(seed, epoch)


def stream_seed(seed: int, epoch: int, stream: Stream) -> int:
    """The 63-bit seed of a stream in an epoch."""
    return _hashed(seed, epoch, 0, stream)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 63-bit seed for reading one sample in an epoch.

    Args:
        index: dataset index of the sample.
    """
    # + 1, because SeedSequence gives (seed, epoch, 0) and (seed, epoch) the same state.
    return _hashed(seed, epoch, index + 1)


def _hashed(*parts: int) -> int:
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def splitmix(counters: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """The numbers at some places of the sequence of SplitMix64 that starts at ``key``.

    No two places of one sequence have the same number. Source: Steele, Lea and Flood, *Fast
    Splittable Pseudorandom Number Generators*, OOPSLA 2014.
    """
    return mix(counters * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key))


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64, a bijection of 64-bit numbers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the global generators of torch (CPU), ``random`` and NumPy afterwards.

    Threads take turns.
    """
    with GENERATORS:
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            yield
        finally:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])  # noqa: NPY002


def seed_generators(seed: int) -> None:
    """Seed the generators that :func:`generators_restored` restores."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (augmentations draw from it)
