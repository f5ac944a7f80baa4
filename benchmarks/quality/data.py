"""The datasets of the suite, with what makes them dirty: wrong labels, corrupt images, long tails.

Images are ``[N, H, W, C]`` float32, normalised. Other inputs have the same form, ``[N, 1, 1, C]``:
16 features of a letter, or the numbers of the words of a text. Everything is a function of (name,
noise, seed).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import cifar, others

CACHE = Path(__file__).resolve().parents[2] / "build" / "quality"
DIGITS_TEST, DIGITS_SPLIT, CIFAR_SPLIT = 500, 300, 5000
LETTER_ROWS, LETTER_TRAIN, LETTER_SPLIT = 16_000, 6000, 3000
TRAFFIC_CLASSES = 43
TEXT_TRAIN, TEXT_SPLIT = 10_000, 3000
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
    track: Tensor | None = None  # int64 [N]: near-duplicates have one number

    def to(self, device: str) -> Data:
        moved = {name: getattr(self, name).to(device) for name in ("x", "y", "x_test", "y_test")}
        return replace(self, **moved)


def load(name: str, noise: str, seed: int, measured_on: str) -> Data:
    """The dataset for one seed.

    Args:
        name: "digits", "letter", "traffic", "text", "cifar10" or "cifar10-COUNT", a part of so many
            training images at half the resolution.
        noise: "clean", "KIND SHARE" with the kinds of :func:`spoil`, or "human KIND" with the kinds
            of :func:`others.human_labels` for CIFAR-10.
        seed: chooses the part and the noise.
        measured_on: "test", or "split": training images that are in no training set of this seed.
    """
    if measured_on not in ("test", "split"):
        raise ValueError(f'measured_on must be "test" or "split"; found {measured_on!r}')
    if noise.startswith("human "):
        return _cifar(name, seed, measured_on, noise.removeprefix("human "))
    made = {"digits": _digits, "letter": _letter, "traffic": _traffic, "text": _text}
    clean = made[name](seed, measured_on) if name in made else _cifar(name, seed, measured_on)
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


def _letter(seed: int, measured_on: str) -> Data:
    """16 features of printed letters. The last 4,000 rows are the test, as is the custom."""
    features, classes = others.letters()
    order, test = _order(LETTER_ROWS, seed), torch.arange(LETTER_ROWS, len(classes))
    rest = order[:LETTER_TRAIN]
    if measured_on == "split":
        test = order[-LETTER_SPLIT:]
    x = (features - features[rest].mean(0)) / features[rest].std(0)
    x = x[:, None, None, :]
    bad = torch.zeros(len(rest), dtype=torch.bool)
    return Data(x[rest], classes[rest], bad, x[test], classes[test], 26, "letter-recognition.data")


def _traffic(seed: int, measured_on: str) -> Data:
    """A quarter of the tracks of each class. A track is 30 frames of one sign, and is never cut."""
    images = others.traffic("train")
    tracks = images.y * 1000 + images.track
    train, split = [], []
    generator = torch.Generator().manual_seed(1000 + seed)
    for c in range(TRAFFIC_CLASSES):
        of_class = tracks[images.y == c].unique()
        shuffled = of_class[torch.randperm(len(of_class), generator=generator)]
        part = len(shuffled) // 4
        train.append(shuffled[:part])
        split.append(shuffled[part : 2 * part])
    rest = torch.isin(tracks, torch.cat(train)).nonzero().flatten()
    if measured_on == "split":
        held = torch.isin(tracks, torch.cat(split)).nonzero().flatten()
        x_test, y_test = images.x[held], images.y[held]
    else:
        x_test, y_test = others.traffic("test")[:2]
    bad = torch.zeros(len(rest), dtype=torch.bool)
    x = normalised(images.x[rest], False)
    y = images.y[rest]
    x_test = normalised(x_test, False)
    return Data(x, y, bad, x_test, y_test, TRAFFIC_CLASSES, images.source, tracks[rest])


def _text(seed: int, measured_on: str) -> Data:
    """Phrases of film reviews and whether they are kind. The numbers of their words are inputs."""
    x, y = others.phrases("train")
    order = _order(len(y), seed)
    rest, held = order[:TEXT_TRAIN], order[-TEXT_SPLIT:]
    if measured_on == "split":
        x_test, y_test = x[held], y[held]
    else:
        parts = [others.phrases(split) for split in ("dev", "test")]
        x_test, y_test = (torch.cat(part) for part in zip(*parts, strict=True))
    bad = torch.zeros(len(rest), dtype=torch.bool)
    return Data(x[rest], y[rest], bad, x_test, y_test, 2, "SST-2")


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1000 + seed))


def _cifar(name: str, seed: int, measured_on: str, people: str | None = None) -> Data:
    """CIFAR-10 or a part of it, with the labels of ``people`` where these are named."""
    x, y, source = cifar.images("train")
    labels = y if people is None else others.human_labels(people)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 + seed))
    rest, held = order[:-CIFAR_SPLIT], order[-CIFAR_SPLIT:]
    part = "-" in name
    if part:
        rest = rest[: int(name.split("-")[1])]
    elif measured_on == "test":
        rest = order
    x_test, y_test = (x[held], y[held]) if measured_on == "split" else cifar.images("test")[:2]
    bad = labels[rest] != y[rest]
    x = normalised(x[rest], part)
    return Data(x, labels[rest], bad, normalised(x_test, part), y_test, 10, source)


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
