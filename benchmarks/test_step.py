"""A whole training step of a small model with the gates of 1e7 samples: pruning's share of it.

The model, its optimiser and the batch are the same for all. ``plain`` trains without pruning, in
cross entropy; ``published`` has the mask of all samples as a parameter of the model's optimiser, as
the method was published.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import adapruner

from .inputs import EPSILON, OURS, generator

N = 10_000_000
BATCH, CLASSES, POOL = 256, 100, 64


def network() -> nn.Module:
    """A few milliseconds a step on two cores."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES)
    )


def optimiser(model: nn.Module, *more: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.SGD([*model.parameters(), *more], lr=1e-3, momentum=0.9, weight_decay=5e-4)


def make_steps() -> dict[str, Callable[[], float]]:
    """Name to a step that gives the loss before it."""
    x = torch.randn(BATCH, 512, generator=generator(1))
    y = torch.randint(CLASSES, (BATCH,), generator=generator(2))
    batches = torch.randint(N, (POOL, BATCH), generator=generator(3))

    def make(loss_of, *more):
        model = network()
        optimizer = optimiser(model, *more)
        drawn = itertools.cycle(batches)

        def step():
            loss = loss_of(model(x), next(drawn))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    pruner = adapruner.Pruner(N, epochs=2, warmup_epochs=0)
    mask = nn.Parameter(torch.ones(N))

    def published(logits, ids):
        loss = functional.cross_entropy(logits, y, reduction="none")
        gates = torch.sigmoid(mask * 0.1)
        mean_gate, open_share = gates.mean(), (mask > 0).float().mean()
        balance = (1 + 50 * (open_share - 0.7).abs()) * (mean_gate - 0.7) ** 2
        easy = (gates[ids] * torch.log(loss.detach() + EPSILON)).mean()
        return (gates[ids] * loss).mean() - easy + balance

    return {
        OURS: make(lambda logits, ids: pruner.loss(logits, y, ids)),
        "plain": make(lambda logits, ids: functional.cross_entropy(logits, y)),
        "published": make(published, mask),
    }


@pytest.mark.parametrize("rival", ["plain", "published"])
def test_step(compare, threads, rival):
    steps = make_steps()
    # The first steps start from the same weights, and gates of the default do not weigh the loss.
    assert steps[OURS]() == pytest.approx(steps["plain"](), rel=1e-5)
    # One at a time: the published one leaves cold caches to whoever comes next.
    compare({name: steps[name] for name in (OURS, rival)}, seconds=6.0, samples=N)
