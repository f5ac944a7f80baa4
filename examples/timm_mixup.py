"""timm: an image folder with wrong labels, pruned while a network trains with mixup.

scikit-learn's digits are written as an image folder. In it 15 % of the images are in a wrong
folder. The dataset, the loader, the augmentation, mixup and the averaged weights are timm's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.utils import ModelEmaV3
from torch import nn

import adapruner
from adapruner.integrations.timm import pruned_timm_loader, soft_target_losses


def write_digits(folder: Path, wrong: float = 0.15) -> None:
    """Write the digits as FOLDER/CLASS/NUMBER-RIGHT.png, where RIGHT is the right class."""
    held, generator = load_digits(), np.random.default_rng(0)
    for number, (pixels, right) in enumerate(zip(held.images, held.target, strict=True)):
        label = (right + 1) % 10 if generator.random() < wrong else right
        path = folder / str(label) / f"{number:04}-{right}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path)


def network() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(3, 16),
        nn.MaxPool2d(2),
        *block(16, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def run(folder: Path, epochs: int = 20):
    """The result, and which images are in a wrong folder."""
    torch.manual_seed(0)
    write_digits(folder)
    dataset = create_dataset("", str(folder))
    ordinary = create_loader(
        dataset,
        input_size=(3, 8, 8),
        batch_size=32,
        is_training=True,
        hflip=0.0,
        scale=(0.8, 1.0),
        mean=(0.3,) * 3,
        std=(0.4,) * 3,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        collate_fn=FastCollateMixup(mixup_alpha=0.1, label_smoothing=0.05, num_classes=10),
    )
    pruner = adapruner.Pruner(len(dataset), keep_ratio=0.7, epochs=epochs)
    loader = pruned_timm_loader(ordinary, pruner)
    model = network()
    average = ModelEmaV3(model, decay=0.99)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps = loader.loader.batch_sampler.planned_batches()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for inputs, targets, ids in loader:
            loss = pruner.weigh(soft_target_losses(model(inputs), targets), ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update(model)
        pruner.step()
    names = [Path(name) for name in dataset.filenames()]
    is_wrong = torch.tensor([name.stem[-1] != name.parent.name for name in names])
    return pruner.result(), is_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    torch.set_num_threads(1)  # the network is too small for more threads to help
    parser.add_argument("--epochs", type=int, default=20)
    with tempfile.TemporaryDirectory() as folder:
        result, is_wrong = run(Path(folder), parser.parse_args().epochs)
    print(f"kept {len(result.indices)} of {result.num_samples}")
    before, after = is_wrong.float().mean(), is_wrong[result.indices].float().mean()
    print(f"in a wrong folder: {before:.1%} of the training set, {after:.1%} of the kept set")


if __name__ == "__main__":
    main()
