"""The datasets of the suite, with what makes them dirty: wrong labels, corrupt images, long tails.

Images are ``[N, H, W, C]`` float32, normalised. Everything is a function of (name, noise, seed).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import cifar

CACHE = Path(__file__).resolve().parents[2] / "build" / "quality"
DIGITS_TEST, DIGITS_SPLIT, CIFAR_SPLIT = 500, 300, 5000
# Mistaken for each other in asymmetric noise: truck → automobile, bird → airplane, deer → horse,
# cat ↔ dog (Patrini et al., CVPR 2017).
CIFAR_CONFUSED = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}


@dataclass(frozen=True)
class Data:
    """A training set, and what a trained model is measured on."""

    x: Tensor
    y: Tensor  # int64 [N], as the training sees them
    bad: Tensor  # bool [N]: wrongly labelled or corrupt
    x_test: Tensor
    y_test: Tensor
    classes: int
    source: str = ""  # which files the training images were in

    def to(self, device: str) -> Data:
        moved = {name: getattr(self, name).to(device) for name in ("x", "y", "x_test", "y_test")}
        return replace(self, **moved)


def load(name: str, noise: str, seed: int, measured_on: str) -> Data:
    """The dataset for one seed.

    Args:
        name: "digits", "cifar10" or "cifar10-COUNT", a part of so many training images at half the
            resolution.
        noise: "clean", or "KIND SHARE" with the kinds of :func:`spoil`.
        seed: chooses the part and the noise.
        measured_on: "test", or "split": training images that are in no training set of this seed.
    """
    if measured_on not in ("test", "split"):
        raise ValueError(f'measured_on must be "test" or "split"; found {measured_on!r}')
    clean = _digits(seed, measured_on) if name == "digits" else _cifar(name, seed, measured_on)
    return spoil(clean, noise, seed)


def _digits(seed: int, measured_on: str) -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(-1) / 8 - 1
    y = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 + seed))
    test, rest = order[:DIGITS_TEST], order[DIGITS_TEST:]
    if measured_on == "split":
        test, rest = rest[:DIGITS_SPLIT], rest[DIGITS_SPLIT:]
    return Data(x[rest], y[rest], torch.zeros(len(rest), dtype=torch.bool), x[test], y[test], 10)


def _cifar(name: str, seed: int, measured_on: str) -> Data:
    x, y, source = cifar.images("train")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 + seed))
    rest, held = order[:-CIFAR_SPLIT], order[-CIFAR_SPLIT:]
    part = "-" in name
    if part:
        rest = rest[: int(name.split("-")[1])]
    elif measured_on == "test":
        rest = order
    x_test, y_test = (x[held], y[held]) if measured_on == "split" else cifar.images("test")[:2]
    bad = torch.zeros(len(rest), dtype=torch.bool)
    x = normalised(x[rest], part)
    return Data(x, y[rest], bad, normalised(x_test, part), y_test, 10, source)


def normalised(images: Tensor, halved: bool) -> Tensor:
    values = (images.float() / 255 - 0.47) / 0.25
    if not halved:
        return values
    count, height, width, colours = values.shape
    return values.reshape(count, height // 2, 2, width // 2, 2, colours).mean((2, 4))


def spoil(data: Data, noise: str, seed: int) -> Data:
    """``data`` made dirty: exactly the share asked for, chosen by the seed.

    Kinds: "symmetric" (another class, any), "asymmetric" (the class it is most often mistaken for;
    the share is of the samples that have one), "corrupt" (the image is noise),
    "long-tail" (classes fall off evenly, on a logarithmic scale, to this share of the first).
    """
    if noise == "clean":
        return data
    kind, share = noise.split(" ")[0], float(noise.split(" ")[1])
    generator = torch.Generator().manual_seed(2000 + seed)
    count = len(data.y)
    if kind == "long-tail":
        return _long_tailed(data, share, generator)
    candidates = torch.arange(count)
    if kind == "asymmetric":
        candidates = candidates[(_mistaken(data.y) != data.y)]
    order = torch.randperm(len(candidates), generator=generator)
    chosen = candidates[order[: round(share * len(candidates))]]
    bad = data.bad.clone()
    bad[chosen] = True
    x, y = data.x, data.y.clone()
    if kind == "symmetric":
        shift = torch.randint(1, data.classes, (len(chosen),), generator=generator)
        y[chosen] = (y[chosen] + shift) % data.classes
    elif kind == "asymmetric":
        y[chosen] = _mistaken(y[chosen])
    elif kind == "corrupt":
        x = x.clone()
        x[chosen] = torch.randn(x[chosen].shape, generator=generator)
    else:
        raise ValueError(f"unknown kind of noise {kind!r}")
    return replace(data, x=x, y=y, bad=bad)


def _mistaken(y: Tensor) -> Tensor:
    table = torch.arange(10)
    for true, taken in CIFAR_CONFUSED.items():
        table[true] = taken
    return table[y]


def _long_tailed(data: Data, last: float, generator: torch.Generator) -> Data:
    kept = []
    for c in range(data.classes):
        members = (data.y == c).nonzero().flatten()
        count = max(1, round(len(members) * last ** (c / (data.classes - 1))))
        kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
    keep = torch.cat(kept).sort().values
    return replace(data, x=data.x[keep], y=data.y[keep], bad=data.bad[keep])
