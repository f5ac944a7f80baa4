"""Object detection: a small FCOS for blood cells, on the images that adapruner keeps.

`image_losses` gives the loss of each image, which `pruner.weigh` takes. COCO's mAP is
pycocotools'. Takes the folder bccd/ of BCCD_Dataset (364 images, three kinds of cells, Pascal VOC's
form) in the folder of `--data`, and torchvision and pycocotools: `pip install
"adapruner[detection]"`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.transforms.functional import pil_to_tensor

import adapruner
from adapruner.integrations.detection import collate, image_losses

METRIC = "mAP"
CLASSES = ["RBC", "WBC", "Platelets"]
SIZE, BATCH, WIDTH = (96, 128), 8, 64


class Cells(torch.utils.data.Dataset):
    """Images [3, *SIZE] with their boxes in memory; mirrored at random where `flip` is set."""

    def __init__(
        self, folder: Path, split: str, flip: bool = False, most: int | None = None
    ) -> None:
        self.flip, self.samples = flip, []
        for name in (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[:most]:
            image = Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB")
            objects = ElementTree.parse(folder / "Annotations" / f"{name}.xml").findall("object")
            corners = ("xmin", "ymin", "xmax", "ymax")
            boxes = [[float(o.find(f"bndbox/{c}").text) for c in corners] for o in objects]
            scale = torch.tensor([SIZE[1] / image.width, SIZE[0] / image.height]).repeat(2)
            boxes = torch.tensor(boxes) * scale
            labels = torch.tensor([CLASSES.index(o.find("name").text) for o in objects])
            real = (boxes[:, 2:] > boxes[:, :2]).all(1)  # two of the annotations are points
            target = {"boxes": boxes[real], "labels": labels[real]}
            self.samples.append((pil_to_tensor(image.resize(SIZE[::-1])), target))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, target = self.samples[index]
        if self.flip and torch.rand(()) < 0.5:
            boxes = target["boxes"].clone()
            boxes[:, [0, 2]] = SIZE[1] - boxes[:, [2, 0]]
            image, target = image.flip(2), {**target, "boxes": boxes}
        return image / 255, target


class Backbone(nn.Module):
    """Features of strides 8 and 16, WIDTH channels each."""

    out_channels = WIDTH

    def __init__(self) -> None:
        super().__init__()
        strides, widths = (2, 2, 1, 2, 1, 2, 1), (3, 16, 32, 32, 64, 64, 96, 96)
        layers = [
            Conv2dNormActivation(a, b, stride=s)
            for a, b, s in zip(widths, widths[1:], strides, strict=False)
        ]
        self.near, self.far = nn.Sequential(*layers[:5]), nn.Sequential(*layers[5:])
        self.pyramid = FeaturePyramidNetwork([64, 96], WIDTH)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        near = self.near(x)
        return self.pyramid({"near": near, "far": self.far(near)})


def detector() -> FCOS:
    anchors = AnchorGenerator(sizes=((8,), (16,)), aspect_ratios=((1.0,), (1.0,)))
    head = FCOSHead(WIDTH, 1, len(CLASSES), num_convs=1)
    # Sides of boxes pass a ReLU, which closes for good in some runs that start at 0.
    nn.init.constant_(head.regression_head.bbox_reg.bias, 2.0)
    return FCOS(
        Backbone(), len(CLASSES), *SIZE, anchor_generator=anchors, head=head, score_thresh=0.05
    )


def train(dataset, epochs: int, seed: int, pruner=None) -> FCOS:
    """A new detector, trained on all of the dataset, or on what the pruner chooses."""
    torch.manual_seed(seed)
    model = detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda e: min((e + 1) / 3, 0.5 + 0.5 * math.cos(math.pi * e / epochs))
    )
    # One that keeps everything reads in the same way, and weighs nothing.
    reads = pruner or adapruner.Pruner(len(dataset), 1.0, epochs, seed=seed)
    loader = reads.loader(dataset, BATCH, collate_fn=collate)
    for _ in range(epochs):
        for images, targets, ids in loader:
            sample_loss = image_losses(model, images, targets)
            loss = pruner.weigh(sample_loss, ids) if pruner else sample_loss.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reads.step()
        rate.step()
    return model


@torch.no_grad()
def mean_average_precision(model: FCOS, dataset: Cells) -> float:
    """COCO's mAP, over the overlaps 0.5 to 0.95."""
    model.eval()
    images, boxes, found = [], [], []
    for index, (image, target) in enumerate(dataset):
        images.append({"id": index})
        shown = {"boxes": target["boxes"], "labels": target["labels"]}
        for into, about in ((boxes, shown), (found, model([image])[0])):
            corners = about["boxes"]
            sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
            areas = sides[:, 2:].prod(1).tolist()
            scores = about.get("scores", torch.ones(len(sides))).tolist()
            columns = zip(sides.tolist(), areas, about["labels"].tolist(), scores, strict=True)
            into += [
                {"image_id": index, "bbox": box, "area": area, "category_id": label, "score": score}
                for box, area, label, score in columns
            ]
    with contextlib.redirect_stdout(None):  # pycocotools says what it does
        truth, guess = COCO(), COCO()
        for coco, annotations in ((truth, boxes), (guess, found)):
            numbered = [{"id": i, "iscrowd": 0} | a for i, a in enumerate(annotations, 1)]
            categories = [{"id": i} for i in range(len(CLASSES))]
            coco.dataset = {"images": images, "annotations": numbered, "categories": categories}
            coco.createIndex()
        evaluation = COCOeval(truth, guess, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def compare(
    folder: Path,
    keep_ratio: float,
    epochs: int,
    seed: int,
    method: str = "sampled",
    most: int | None = None,
) -> Iterator[tuple[str, int, float]]:
    """Every way to train: its name, the images that it keeps and its mAP on the test images."""
    data = Cells(folder / "bccd", "trainval", flip=True, most=most)
    test = Cells(folder / "bccd", "test", most=most)
    count = math.floor(keep_ratio * len(data) + 0.5)

    def run(indices=None, pruner=None) -> float:
        chosen = data if indices is None else torch.utils.data.Subset(data, indices.tolist())
        return mean_average_precision(train(chosen, epochs, seed, pruner), test)

    pruner = adapruner.Pruner(
        len(data), keep_ratio, epochs, seed=seed, method=method, normalize_loss=True
    )
    yield "adapruner", count, run(pruner=pruner)
    yield "kept set, anew", count, run(pruner.result().indices)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    yield "random part", count, run(chosen)
    yield "all data", len(data), run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--keep-ratio", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="sampled", help="of adapruner")
    parser.add_argument("--quick", action="store_true", help="2 epochs of 20 images")
    args = parser.parse_args()
    if not (args.data / "bccd").exists():
        parser.error(f"--data is to hold bccd; {args.data} does not")
    print(f"{'trained on':<16}{'samples':>8}{METRIC:>8}")
    epochs, most = (2, 20) if args.quick else (args.epochs, None)
    ways = compare(args.data, args.keep_ratio, epochs, args.seed, args.method, most)
    for name, samples, value in ways:
        print(f"{name:<16}{samples:>8}{value:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
