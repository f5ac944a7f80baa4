"""``fast_prune`` to 0.7, whole, beside an ordinary run of as many epochs over all samples.

Same model, data, batch size, optimiser and number of epochs; ``fast_prune`` with its defaults
otherwise: it holds some samples out, evaluates on them and selects, and all of that is in its time.
The ordinary run is what one writes without it: a DataLoader, cross entropy, no evaluation.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import adapruner

KEEP_RATIO, EPOCHS, BATCH = 0.7, 20, 128
IMAGES = 2_000  # of CIFAR-10's 50,000


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(data.target)


def cifar10() -> tuple[torch.Tensor, torch.Tensor]:
    if not (root := os.environ.get("ADAPRUNER_DATA")):
        pytest.skip("ADAPRUNER_DATA does not name a folder with cifar10/")
    folder = Path(root) / "cifar10"
    packed = np.memmap(folder / "train.jpegs", dtype=np.uint8, mode="r")
    index = np.load(folder / "train.index.npy")[:IMAGES]
    images = [
        np.asarray(Image.open(io.BytesIO(packed[begin : begin + length].tobytes())))
        for begin, length, _ in index
    ]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return x.div_(127.5).sub_(1), torch.from_numpy(index[:, 2].astype(np.int64))


def network(channels: int, widths: tuple[int, ...]) -> nn.Module:
    """Convolutions, each of the later ones at half the size."""
    layers: list[nn.Module] = []
    for before, width in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if width != widths[-1] else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def optimizer(parameters):
    return torch.optim.AdamW(parameters, lr=2e-3)


def ordinary(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    adamw = optimizer(model.parameters())
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True, generator=generator)
    for _ in range(EPOCHS):
        for inputs, targets in loader:
            loss = functional.cross_entropy(model(inputs), targets)
            adamw.zero_grad()
            loss.backward()
            adamw.step()


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_end_to_end(benchmark, compare, full, data):
    if data == "cifar10" and not full:
        pytest.skip("part of --full")
    x, y = digits() if data == "digits" else cifar10()
    widths = (24, 48) if data == "digits" else (32, 64, 128)
    torch.manual_seed(0)
    start = network(x.shape[1], widths).state_dict()

    def fresh() -> nn.Module:
        model = network(x.shape[1], widths)
        model.load_state_dict(start)
        return model

    def pruning():
        return adapruner.fast_prune(
            fresh(),
            (x, y),
            keep_ratio=KEEP_RATIO,
            epochs=EPOCHS,
            batch_size=BATCH,
            optimizer=optimizer,
            progress=False,
        )

    result = compare(
        {"adapruner": pruning, "ordinary run": lambda: ordinary(fresh(), x, y)}, least=3
    )
    assert len(result.indices) == int(KEEP_RATIO * len(x) + 0.5)
    read = {name: result.saved[name] for name in ("samples_read", "samples_read_full")}
    benchmark.extra_info.update(read)
