"""The examples in docstrings run and give their printed results."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

MODULES = [
    "adapruner.pruning.order",
    "adapruner.data.loaders.user_loader",
    "adapruner.data.sources.find",
    "adapruner.integrations.timm",
    "adapruner.ops.selection",
    "adapruner.pruning.pruner",
    "adapruner.pruning.quotas",
    "adapruner.training.fast_prune",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    with torch.random.fork_rng():
        outcome = doctest.testmod(
            importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
        )
    assert outcome.attempted > 0
    assert outcome.failed == 0
