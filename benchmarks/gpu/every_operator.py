"""Every kernel once or twice on small, odd sizes, for compute-sanitizer to watch.

    PYTHONPATH=tests python -m benchmarks.gpu.every_operator cuda|cpu

First the sample inputs of the tests, then training: forward, backward, and the ends of epochs.
"""

from __future__ import annotations

import sys

import torch

from adapruner import Pruner, ops
from adapruner.pruning import bitmask

from .device import find_device
from .smoke import all_moved
from .smoke_calls import samples

N, BATCH = 5003, 701


def call_operators(device: str) -> None:
    for call in samples():
        arguments, options = call.make()
        named = dict(zip(options, all_moved(list(options.values()), device), strict=True))
        with torch.no_grad():
            getattr(torch.ops.adapruner, call.operator)(*all_moved(arguments, device), **named)


def train(pruner: Pruner, device: str, classes: int, dtype: torch.dtype, overwrite: bool) -> None:
    """An epoch on made-up logits, which start at an odd address."""
    for ids in pruner.batches(BATCH):
        ids = ids.to(device)
        memory = torch.randn(len(ids) * classes + 1, device=device, dtype=dtype)
        leaf = memory[1:].view(len(ids), classes).requires_grad_()
        logits = leaf * 1 if overwrite else leaf
        target = ids % classes
        loss = pruner.loss(logits, target, ids, overwrite_logits=overwrite, label_smoothing=0.1)
        (loss * 0.5).backward()
        pruner.weigh(torch.rand(len(ids), device=device, requires_grad=True), ids).backward()
    pruner.step()


def train_linear(device: str) -> None:
    """Rows of many classes, from a linear layer and side by side."""
    pruner = Pruner(N, epochs=2, warmup_epochs=0, device=device)
    for classes in (128, 33001):
        ids = torch.arange(5, device=device)
        hidden = torch.randn(5, 2, 24, device=device, requires_grad=True)
        head = torch.randn(classes, 24, device=device, requires_grad=True)
        target = torch.randint(classes, (5, 2), device=device)
        pruner.linear_loss(hidden, head, target, ids).backward()
        logits = torch.randn(5, classes, 2, device=device, requires_grad=True)
        pruner.loss(logits, target, ids).backward()


def select(device: str) -> None:
    """What the samples of the tests are too small for: selections of several blocks."""
    for n in (16_384, 70_001):
        m = torch.randn(n, device=device)
        selected = ops.topk_mask(m, n // 2, 1.0).selected
        assert bitmask.count(selected.cpu()) == n // 2


def main() -> None:
    device = find_device(sys.argv[1])
    torch.manual_seed(0)
    call_operators(device.name)
    labels = torch.arange(N) % 7
    for settings in ({}, {"labels": labels}):
        pruner = Pruner(N, epochs=4, device=device.name, **settings)
        for classes, dtype in ((3, torch.float32), (10, torch.float16), (1000, torch.bfloat16)):
            train(pruner, device.name, classes, dtype, overwrite=classes == 1000)
    train_linear(device.name)
    select(device.name)
    device.synchronize()


if __name__ == "__main__":
    main()
