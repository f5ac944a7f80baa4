"""From images to tensors: the transforms of training and evaluation, and the size of images."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adapruner._util.checks import checked_whole
from adapruner._util.extras import require
from adapruner.vision.augmentation import Crop, Zoom
from adapruner.vision.decoding import is_pil_image, to_picture

SMALL_IMAGE = 64  # pixels; up to here a model's stem is adapted, and images are cropped, not zoomed
USUAL_IMAGE = 224
_IMAGES_LOOKED_AT = 16

# Of ImageNet, for red, green and blue; images of any kind come close enough to them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Pictures(Protocol):
    """Some images to look at."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Any: ...


class ImageTransform:
    """From an image to a normalised tensor ``[3, S, S]``, float32.

    An image is what :func:`adapruner.vision.decoding.to_picture` takes.
    It says what it does, so that the DALI loader can do the same.

    Args:
        augmentation: which window of an image, and whether it is mirrored.

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
        tensor: Tensor = self._steps(to_picture(image))
        return tensor

    def __repr__(self) -> str:
        return f"ImageTransform({self.augmentation})"


def training_transform(image_size: int) -> ImageTransform:
    """From an image to a randomly cropped and flipped, normalised tensor ``[3, S, S]``, float32.

    An image is what :func:`adapruner.vision.decoding.to_picture` takes.
    Up to 64 pixels the crop is one of ``image_size`` from the image with a margin of an eighth
    around it, and an image whose shorter side is of another size is resized before; above, it is
    any part of the image, zoomed to size.

    Raises:
        ImportError: torchvision is not installed.
        TypeError, ValueError: ``image_size`` is not a whole number of at least 1.
    """
    image_size = checked_whole("image_size", image_size, 1)
    if image_size <= SMALL_IMAGE:
        return ImageTransform(Crop(image_size, image_size, margin=image_size // 8))
    return ImageTransform(Zoom(image_size))


def evaluation_transform(image_size: int) -> ImageTransform:
    """From an image to the normalised tensor of its middle, ``[3, S, S]``, float32.

    An image is what :func:`adapruner.vision.decoding.to_picture` takes.
    Up to 64 pixels the shorter side is kept whole; above, an eighth of it is cut off.

    Raises:
        ImportError: torchvision is not installed.
        TypeError, ValueError: ``image_size`` is not a whole number of at least 1.
    """
    image_size = checked_whole("image_size", image_size, 1)
    resized = image_size if image_size <= SMALL_IMAGE else round(image_size * 8 / 7)
    return ImageTransform(Crop(image_size, resized))


def to_tensor(image: Any) -> Any:
    """A PIL image as a tensor, float32 ``[C, H, W]`` in [0, 1]; anything else as it is.

    Raises:
        ValueError: the image's mode has no range of values that is known, such as "I" and "F".
    """
    if not is_pil_image(image):
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
    array = np.array(image)
    if array.dtype.kind not in "bu":
        raise ValueError(
            f"an image of mode {image.mode} cannot be scaled to [0, 1]: its range is not known; "
            "give a transform of your own"
        )
    largest = 1 if array.dtype.kind == "b" else np.iinfo(array.dtype).max
    channels = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32) / np.float32(largest))


def guess_image_size(source: Pictures) -> int:
    """A size for the images of ``source`` (a Source, say): their own if they are small, else 224.

    Looks at up to 16 of them. If none is wider or higher than 64 pixels, it is the largest side
    among them, rounded up to a multiple of 4.
    """
    count = min(len(source), _IMAGES_LOOKED_AT)
    sides = []
    for index in np.linspace(0, len(source) - 1, count).round().astype(np.int64).tolist():
        try:
            sides.append(max(to_picture(source.image(index)).size))
        except Exception:  # an unreadable one: the run will say so
            continue
    if not sides or max(sides) > SMALL_IMAGE:
        return USUAL_IMAGE
    return -(-max(sides) // 4) * 4
