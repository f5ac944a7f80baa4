"""Which images DALI decodes, and the form in which it takes the images of Pillow."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# The marks of the header that give the size of the image, and the mark of a scan.
_SIZES, _SCAN = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xDA
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
# After 0xFF: an escape, a Huffman table, restart marks, the end, a scan, a fill byte.
_IN_SCANS = np.zeros(256, np.bool_)
_IN_SCANS[[0x00, 0xC4, *range(0xD0, 0xD8), 0xD9, 0xDA, 0xFF]] = True
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_MAX_BITS = 8
# Pillow fails if these chunks are shorter. A transparent colour has 2 bytes of grey, or 6 of RGB.
_LEAST_BYTES = {b"cHRM": 32, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1}
_TRANSPARENT, _LEAST_OF_COLOUR = b"tRNS", {0: 2, 2: 6}
# Frames, and what Pillow unpacks, and refuses if it is large.
_OF_PILLOW = (b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iTXt", b"iCCP")


def dali_decodes(encoded: npt.NDArray[np.uint8]) -> bool:
    """Whether DALI may decode the image: a whole JPEG, or a sound PNG.

    A whole JPEG is grey or has three colours, ends with its end mark, and has no strange mark
    after its header. If it is not progressive, it has one scan: before another one, which a flipped
    bit can feign, DALI stops and Pillow fails. A sound PNG has at most 8 bits a channel, right
    checksums, its end mark, one frame, whole chunks, and no compressed text or profile. DALI and
    Pillow read such images alike. Pillow decodes the rest.
    """
    view = encoded.data
    if view[:2] == _JPEG_START:
        return view[-2:] == _JPEG_END and _is_sound_jpeg(encoded)
    return view[:8] == _PNG_START and _is_sound_png(view)


def as_ppm(image: Any) -> npt.NDArray[np.uint8]:
    """A PIL image in RGB as the bytes of a PPM file. DALI decodes it without a loss."""
    header = b"P6 %d %d 255\n" % image.size
    return np.frombuffer(header + image.tobytes(), np.uint8)


def _is_sound_jpeg(encoded: npt.NDArray[np.uint8]) -> bool:
    # The header is a series of segments: 0xFF, the mark, the length, the content. A content can
    # have any bytes, such as a small JPEG.
    at, view, progressive = len(_JPEG_START), encoded.data, False
    while at + 10 <= len(view) and view[at] == 0xFF:
        mark = view[at + 1]
        if mark in _SIZES and view[at + 9] > 3:  # CMYK
            return False
        if mark == _SCAN:
            scans = encoded[at:]
            marks = scans[1:][scans[:-1] == 0xFF]
            one_scan = progressive or np.count_nonzero(marks == _SCAN) == 1
            return one_scan and bool(_IN_SCANS[marks].all())
        progressive = progressive or mark in _PROGRESSIVE
        at += 2 + int.from_bytes(view[at + 2 : at + 4], "big")
    return False


def _is_sound_png(view: memoryview) -> bool:
    if len(view) < 26 or view[24] > _MAX_BITS:
        return False
    at = len(_PNG_START)
    while at + 12 <= len(view):  # length, name and checksum
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        name = view[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end]).to_bytes(4, "big") != view[end : end + 4]:
            return False
        least = _LEAST_BYTES.get(bytes(name), 0)
        if name == _TRANSPARENT:
            least = _LEAST_OF_COLOUR.get(view[25], 0)
        if name in _OF_PILLOW or end - at - 8 < least:
            return False
        if name == _PNG_END:
            return True
        at = end + 4
    return False
