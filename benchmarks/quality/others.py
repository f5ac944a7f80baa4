"""Datasets of ``$ADAPRUNER_DATA`` besides CIFAR-10's images: letters, traffic signs, texts, and the
labels that people gave to CIFAR-10."""

from __future__ import annotations

import csv
import functools
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import cifar

# A phrase has at most so many words; later ones are cut off.
PHRASE_LENGTH = 56
# Words are numbered from 1 by their checksum. 0 fills up short phrases.
WORD_NUMBERS = 8192
HUMAN_LABELS = {"aggre": "aggre_label", "random1": "random_label1", "worse": "worse_label"}


class Signs(NamedTuple):
    """Traffic signs of one split."""

    x: Tensor  # uint8 [N, 32, 32, 3]
    y: Tensor  # int64 [N]
    track: Tensor  # int64 [N]: frames of one sign have one track within their class; -1 in the test
    source: str


def _file(*parts: str) -> Path:
    path = cifar.source().joinpath(*parts)
    if not path.is_file():
        raise FileNotFoundError(f"ADAPRUNER_DATA must name a folder that has {'/'.join(parts)}")
    return path


@functools.lru_cache(maxsize=1)
def letters() -> tuple[Tensor, Tensor]:
    """Features, float32 ``[20000, 16]``, and letters, int64 ``[20000]``."""
    with _file("letter", "letter-recognition.data").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    features = torch.tensor([[float(value) for value in row[1:]] for row in rows])
    return features, torch.tensor([ord(row[0]) - ord("A") for row in rows])


@functools.lru_cache(maxsize=2)
def traffic(split: str) -> Signs:
    """German traffic signs, "train" or "test"."""
    packed = np.fromfile(_file("gtsrb", f"{split}.jpegs"), np.uint8)
    index = np.load(_file("gtsrb", f"{split}.index.npy"))
    pixels = np.stack(cifar.decoded(packed, index))
    label, track = torch.from_numpy(index[:, 2:].astype(np.int64)).unbind(1)
    return Signs(torch.from_numpy(pixels), label, track, "GTSRB as JPEG files")


@functools.lru_cache(maxsize=3)
def phrases(split: str) -> tuple[Tensor, Tensor]:
    """Numbers of words, float32 ``[N, 1, 1, PHRASE_LENGTH]``, and labels, int64 ``[N]``."""
    with _file("sst2", f"{split}.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    x = torch.zeros(len(rows), 1, 1, PHRASE_LENGTH)
    for place, (_, text) in enumerate(rows):
        numbers = [1 + zlib.crc32(w.encode()) % (WORD_NUMBERS - 1) for w in text.split()]
        numbers = numbers[:PHRASE_LENGTH]
        x[place, 0, 0, : len(numbers)] = torch.tensor(numbers, dtype=torch.float32)
    return x, torch.tensor([int(label) for label, _ in rows])


def human_labels(kind: str) -> Tensor:
    """Labels of CIFAR-10's training images by people (Wei et al., ICLR 2022), int64 ``[50000]``.

    Args:
        kind: "aggre" (majority of three), "random1" (one person) or "worse" (a wrong label where
            there is one).
    """
    if kind not in HUMAN_LABELS:
        raise ValueError(f"kind must be one of {', '.join(HUMAN_LABELS)}; found {kind!r}")
    with np.load(_file("cifar10n", "labels.npz"), allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[HUMAN_LABELS[kind]].astype(np.int64))
