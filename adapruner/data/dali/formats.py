"""Which images DALI decodes, and the form in which it takes the images of Pillow."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_MAX_BITS = 8


def dali_decodes(encoded: npt.NDArray[np.uint8]) -> bool:
    """Whether DALI may decode the image: a whole JPEG, or a sound PNG.

    A whole JPEG ends with its end mark. A sound PNG has at most 8 bits a channel, right checksums,
    its end mark and one frame. DALI and Pillow read such images alike. Pillow decodes the rest.
    """
    view = encoded.data
    if view[:2] == _JPEG_START:
        return view[-2:] == _JPEG_END
    return view[:8] == _PNG_START and _is_sound_png(view)


def as_ppm(image: Any) -> npt.NDArray[np.uint8]:
    """A PIL image in RGB as the bytes of a PPM file. DALI decodes it without a loss."""
    header = b"P6 %d %d 255\n" % image.size
    return np.frombuffer(header + image.tobytes(), np.uint8)


def _is_sound_png(view: memoryview) -> bool:
    at = len(_PNG_START)
    while at + 12 <= len(view):  # length, name and checksum
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        name = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end]).to_bytes(4, "big") != view[end : end + 4]:
            return False
        if name == b"acTL" or (name == b"IHDR" and view[at + 16] > _MAX_BITS):
            return False
        if name == _PNG_END:
            return True
        at = end + 4
    return False
