"""Segmentation: a small U-Net on the street scenes that adapruner keeps.

A sample is an image with its mask, and its loss is the mean over its labelled pixels. `fast_prune`
takes the masks as targets, and `ignore_index` leaves out pixels without a class. Takes camvid/ in
the folder of `--data`: {train,test}/NAME.jpg and {train,test}annot/NAME.png, at half
their size.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import adapruner

METRIC = "mIoU"
CLASSES, UNLABELLED, SIZE = 11, 11, (120, 90)  # width, height


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 [N, 3, 90, 120], and masks, int64 [N, 90, 120]."""
    images, masks = [], []
    for path in sorted((folder / "camvid" / split).glob("*.*")):
        mask = folder / "camvid" / f"{split}annot" / f"{path.stem}.png"
        images.append(np.asarray(Image.open(path).convert("RGB").resize(SIZE, Image.BOX)))
        masks.append(np.asarray(Image.open(mask).resize(SIZE, Image.NEAREST)))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(np.stack(masks).astype(np.int64))


def block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs, momentum=0.5), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two levels down and up again, at a quarter of the size of the images.

    Takes uint8 images [B, 3, H, W] and gives logits [B, CLASSES, H, W].
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4, padding=1)
        self.down = nn.ModuleList([block(width, width), block(width, 2 * width)])
        self.bottom = block(2 * width, 4 * width)
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, skips = self.stem(images.float() / 255 - 0.45), []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for level, skip in zip(self.up, reversed(skips), strict=True):
            x = level(torch.cat([F.interpolate(x, skip.shape[-2:]), skip], 1))
        return F.interpolate(self.head(x), images.shape[-2:], mode="bilinear")


@torch.no_grad()
def mean_iou(model: nn.Module, images: Tensor, masks: Tensor) -> float:
    """Intersection over union, the mean over the classes that occur."""
    model.eval()
    counts = torch.zeros(CLASSES, CLASSES)
    for x, y in zip(images.split(64), masks.split(64), strict=True):
        found, labelled = model(x).argmax(1), y != UNLABELLED
        pairs = y[labelled] * CLASSES + found[labelled]
        counts += pairs.bincount(minlength=CLASSES**2).view(CLASSES, CLASSES)
    shared, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
    return (shared[counts.sum(1) > 0] / union[counts.sum(1) > 0]).mean().item()


def compare(
    folder: Path,
    keep_ratio: float,
    epochs: int,
    seed: int,
    method: str = "sampled",
    most: int | None = None,
) -> Iterator[tuple[str, int, float]]:
    """Every way to train: its name, the samples that it keeps and its mIoU on the test images."""
    (images, masks), test = load(folder, "train"), load(folder, "test")
    images, masks, test = images[:most], masks[:most], tuple(part[:most] for part in test)
    count = math.floor(keep_ratio * len(images) + 0.5)

    def run(indices=slice(None), ratio: float = 1.0):
        """The result of a run, and the mIoU of its model."""
        torch.manual_seed(seed)
        model = UNet()
        result = adapruner.fast_prune(
            model,
            (images[indices], masks[indices]),
            ratio,
            epochs,
            batch_size=8,
            learning_rate=1e-2,
            seed=seed,
            method=method,
            ignore_index=UNLABELLED,
            progress=False,
        )
        return result, mean_iou(model, *test)

    result, value = run(ratio=keep_ratio)
    yield "adapruner", count, value
    yield "kept set, anew", count, run(result.indices)[1]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    yield "random part", count, run(chosen)[1]
    yield "all data", len(images), run()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="sampled", help="of adapruner")
    parser.add_argument("--quick", action="store_true", help="2 epochs of 24 images")
    args = parser.parse_args()
    if not (args.data / "camvid" / "train").is_dir():
        parser.error(f"--data is to hold camvid/train; {args.data} does not")
    epochs, most = (2, 24) if args.quick else (args.epochs, None)
    print(f"{'trained on':<16}{'samples':>8}{METRIC:>12}")
    ways = compare(args.data, args.keep_ratio, epochs, args.seed, args.method, most)
    for name, samples, value in ways:
        print(f"{name:<16}{samples:>8}{value:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
