"""A whole ``fast_prune`` of ResNet-18 on images of 32 pixels, with and without pruning.

The ordinary run is a plain loop of as many epochs over all samples. It takes its batches by index
from the same tensors, and trains in the same precision, compiled or not as ``fast_prune`` is. Every
run starts with a new model, so where it is compiled the time to compile it is in its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import adapruner

from .device import Cpu
from .step import resnet18
from .timing import OURS, Case, alternate, claim, row, times_ours

SIZES, TINY = (20_480, 512, 6), (40, 20, 2)  # samples, batch, epochs
CLASSES, PIXELS = 10, 32
KEEP_RATIO = 0.7
ALL, ORDINARY = "fast_prune, keep ratio 1", "ordinary run"
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "bf16, compiled": {"precision": "bf16", "compile": True},
    "fp32": {},
}


def make_data(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise around a mean that says their class."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (samples,), generator=random)
    x = torch.randn(samples, 3, PIXELS, PIXELS, generator=random)
    return x + (y / CLASSES)[:, None, None, None], y


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def make_model(device: Cpu) -> nn.Module:
    torch.manual_seed(0)
    torch.compiler.reset()
    return resnet18(CLASSES).to(device.name, memory_format=torch.channels_last)


def ordinary(
    device: Cpu, x: torch.Tensor, y: torch.Tensor, batch: int, epochs: int, way: dict[str, Any]
) -> None:
    model = make_model(device)
    forward = torch.compile(model) if way.get("compile") else model
    optimizer = make_optimizer(model.parameters())
    random = torch.Generator().manual_seed(0)
    bf16 = way.get("precision") == "bf16"
    for _ in range(epochs):
        for ids in torch.randperm(len(x), generator=random).split(batch):
            inputs = x[ids].to(device.name, memory_format=torch.channels_last)
            with torch.autocast(device.name, torch.bfloat16, enabled=bf16):
                loss = functional.cross_entropy(forward(inputs), y[ids].to(device.name))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    device.synchronize()


def measure(
    device: Cpu, sizes: tuple[int, int, int], way: dict[str, Any], seconds: float
) -> dict[str, Any]:
    samples, batch, epochs = sizes
    x, y = make_data(samples)

    def pruning(keep_ratio: float) -> adapruner.PruneResult:
        result = adapruner.fast_prune(
            make_model(device),
            (x, y),
            keep_ratio,
            epochs,
            batch_size=batch,
            optimizer=make_optimizer,
            progress=False,
            **way,
        )
        device.synchronize()
        return result

    result = pruning(KEEP_RATIO)  # also fills torch's caches of compiled code
    assert len(result.indices) == int(KEEP_RATIO * samples + 0.5)
    runs = {
        OURS: partial(pruning, KEEP_RATIO),
        ALL: partial(pruning, 1.0),
        ORDINARY: partial(ordinary, device, x, y, batch, epochs, way),
    }
    timings = alternate(device, runs, seconds, least=2)
    read = {name: result.saved[name] for name in ("samples_read", "samples_read_full")}
    found = row(timings, {}, samples=samples, batch=batch, epochs=epochs, **read)
    rival = times_ours(found, ORDINARY)
    claim(found, "of the time of an ordinary run", rival and 1 / rival, 0.85, most=True)
    return found


def rehearse(device: Cpu, way: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The same steps in tiny sizes. Nothing is compiled, which would take minutes on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        return measure(device, TINY, way, seconds)


def cases(device: Cpu, tiny: bool) -> Iterator[Case]:
    for name, way in WAYS.items():
        of_way = partial(rehearse, device, way) if tiny else partial(measure, device, SIZES, way)
        yield Case(name, of_way)
