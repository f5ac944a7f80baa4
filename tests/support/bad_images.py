"""Unusual and broken images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest


def encoded(mode: str, format: str, size: tuple[int, int] = (24, 20)) -> bytes:
    """A noise image in a mode of Pillow."""
    image = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    width, height = size
    random = np.random.default_rng(0)
    if mode == "I;16":
        noise = image.fromarray(random.integers(0, 2**16, (height, width), dtype=np.uint16))
    else:
        noise = image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        noise = noise.convert(mode)
    noise.save(content, format)
    return content.getvalue()


def huge_png(side: int = 20_000) -> bytes:
    """A PNG of ``side`` × ``side`` pixels that takes few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    compress = zlib.compressobj(1)
    row = b"\0" * (1 + side)
    pixels = b"".join(compress.compress(row) for _ in range(side)) + compress.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def good_images() -> dict[str, bytes]:
    """Unusual images that are readable as RGB."""
    return {
        "cmyk.jpg": encoded("CMYK", "JPEG"),
        "grey.jpg": encoded("L", "JPEG"),
        "colour.jpg": encoded("RGB", "JPEG"),
        "rgb.png": encoded("RGB", "PNG"),
        "deep.png": encoded("I;16", "PNG"),
    }


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Broken images: content, and a part of the reason."""
    jpeg, png = encoded("RGB", "JPEG", (80, 60)), encoded("RGB", "PNG", (80, 60))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "text.jpg": (b"this is no image at all\n" * 40, "cannot identify image"),
        "empty.jpg": (b"", "cannot identify image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "header.jpg": (jpeg[:60], ""),
        "half.png": (png[: len(png) // 2], "truncated"),
        "flipped.png": (bytes(flipped), ""),
        "huge.png": (huge_png(), "20000 x 20000|decompression bomb"),
    }


def write_folder(root: Path, images: dict[str, bytes], repeat: int = 1) -> Path:
    """An image folder of two classes. Each class has all the images."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for file, content in images.items():
            for number in range(repeat):
                (root / name / f"{number}-{file}").write_bytes(content)
    return root
