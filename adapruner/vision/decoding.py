"""Decoding of images, the same for every source that holds some, and the errors of it."""

from __future__ import annotations

import io
import sys
from typing import IO, Any

import numpy as np

from adapruner._util.checks import checked_whole
from adapruner._util.extras import require

# torchvision's IMG_EXTENSIONS, repeated so that listing a folder does not need torchvision.
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

# 300 MB in memory as RGB. Pillow has a limit of its own besides, about 180 million.
MAX_PIXELS = 100_000_000


def read_image(path: str, mode: str | None = "RGB", max_pixels: int = MAX_PIXELS) -> Any:
    """Decode the image at ``path`` with Pillow and convert it to ``mode``.

    Raises:
        OSError: it cannot be read or decoded, or has more than ``max_pixels``; the message has
            ``path``.
    """
    with open(path, "rb") as handle:
        return _decode(handle, path, mode, max_pixels)


def decode_image(
    encoded: bytes, name: str, mode: str | None = "RGB", max_pixels: int = MAX_PIXELS
) -> Any:
    """Decode the bytes of an image as :func:`read_image` does those of a file.

    Raises:
        OSError: they cannot be decoded, or make more than ``max_pixels``; the message has ``name``.
    """
    return _decode(io.BytesIO(encoded), name, mode, max_pixels)


def _decode(handle: IO[bytes], name: str, mode: str | None, max_pixels: int) -> Any:
    pillow = require("PIL.Image", extra="vision")
    try:
        with pillow.open(handle) as image:
            width, height = image.size
            if width * height > max_pixels:  # known before anything is decoded
                raise ValueError(
                    f"{width} x {height} pixels, more than max_pixels ({max_pixels:,})"
                )
            image.load()
            return convert_image(image, mode)
    except pillow.UnidentifiedImageError as error:
        # Its message names the open file, by an address in memory where it is one of bytes.
        raise OSError(f"cannot decode {name}: cannot identify image file") from error
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise  # the system's own, which names the file
        raise OSError(f"cannot decode {name}: {error}") from error
    except Exception as error:
        # Of a corrupt file Pillow raises what its plugins happen to run into, SyntaxError among
        # them. To a caller they all say the same: this file is no image that can be read.
        raise OSError(f"cannot decode {name}: {type(error).__name__}: {error}") from error


def convert_image(image: Any, mode: str | None) -> Any:
    """``image`` in ``mode``; 16-bit grey is scaled to 8 bits, where Pillow would clip to white."""
    if mode is None or image.mode == mode:
        return image.copy()
    # Some versions of Pillow decode 16-bit PNG and PGM to mode "I".
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if wide and not mode.startswith(("I", "F")):
        pillow = require("PIL.Image", extra="vision")
        image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert(mode)


def to_picture(value: Any) -> Any:
    """A PIL image as it is; uint8 ``[H, W]``, ``[H, W, 3]`` or ``[3, H, W]`` as one, in RGB.

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
    """What the dimensions of an image are, "HW", "HWC" or "CHW"; None where it is none."""
    if 0 in shape or len(shape) not in (2, 3):
        return None
    if len(shape) == 2:
        return "HW"
    return "HWC" if shape[2] == 3 else "CHW" if shape[0] == 3 else None


def check_mode(mode: str | None) -> None:
    """Raise ValueError unless ``mode`` is one of Pillow's (or None), ImportError without Pillow."""
    modes = require("PIL.Image", extra="vision").MODES
    if mode is not None and mode not in modes:
        raise ValueError(f"mode must be one of Pillow's ({', '.join(modes)}), got {mode!r}")


def check_max_pixels(max_pixels: int) -> None:
    """Raise unless ``max_pixels`` is a whole number of at least 1."""
    max_pixels = checked_whole("max_pixels", max_pixels, 1)


def is_pil_image(value: Any) -> bool:
    """Whether ``value`` is a PIL image; where Pillow was never imported nothing is."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)
