"""Samples that compete among themselves: held-out ones, and groups that keep their own share."""

from __future__ import annotations

from typing import Any

import numpy as np

from adapruner.data.sources.base import Source
from adapruner.pruning.arguments import check_labels

# The controller's held-out samples: a share of the training data, and limits of their number.
HELD_OUT_SHARE, HELD_OUT_LEAST, HELD_OUT_MOST = 0.05, 20, 5000


def hold_out(num_samples: int, seed: int) -> np.ndarray | None:
    """The held-out indices, drawn by a seed, ascending; None where they would be too few."""
    count = min(int(HELD_OUT_SHARE * num_samples), HELD_OUT_MOST)
    if count < HELD_OUT_LEAST:
        return None
    generator = np.random.default_rng(np.random.SeedSequence([seed, num_samples]))
    return np.sort(generator.choice(num_samples, count, replace=False))


def quota_labels(balance: Any, source: Source) -> Any | None:
    """The group of each sample, integers ``[N]``; None where samples have no groups.

    Args:
        balance: "class", or the group of each sample, or None.
        source: the dataset.

    Raises:
        TypeError: groups are not integers.
        ValueError: another text, a dataset without classes, or groups of another shape.
    """
    if balance is None:
        return None
    if not isinstance(balance, str):
        return check_labels("balance", balance, len(source))
    if balance != "class":
        raise ValueError(
            f'balance must be None, "class" or the group of each sample; found {balance!r}'
        )
    if source.targets is None:
        raise ValueError(
            'balance="class" needs the classes of all samples before the run; found a dataset '
            "without a `targets` attribute"
        )
    return source.targets
