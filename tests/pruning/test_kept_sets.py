"""For given losses, kept sets stay the same, bit for bit: those of the published method since
version 0.1.0, those of the sampled method since its range ends by a quantile (decision 39)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapruner import Pruner

N, EPOCHS = 1000, 9
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "classes": {"labels": np.arange(N) % 7},
    "held out": {"held_out": np.arange(0, N, 9), "normalize_loss": True},
    "untracked": {"track_losses": False, "warmup_epochs": 0, "explore": 0.1},
}
# SHA-256 of the kept indices. Those of "published" are of version 0.1.0.
KEPT = {
    "sampled": {
        "plain": ["e1b18a176f75b9e1", "f67cc0fb117dd93c", "1927511b3fdb94c8"],
        "classes": ["0d406097503b0c28", "a359ea9ce2c73364", "3ab6654fec257e14"],
        "held out": ["259477dd9f65b32c", "90c30eedaa0fbf64", "e931ad1e406ead46"],
        "untracked": ["3d88621d487c47b2", "ffded227796e4065", "12a1d726610dccf4"],
    },
    "published": {
        "plain": ["48bd347a8c7d4f3b", "2277fb835197eaa2", "6c30950fa2d9913e"],
        "classes": ["7b9f62c826f86983", "075996154128d658", "1c4668d4e99f20cb"],
        "held out": ["9708693e03f96c5e", "25f3f5ddb676d083", "5526a0a91da08515"],
        "untracked": ["199e2af8b9cbdbd8", "d29d7d2d4af35127", "1d25ec1e81976e0c"],
    },
}


def kept(method: str, form: str, seed: int) -> str:
    """SHA-256 of the kept set of a run on made-up losses."""
    settings = FORMS[form]
    pruner = Pruner(N, 0.4, EPOCHS, method=method, seed=seed, **settings)
    random = torch.Generator().manual_seed(seed)
    # Multiples of 1/8: exact on every machine, with ties.
    base = torch.randint(0, 24, (N,), generator=random)
    while not pruner.finished:
        noise = torch.randint(0, 12, (N,), generator=random)
        losses: Tensor = (base + noise) / 8 / (1 + pruner.epoch)
        for ids in pruner.batches(37):
            pruner.weigh(losses[ids], ids)
        if "held_out" in settings:
            held_out = torch.from_numpy(settings["held_out"])
            pruner.observe(losses[held_out], held_out)
        if pruner.epoch == 2:
            pruner.exclude([(5, "gone"), (17, "gone")])
        pruner.step(1.0 / (1 + pruner.epoch), 0.01)
    return hashlib.sha256(pruner.result().indices.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["sampled", "published"])
def test_kept_sets_stay_the_same(method: str, form: str, seed: int) -> None:
    assert kept(method, form, seed) == KEPT[method][form][seed]
