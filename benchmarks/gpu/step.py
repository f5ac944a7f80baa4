"""A training step of ResNet-18 with and without pruning: batch 512, bfloat16, channels last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import adapruner

from .device import Call, Cpu
from .timing import OURS, Case, alternate, claim, prepared, row, times_ours, warmed

SAMPLES = 1_281_167  # ImageNet's
CLASSES, POOL = 1000, 8
SIZES, TINY = (512, 224), (2, 32)  # batch and pixels
PLAIN = "plain"


def resnet18(classes: int) -> nn.Module:
    """torchvision's, or timm's where torchvision is not installed."""
    try:
        from torchvision.models import resnet18 as make
    except ImportError:
        from timm import create_model

        return create_model("resnet18", num_classes=classes)
    return make(num_classes=classes)


def make_step(
    device: Cpu, sizes: tuple[int, int], compiled: bool, loss_of: Callable[..., torch.Tensor]
) -> Call:
    batch, pixels = sizes
    torch.manual_seed(0)
    model = resnet18(CLASSES).to(device.name, memory_format=torch.channels_last)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    draw = {"generator": device.generator(1), "device": device.name}
    x = torch.randn(batch, 3, pixels, pixels, **draw).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (batch,), **draw)
    drawn = itertools.cycle(torch.randint(SAMPLES, (POOL, batch), **draw))

    def step() -> torch.Tensor:
        with torch.autocast(device.name, torch.bfloat16):
            logits = forward(x)
        loss = loss_of(logits, y, next(drawn))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(device: Cpu, sizes: tuple[int, int], compiled: bool, seconds: float) -> dict[str, Any]:
    torch.backends.cudnn.benchmark = True
    pruner = adapruner.Pruner(SAMPLES, epochs=2, warmup_epochs=0, device=device.name)

    def pruned(logits: torch.Tensor, y: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return pruner.loss(logits, y, ids, overwrite_logits=True)

    def plain(logits: torch.Tensor, y: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, y)

    losses = {OURS: pruned, PLAIN: plain}
    steps = {name: make_step(device, sizes, compiled, loss_of) for name, loss_of in losses.items()}
    # From the same weights, and gates of the default do not weigh: the same loss.
    first = {name: step().item() for name, step in steps.items()}
    torch.testing.assert_close(first[OURS], first[PLAIN], rtol=0.02, atol=0)
    ready, failed = prepared(steps, partial(warmed, device))
    timings = alternate(device, ready, seconds, least=3, cold=False)
    found = row(timings, failed, batch=sizes[0], samples=SAMPLES)
    rival = times_ours(found, PLAIN)
    claim(found, "% more than a plain step", rival and 100 * (1 / rival - 1), 1, most=True)
    return found


def cases(device: Cpu, tiny: bool) -> Iterator[Case]:
    sizes = TINY if tiny else SIZES
    yield Case("resnet18, bf16", partial(measure, device, sizes, False))
    if not tiny:  # compiling takes longer than a rehearsal may
        yield Case("resnet18, bf16, compiled", partial(measure, device, sizes, True))
