"""Transforms from images to tensors, for training and evaluation, and the image size."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adapruner._util.checks import checked_whole
from adapruner._util.extras import require
from adapruner.vision.augmentation import Crop, Zoom
from adapruner.vision.decoding import in_rgb, is_pil_image, to_picture

SMALL_IMAGE = 64  # pixels; up to this size stems are adapted, and images are cropped, not zoomed
USUAL_IMAGE = 224
_MOST_IMAGES = 16  # that guess_image_size opens

# ImageNet's mean and standard deviation of red, green and blue. They fit most images.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Pictures(Protocol):
    """A sequence of images."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Any: ...


class ImageTransform:
    """Turns an image into a normalised tensor, float32 ``[3, S, S]``.

    An image is a PIL image or a uint8 array ``[H, W]``, ``[H, W, 3]`` or ``[3, H, W]``. The DALI
    loader reads ``augmentation`` to apply the same transform.

    Args:
        augmentation: the window of the image, and whether to mirror it.

    Raises:
        ImportError: torchvision is not installed.
    """

    def __init__(self, augmentation: Zoom | Crop) -> None:
        v2 = require("torchvision.transforms.v2", extra="vision")
        self.augmentation = augmentation
        size = augmentation.size
        if isinstance(augmentation, Zoom):
            area, ratio = augmentation.area, augmentation.ratio
            steps = [v2.RandomResizedCrop(size, area, ratio), v2.RandomHorizontalFlip()]
        elif augmentation.margin is None:
            steps = [v2.Resize(augmentation.shorter), v2.CenterCrop(size)]
        else:
            steps = [
                v2.Resize(augmentation.shorter),
                v2.RandomCrop(size, padding=augmentation.margin),
                v2.RandomHorizontalFlip(),
            ]
        normalize = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ]
        self._steps = v2.Compose([*steps, *normalize])

    def __call__(self, image: Any) -> Tensor:
        """``image`` as a tensor."""
        tensor: Tensor = self._steps(in_rgb(to_picture(image)))
        return tensor

    def __repr__(self) -> str:
        return f"ImageTransform({self.augmentation})"


def training_transform(image_size: int) -> ImageTransform:
    """An :class:`ImageTransform` with a random window and a random flip.

    Up to 64 pixels, the shorter side of the image is resized to ``image_size``, a black border of
    an eighth is added, and a random window of ``image_size`` is cut out. Above 64 pixels, a random
    part of the image is resized to ``image_size``.

    Raises:
        ImportError: torchvision is not installed.
        TypeError, ValueError: ``image_size`` is not a whole number of at least 1.
    """
    image_size = checked_whole("image_size", image_size, 1)
    if image_size <= SMALL_IMAGE:
        return ImageTransform(Crop(image_size, image_size, margin=image_size // 8))
    return ImageTransform(Zoom(image_size))


def evaluation_transform(image_size: int) -> ImageTransform:
    """An :class:`ImageTransform` that takes the middle of an image.

    Up to 64 pixels, the middle has the whole shorter side. Above, an eighth of it is cut off.

    Raises:
        ImportError: torchvision is not installed.
        TypeError, ValueError: ``image_size`` is not a whole number of at least 1.
    """
    image_size = checked_whole("image_size", image_size, 1)
    resized = image_size if image_size <= SMALL_IMAGE else round(image_size * 8 / 7)
    return ImageTransform(Crop(image_size, resized))


def to_tensor(image: Any) -> Any:
    """A PIL image as a tensor, float32 ``[C, H, W]`` in [0, 1]. Other values unchanged.

    Raises:
        ValueError: the mode of the image has no known range of values, such as "I" and "F".
    """
    if not is_pil_image(image):
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
    array = np.array(image)
    if array.dtype.kind not in "bu":
        raise ValueError(
            "expected an image with a known range of values; found an image of mode "
            f"{image.mode}: pass a transform that scales it"
        )
    largest = 1 if array.dtype.kind == "b" else np.iinfo(array.dtype).max
    channels = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32) / np.float32(largest))


def guess_image_size(source: Pictures) -> int:
    """An image size for ``source``: the size of its images if they are small, else 224.

    At most 16 images are opened. If no side is longer than 64 pixels, the result is the longest
    side, rounded up to a multiple of 4.
    """
    count = min(len(source), _MOST_IMAGES)
    sides = []
    for index in np.linspace(0, len(source) - 1, count).round().astype(np.int64).tolist():
        try:
            sides.append(max(to_picture(source.image(index)).size))
        except Exception:  # the run reports unreadable samples
            continue
    if not sides or max(sides) > SMALL_IMAGE:
        return USUAL_IMAGE
    return -(-max(sides) // 4) * 4
