"""Decoding of images, the same for every source and loader, and its errors.

Pillow decides which images can be read, and their pixels. The first frame of an image is read. A
TIFF is turned as its orientation tag says, because Pillow turns it. The orientation of all other
formats is ignored. Transparency is dropped. 16-bit grey keeps its high byte. The DALI loader
decodes whole JPEGs and sound PNGs itself, whose pixels are Pillow's to a level of 255. It decodes
every other image with the functions of this module.
"""

from __future__ import annotations

import io
import sys
from typing import IO, Any

import numpy as np

from adapruner._util.checks import checked_whole
from adapruner._util.extras import require

# A copy of torchvision's IMG_EXTENSIONS, so a folder can be listed without torchvision.
IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)

# 300 MB in memory as RGB. Pillow also has its own limit, about 180 million pixels.
MAX_PIXELS = 100_000_000


def read_image(path: str, mode: str | None = "RGB", max_pixels: int = MAX_PIXELS) -> Any:
    """Decode the image at ``path`` with Pillow and convert it to ``mode``.

    Raises:
        OSError: the image cannot be read or decoded, or has more than ``max_pixels`` pixels. The
            message has ``path``.
    """
    with open(path, "rb") as handle:
        return _decode(handle, path, mode, max_pixels)


def decode_image(
    encoded: bytes, name: str, mode: str | None = "RGB", max_pixels: int = MAX_PIXELS
) -> Any:
    """Decode the bytes of an image with Pillow and convert it to ``mode``.

    Raises:
        OSError: the image cannot be decoded, or has more than ``max_pixels`` pixels. The message
            has ``name``.
    """
    return _decode(io.BytesIO(encoded), name, mode, max_pixels)


def _decode(handle: IO[bytes], name: str, mode: str | None, max_pixels: int) -> Any:
    pillow = require("PIL.Image", extra="vision")
    try:
        with pillow.open(handle) as image:
            width, height = image.size
            if width * height > max_pixels:  # the header is enough
                raise ValueError(
                    f"expected at most {max_pixels:,} pixels (max_pixels); found {width} x {height}"
                )
            image.load()
            return convert_image(image, mode)
    except pillow.UnidentifiedImageError as error:
        # The message of Pillow can have the memory address of the open file.
        raise OSError(f"cannot decode {name}: cannot identify image file") from error
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise  # the message of the system names the file
        if error.errno is not None:  # the disk failed; the number tells whether to try again
            raise OSError(error.errno, error.strerror, name) from error
        raise OSError(f"cannot decode {name}: {error}") from error
    except Exception as error:
        # Pillow's plugins raise many types for a corrupt file, even SyntaxError. They all mean that
        # the image cannot be read.
        raise OSError(f"cannot decode {name}: {type(error).__name__}: {error}") from error


def convert_image(image: Any, mode: str | None) -> Any:
    """``image`` in ``mode``. 16-bit grey is scaled to 8 bits, because Pillow would clip it."""
    if mode is None or image.mode == mode:
        return image.copy()
    # Some versions of Pillow decode 16-bit PNG and PGM to mode "I".
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if wide and not mode.startswith(("I", "F")):
        pillow = require("PIL.Image", extra="vision")
        image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if it goes to RGB directly
    return image.convert(mode)


def in_rgb(image: Any) -> Any:
    """A PIL image in RGB, as :func:`convert_image` makes it."""
    return image if image.mode == "RGB" else convert_image(image, "RGB")


def to_picture(value: Any) -> Any:
    """A PIL image unchanged, or a uint8 array as a PIL image in RGB.

    The array is ``[H, W]``, ``[H, W, 3]`` or ``[3, H, W]``.

    Raises:
        ValueError: ``value`` is neither.
    """
    if is_pil_image(value):
        return value
    pillow = require("PIL.Image", extra="vision")
    array = np.asarray(value)
    axes = picture_axes(array.shape) if array.dtype == np.uint8 else None
    if axes is None:
        raise ValueError(
            "an image as an array must be uint8 [H, W], [H, W, 3] or [3, H, W]; "
            f"found {array.dtype} {list(array.shape)}"
        )
    array = array.transpose(1, 2, 0) if axes == "CHW" else array
    return pillow.fromarray(np.ascontiguousarray(array)).convert("RGB")


def picture_axes(shape: tuple[int, ...]) -> str | None:
    """The axes of an image of this shape, "HW", "HWC" or "CHW". None for other shapes."""
    if 0 in shape or len(shape) not in (2, 3):
        return None
    if len(shape) == 2:
        return "HW"
    return "HWC" if shape[2] == 3 else "CHW" if shape[0] == 3 else None


def check_mode(mode: str | None) -> None:
    """Raise ValueError unless ``mode`` is a mode of Pillow or None, ImportError without Pillow."""
    modes = require("PIL.Image", extra="vision").MODES
    if mode is not None and mode not in modes:
        raise ValueError(f"mode must be a mode of Pillow ({', '.join(modes)}); found {mode!r}")


def check_max_pixels(max_pixels: int) -> None:
    """Raise unless ``max_pixels`` is a whole number of at least 1."""
    checked_whole("max_pixels", max_pixels, 1)


def is_pil_image(value: Any) -> bool:
    """Whether ``value`` is a PIL image. Pillow is not imported to find out."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)
