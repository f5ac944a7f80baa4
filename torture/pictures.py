"""Images with flipped bits through both loaders: both read the same ones, and nothing crashes."""

from __future__ import annotations

import io
import os
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapruner import Pruner, as_source
from adapruner.data.dali.loader import DaliLoader
from adapruner.vision import evaluation_transform
from torture.command import Findings, main
from torture.kill import Life
from torture.mutate import raw_bytes
from torture.runs import warm_up

IMAGES = 64  # in a batch, half of them whole
MEMORY = 24 << 30  # bytes of address space; DALI reserves much more than it uses
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
ENDINGS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "PPM": "ppm", "TIFF": "tif", "WEBP": "webp"}


def picture(dice: random.Random, format: str) -> bytes:
    """An encoded image of noise, of a random mode and size."""
    random_pixels = np.random.default_rng(dice.randrange(2**32))
    width, height = dice.randint(1, 40), dice.randint(1, 40)
    pixels = random_pixels.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(dice.choice(("RGB", "RGB", "L")))
    content = io.BytesIO()
    image.save(content, format)
    return content.getvalue()


def flipped(dice: random.Random, content: bytes) -> bytes:
    """A copy with a few bits flipped, or other damage."""
    if dice.random() < 0.3:
        return raw_bytes(dice, content)
    made = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 5))):
        made[dice.randrange(len(made))] ^= 1 << dice.randrange(8)
    return bytes(made)


def write_batch(dice: random.Random, folder: Path) -> None:
    for number in range(IMAGES):
        format = dice.choice(FORMATS)
        content = picture(dice, format)
        if number % 2:
            content = flipped(dice, content)
        path = folder / "ab"[number % 3 == 0] / f"{number:02d}.{ENDINGS[format]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def read(folder: Path, dali: bool) -> tuple[dict[int, np.ndarray], list[int]]:
    """The pixels of every sample that a loader reads, and the unreadable ones."""
    source = as_source(folder, transform=evaluation_transform(16))
    pruner = Pruner(len(source), 1.0, 1)
    loader: Any = (
        DaliLoader(source, pruner, 16, num_threads=2, device="cpu")
        if dali
        else pruner.loader(source, 16)
    )
    found = {
        index: pixels.numpy()
        for inputs, _, ids in loader
        for index, pixels in zip(ids.tolist(), inputs, strict=True)
    }
    return found, [index for index, _ in pruner.unreadable]


def compare(folder: Path) -> None:
    """Raise unless both loaders read the same samples.

    Their pixels are compared in the tests, where no resizing comes between.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ours, bad = read(folder, dali=False)
    theirs, also_bad = read(folder, dali=True)
    names = as_source(folder).paths
    assert names is not None
    differing: Sequence[int] = sorted(set(bad) ^ set(also_bad))
    if differing:
        raise AssertionError(f"one loader cannot read {[names[i] for i in differing]}")
    if ours.keys() != theirs.keys():
        raise AssertionError("the loaders read other samples")
    broken = [i for i in theirs if not np.isfinite(theirs[i]).all()]
    if broken:
        raise AssertionError(f"values that are not finite in {[names[i] for i in broken]}")


def run(seconds: float, seed: int, findings: Findings) -> dict[str, Any]:
    """Compare batches for ``seconds``. A batch that went wrong is kept for a look."""
    warm_up()
    end, batches = time.monotonic() + seconds, 0
    while not batches or time.monotonic() < end:
        place = f"{seed} {batches}"
        with tempfile.TemporaryDirectory(prefix="torture-") as name:
            folder = Path(name) / "images"
            folder.mkdir()
            write_batch(random.Random(place), folder)
            life = Life(lambda rank, folder=folder: compare(folder), Path(name))
            try:
                (code,) = life.end()
            except TimeoutError:
                code = 124
            if code:
                kept = Path(tempfile.mkdtemp(prefix="torture-images-"))
                os.rename(folder, kept / "images")
                error = life.errors()[0].strip().splitlines()[-1:] or [""]
                findings.note(f"pictures: {code}", f"batch {place}, kept in {kept}: {error[0]}")
        batches += 1
    return {"images": batches * IMAGES, "damaged": batches * IMAGES // 2}


if __name__ == "__main__":
    main(run)
