"""One list of image files for both loaders: they read the same pixels, or both refuse the file."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import Followed
from torch import Tensor

from adapruner import as_source
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.vision import to_tensor, training_transform

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
image_module = pytest.importorskip("PIL.Image")

from adapruner.data.dali.loader import DaliLoader  # noqa: E402

WIDTH, HEIGHT = 56, 40
SMALL = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = image_module.fromarray(SMALL).resize((WIDTH, HEIGHT), image_module.BICUBIC)
OTHER = image_module.fromarray(SMALL[::-1].copy()).resize((WIDTH, HEIGHT), image_module.BICUBIC)
ROWS = np.asarray(PICTURE)
GREY16 = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
MAX_PIXELS = 100 * 100


def encoded(file_format: str, image: Any = PICTURE, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.copy().save(stream, file_format, **options)  # Pillow keeps options in the image
    return stream.getvalue()


def from_array(file_format: str, array: np.ndarray) -> bytes:
    return encoded(file_format, image_module.fromarray(array))


def frames(file_format: str, **options: Any) -> bytes:
    return encoded(file_format, save_all=True, append_images=[OTHER.copy()], **options)


def turned(orientation: int) -> Any:
    exif = image_module.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(name: bytes, content: bytes, wrong: int = 0) -> bytes:
    checksum = zlib.crc32(name + content) ^ wrong
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(
    rows: list[bytes], colour: int, bits: int, before: bytes = b"", wrong: int = 0, short: int = 0
) -> bytes:
    """A PNG by hand. Its pixels can have a wrong checksum, or lack the last ``short`` bytes."""
    pixels = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
    body = zlib.compress(pixels[: len(pixels) - short])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", body, wrong)
        + chunk(b"IEND", b"")
    )


def segment(mark: int, content: bytes) -> bytes:
    """A part of the header of a JPEG."""
    return struct.pack(">BBH", 0xFF, mark, len(content) + 2) + content


def packed(bits: int) -> list[bytes]:
    random = np.random.default_rng(bits)
    return [random.bytes(WIDTH * bits // 8) for _ in range(HEIGHT)]


def changed(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


# Chunks that lack bytes.
SHORT = {"cHRM": bytes(6), "gAMA": bytes(2), "pHYs": bytes(5), "sRGB": b"", "tRNS": bytes(3)}


def pngs() -> dict[str, bytes]:
    good, rows = encoded("PNG"), [row.tobytes() for row in ROWS]
    wide = [np.random.default_rng(row).bytes(6 * WIDTH) for row in range(HEIGHT)]
    palette = PICTURE.convert("P")
    colours = {bits: chunk(b"PLTE", bytes(range(3 * 2**bits))) for bits in (1, 2, 4)}
    return {
        "good": good,
        "no_end": good[:-12],
        "half_an_end": good[:-4],
        "wrong_sum_of_end": changed(good, len(good) - 1),
        "wrong_sum_of_header": changed(good, 29),
        "wrong_sum_of_pixels": png(rows, 2, 8, wrong=1),
        "wrong_sum_of_text": png(rows, 2, 8, chunk(b"tEXt", b"a\0b", wrong=1)),
        "wrong_length": changed(good, 8),
        "few_rows": png(rows, 2, 8, short=10 * (3 * WIDTH + 1)),
        "broken_pixels": png([bytes([9]) * (3 * WIDTH)] * HEIGHT, 2, 8)[:60],
        "trailing": good + bytes(100),
        "two_ends": good + chunk(b"IEND", b""),
        "cut_off": good[: len(good) // 2],
        "gamma": png(rows, 2, 8, chunk(b"gAMA", struct.pack(">I", 20_000))),
        "transparent_colour": png(rows, 2, 8, chunk(b"tRNS", struct.pack(">HHH", *ROWS[0, 0]))),
        **{
            f"short_{name}": png(rows, 2, 8, chunk(name.encode(), content))
            for name, content in SHORT.items()
        },
        "bomb": png(rows, 2, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20)))),
        "bomb_profile": png(rows, 2, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2 << 20)))),
        "strange_profile": png(rows, 2, 8, chunk(b"iCCP", b"a\0\1" + zlib.compress(b"b"))),
        "short_profile": png(rows, 2, 8, chunk(b"iCCP", b"a\0")),
        "short_frame_control": png(rows, 2, 8, chunk(b"fcTL", bytes(4))),
        "short_frame": png(rows, 2, 8, chunk(b"fdAT", bytes(2))),
        "compressed_text": png(rows, 2, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b"))),
        "short_grey_colour": png(packed(8), 0, 8, chunk(b"tRNS", b"\0")),
        "wide_rgb": png(wide, 2, 16),
        "wide_grey": from_array("PNG", GREY16),
        "grey_alpha": encoded("PNG", PICTURE.convert("LA")),
        "alpha": from_array("PNG", np.dstack([ROWS, GREY16 // 257]).astype(np.uint8)),
        "one_bit": encoded("PNG", PICTURE.convert("1")),
        "palette": encoded("PNG", palette),
        "transparent_palette": encoded("PNG", palette, transparency=3),
        "no_palette": png(packed(4), 3, 4),
        "frames": frames("PNG"),
        "frames_besides_the_image": frames("PNG", default_image=True),
        **{f"grey_{bits}": png(packed(bits), 0, bits) for bits in (1, 2, 4)},
        **{f"palette_{bits}": png(packed(bits), 3, bits, colours[bits]) for bits in (1, 2, 4)},
        **{f"exif_{way}": encoded("PNG", exif=turned(way)) for way in range(1, 9)},
    }


def jpegs() -> dict[str, bytes]:
    good, cmyk = encoded("JPEG", quality=95), encoded("JPEG", PICTURE.convert("CMYK"))
    end = b"\xff\xd9"
    return {
        "good": good,
        "cmyk": cmyk,
        "cmyk_without_its_mark": cmyk.replace(b"Adobe", b"Other"),
        "strange_mark": cmyk[:-200] + b"\xff\xfd" + cmyk[-198:],
        "thumbnail": good[:2] + segment(0xE1, encoded("JPEG", PICTURE.resize((8, 8)))) + good[2:],
        "grey": encoded("JPEG", PICTURE.convert("L")),
        "rgb": encoded("JPEG", keep_rgb=True),
        "progressive": encoded("JPEG", progressive=True),
        "restarts": encoded("JPEG", restart_marker_blocks=2),
        "frames": frames("MPO"),
        "trailing": good + bytes(100),
        "trailing_end": good + bytes(100) + end,
        "no_end": good[:-2],
        "cut_off": good[: len(good) // 2],
        "cut_off_in_the_header": good[:60],
        "cut_off_in_the_header_with_end": good[:60] + end,
        "two_bytes_before": bytes(2) + good,
        "too_large": encoded("JPEG", image_module.new("L", (101, 100))),
        **{f"exif_{way}": encoded("JPEG", exif=turned(way)) for way in range(1, 9)},
    }


def others() -> dict[str, bytes]:
    tiff = encoded("TIFF")
    return {
        "empty.jpg": b"",
        "one_byte.png": b"\x89",
        "text.bmp": b"This is no image.\n" * 20,
        "good.tiff": tiff,
        "cut_off.tiff": tiff[: len(tiff) // 2],
        "float.tiff": from_array("TIFF", ROWS[..., 0].astype(np.float32)),
        "int32.tiff": from_array("TIFF", ROWS[..., 0].astype(np.int32)),
        "wide.tiff": from_array("TIFF", GREY16),
        "cmyk.tiff": encoded("TIFF", PICTURE.convert("CMYK")),
        "frames.tiff": frames("TIFF"),
        "too_large.tiff": encoded("TIFF", image_module.new("L", (101, 100))),
        "good.bmp": encoded("BMP"),
        "one_bit.bmp": encoded("BMP", PICTURE.convert("1")),
        "palette.bmp": encoded("BMP", PICTURE.convert("P")),
        "cut_off.bmp": encoded("BMP")[:2000],
        "good.ppm": encoded("PPM"),
        "wide.pgm": from_array("PPM", GREY16),
        "good.webp": encoded("WEBP", quality=80),
        "frames.webp": frames("WEBP", lossless=True),
        "cut_off.webp": encoded("WEBP", lossless=True)[:-200],
        "a_gif.jpg": frames("GIF"),
        "a_webp.png": encoded("WEBP", lossless=True),
        **{f"exif_{way}.tiff": encoded("TIFF", tiffinfo={274: way}) for way in range(1, 9)},
        **{f"exif_{way}.webp": encoded("WEBP", exif=turned(way)) for way in range(1, 9)},
    }


def files() -> dict[str, bytes]:
    return {
        **{f"{name}.png": content for name, content in pngs().items()},
        **{f"{name}.jpg": content for name, content in jpegs().items()},
        **others(),
    }


FILES = files()
NAMES = sorted(FILES)  # the order of the samples
REFUSED = {
    "wrong_sum_of_header.png",
    "wrong_sum_of_text.png",
    "wrong_length.png",
    *(f"short_{name}.png" for name in (*SHORT, "grey_colour")),
    "bomb.png",
    *(f"{kind}_profile.png" for kind in ("bomb", "strange", "short")),
    "short_frame_control.png",
    "short_frame.png",
    "broken_pixels.png",
    "cut_off.png",
    "no_end.jpg",
    "strange_mark.jpg",
    "cut_off.jpg",
    "cut_off_in_the_header.jpg",
    "cut_off_in_the_header_with_end.jpg",
    "two_bytes_before.jpg",
    "too_large.jpg",
    "empty.jpg",
    "one_byte.png",
    "text.bmp",
    "cut_off.tiff",
    "too_large.tiff",
    "cut_off.bmp",
    "cut_off.webp",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    (root / "class").mkdir()
    for name, content in FILES.items():
        (root / "class" / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shard")
    with tarfile.open(root / "a.tar", "w") as tar:
        for name in NAMES:
            key, _, extension = name.rpartition(".")
            for suffix, data in ((extension, FILES[name]), ("cls", b"0")):
                member = tarfile.TarInfo(f"{extension}_{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return root / "a.tar"


def seen_by(loader: Any, followed: Followed) -> tuple[dict[int, Tensor], dict[int, str]]:
    """The images by sample, and the reasons of the samples that were left out."""
    images = {int(i): x for batch in loader for x, i in zip(batch[0], batch[2], strict=True)}
    return images, dict(followed.unreadable)


@pytest.mark.parametrize("form", ["folder", "shard"])
def test_same_pixels_or_the_same_reason(form: str, folder: Path, shard: Path) -> None:
    path = {"folder": folder, "shard": shard}[form]
    source = as_source(path, transform=to_tensor, max_pixels=MAX_PIXELS)
    both = []
    for kind in (DaliLoader, PrunedLoader):
        followed = Followed(len(source))
        both.append(seen_by(kind(source, followed, 1), followed))  # whole images of any size
    (ours, our_reasons), (theirs, their_reasons) = both
    assert our_reasons == their_reasons
    assert set(ours) == set(theirs) == set(range(len(source))) - set(their_reasons)
    for index, expected in theirs.items():
        name = NAMES[index]
        assert ours[index].shape == expected.shape, name
        # Two JPEG decoders can differ by a level.
        allowed = 1.01 / 255 if name.endswith("jpg") else 1e-6
        assert (ours[index] - expected).abs().max() < allowed, name


def test_refused_files_are_named(folder: Path) -> None:
    source = as_source(folder, transform=to_tensor, max_pixels=MAX_PIXELS)
    followed = Followed(len(source))
    _, reasons = seen_by(DaliLoader(source, followed, 1), followed)
    assert {NAMES[index] for index in reasons} == REFUSED
    assert all(NAMES[index] in why for index, why in reasons.items())


@pytest.mark.parametrize("size", [24, 224])
def test_windows_of_the_same_files(size: int, folder: Path, shard: Path) -> None:
    """A decoder of windows does not see the whole file. Both loaders refuse the same files."""
    for path in (folder, shard):
        source = as_source(path, transform=training_transform(size), max_pixels=MAX_PIXELS)
        ours, theirs = Followed(len(source)), Followed(len(source))
        found, reasons = seen_by(DaliLoader(source, ours, 16), ours)
        expected, expected_reasons = seen_by(PrunedLoader(source, theirs, 16), theirs)
        assert set(found) == set(expected)
        assert reasons == expected_reasons


def test_a_turned_tiff_is_turned(folder: Path) -> None:
    """The oracle is the picture itself, turned by hand."""
    source = as_source(folder, transform=to_tensor, max_pixels=MAX_PIXELS)
    followed = Followed(len(source))
    images, _ = seen_by(DaliLoader(source, followed, 1), followed)
    by_name = {NAMES[i]: image for i, image in images.items()}
    upright = torch.from_numpy(ROWS.copy()).permute(2, 0, 1) / 255
    ways = {
        1: upright,
        2: upright.flip(2),
        3: upright.flip(1, 2),
        4: upright.flip(1),
        5: upright.mT,
        6: upright.flip(1).mT,
        7: upright.flip(1, 2).mT,
        8: upright.flip(2).mT,
    }
    for way, expected in ways.items():
        assert torch.allclose(by_name[f"exif_{way}.tiff"], expected, atol=1e-6)
        assert torch.allclose(by_name[f"exif_{way}.png"], upright, atol=1e-6)
