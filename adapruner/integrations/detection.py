"""Object detection with torchvision: the loss of each image of a batch.

torchvision's detectors compute one loss for the whole batch. Here backbone and head run once for
the batch. Matching of boxes and loss, which cost little in comparison, run for each image, with the
``compute_loss`` of the detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapruner._util.extras import require

Target = dict[str, Tensor]


def image_losses(
    model: torch.nn.Module,
    images: Sequence[Tensor],
    targets: Sequence[Target],
) -> Tensor:
    """The loss of each image of a batch, for :meth:`adapruner.Pruner.weigh`.

    The loss of an image is the sum of the detector's losses (classification, boxes, and for FCOS
    centerness) for this image alone. torchvision's loss of a batch is the mean of these losses for
    RetinaNet. For FCOS it is their mean weighted by the number of locations that are matched to
    boxes of the image.

    The function works in training mode, and in evaluation mode for held-out images.

    Args:
        model: a :class:`torchvision.models.detection.FCOS` or
            :class:`torchvision.models.detection.RetinaNet`, or an instance of a subclass.
        images: B images ``[3, H, W]``, float in [0, 1], of any sizes.
        targets: for each image a dict of "boxes", float ``[n, 4]`` as x1, y1, x2, y2 in pixels,
            and "labels", int64 ``[n]``; n may be 0.

    Returns:
        ℓ, float ``[B]``, with its graph.

    Raises:
        TypeError: the model is another detector.
        ValueError: there are no images, or not as many targets as images, or boxes have a wrong
            shape or are empty. The message names the target.
    """
    detection = require("torchvision.models.detection", extra="detection")
    if not isinstance(model, (detection.FCOS, detection.RetinaNet)):
        raise TypeError(
            "model must be torchvision's FCOS or RetinaNet (others reduce their losses in another "
            f"way); found {type(model).__name__}"
        )
    _check(images, targets)
    model_any: Any = model
    batch, scaled = model_any.transform(list(images), list(targets))
    features = model_any.backbone(batch.tensors)
    levels = [features] if isinstance(features, Tensor) else list(features.values())
    outputs = model_any.head(levels)
    anchors = model_any.anchor_generator(batch, levels)
    # FCOS needs the sizes of the levels, because each level is for boxes of a range of sizes.
    more = [[x.shape[-2] * x.shape[-1] for x in levels]] * isinstance(model, detection.FCOS)
    losses = []
    for i, target in enumerate(scaled):
        own = {name: output[i : i + 1] for name, output in outputs.items()}
        parts = model_any.compute_loss([target], own, [anchors[i]], *more)
        losses.append(torch.stack(list(parts.values())).sum())
    return torch.stack(losses)


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Make a batch in torchvision's form, a list of images and a list of targets."""
    return [image for image, _ in samples], [target for _, target in samples]


def _check(images: Sequence[Tensor], targets: Sequence[Target]) -> None:
    if len(images) != len(targets) or not len(images):
        raise ValueError(
            f"expected at least one image and a target for each; found {len(images)} images and "
            f"{len(targets)} targets"
        )
    for i, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.shape != (len(labels), 4):
            raise ValueError(
                f"boxes of target {i} must be [{len(labels)}, 4], one for each label; found "
                f"{list(boxes.shape)}"
            )
        wrong = (~(boxes[:, 2:] > boxes[:, :2]).all(1)).nonzero()
        if len(wrong):
            raise ValueError(
                f"box {int(wrong[0])} of target {i} must have x2 > x1 and y2 > y1; found "
                f"{boxes[wrong[0, 0]].tolist()}"
            )
