"""A training step of ResNet-18 with and without pruning: batch 512, bfloat16, channels last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import OURS, alternate, claim, generator, prepared, row, times_ours, warmed
from torch import nn
from torch.nn import functional

import adapruner

SAMPLES = 1_281_167  # ImageNet's
BATCH, CLASSES, PIXELS, POOL = 512, 1000, 224, 8
PLAIN = "plain"


def resnet18() -> nn.Module:
    """torchvision's or timm's, whichever is here."""
    try:
        from torchvision.models import resnet18 as make
    except ImportError:
        from timm import create_model

        return create_model("resnet18", num_classes=CLASSES)
    return make(num_classes=CLASSES)


def make_step(loss_of: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
    torch.manual_seed(0)
    model = resnet18().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    x = torch.randn(BATCH, 3, PIXELS, PIXELS, generator=generator(1), device="cuda")
    x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (BATCH,), generator=generator(2), device="cuda")
    ids = torch.randint(SAMPLES, (POOL, BATCH), generator=generator(3), device="cuda")
    drawn = itertools.cycle(ids)

    def step() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(x)
        loss = loss_of(logits, y, next(drawn))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def rows(quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    torch.backends.cudnn.benchmark = True
    pruner = adapruner.Pruner(SAMPLES, epochs=2, warmup_epochs=0, device="cuda")
    steps = {
        OURS: make_step(lambda logits, y, ids: pruner.loss(logits, y, ids, overwrite_logits=True)),
        PLAIN: make_step(lambda logits, y, ids: functional.cross_entropy(logits, y)),
    }
    # From the same weights, and gates of the default do not weigh: the same loss.
    first = {name: step().item() for name, step in steps.items()}
    torch.testing.assert_close(first[OURS], first[PLAIN], rtol=0.02, atol=0)
    ready, failed = prepared(steps, warmed)
    timings = alternate(ready, 6.0 if quick else 30.0, cold=False)
    found = row(timings, failed, batch=BATCH, samples=SAMPLES)
    plain = times_ours(found, PLAIN)
    claim(found, "% more than a plain step", plain and 100 * (1 / plain - 1), 1, most=True)
    yield "resnet18", found
