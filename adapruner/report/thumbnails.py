"""Small pictures of samples as ``data:`` addresses."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapruner._util.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128  # pixels at most; about twice the size in the page, for sharp screens


def thumbnail(image: Any) -> str:
    """``image`` as the address of a PNG of at most ``SIDE`` pixels a side: ``data:image/png;…``.

    Args:
        image: a PIL image of any mode, or an array or tensor: ``[H, W]``, ``[C, H, W]`` or
            ``[H, W, C]`` with C of 1, 3 or 4, of any real dtype. If the shape fits both orders, a
            tensor has its channels first and an array has them last. ``uint8`` is not scaled.
            Floats in [0, 1] are multiplied by 255. Other values are scaled from their smallest to
            their largest.

    Raises:
        ValueError: ``image`` has another shape or is empty.
        TypeError: ``image`` has another type.
    """
    picture = _rgb(image)
    width, height = picture.size
    if not width or not height:
        raise ValueError(f"an image must have pixels; found {width} x {height}")
    enlargement = SIDE // max(width, height)
    resampling = require("PIL.Image", extra="report").Resampling
    if enlargement > 1:  # nearest pixels at a whole factor keep tiny images crisp
        picture = picture.resize((width * enlargement, height * enlargement), resampling.NEAREST)
    else:
        picture.thumbnail((SIDE, SIDE), resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _rgb(image: Any) -> Image:
    """A new PIL image in mode RGB, transparent parts over white."""
    pil = require("PIL.Image", extra="report")
    if isinstance(image, pil.Image):
        # Modes with more than 8 bits a channel (I, I;16, F), which PIL's conversion would clip.
        wide = image.mode.startswith(("I", "F"))
        picture = _from_array(np.asarray(image), channels_first=False) if wide else image
    elif isinstance(image, torch.Tensor):
        values = image.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        picture = _from_array(values.numpy(), channels_first=True)
    elif isinstance(image, np.ndarray):
        picture = _from_array(image, channels_first=False)
    else:
        raise TypeError(f"expected a PIL image, an array or a tensor; found {type(image).__name__}")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = pil.alpha_composite(pil.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _from_array(values: NDArray[Any], channels_first: bool) -> Image:
    """A gray, RGB or RGBA image from ``[H, W]``, ``[C, H, W]`` or ``[H, W, C]``."""
    shape = values.shape
    if values.ndim == 3:
        possible = (1, 3, 4)
        first = shape[0] in possible and (channels_first or shape[2] not in possible)
        if first:
            values = np.moveaxis(values, 0, 2)
        if values.shape[2] == 1:
            values = values[:, :, 0]
    drawable = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if not drawable or not values.size:
        raise ValueError(
            f"an image must have shape [H, W], [C, H, W] or [H, W, C], with C of 1, 3 or 4; found "
            f"{list(shape)}"
        )
    picture: Image = require("PIL.Image", extra="report").fromarray(_to_bytes(values))
    return picture


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    real = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = float(real.min()), float(real.max())
    if values.dtype == np.bool_ or (values.dtype.kind == "f" and low >= 0 and high <= 1):
        low, high = 0.0, 1.0
    scaled = (real - low) / (high - low if high > low else 1.0)
    return np.ascontiguousarray(np.rint(255 * scaled).astype(np.uint8))
