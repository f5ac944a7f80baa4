"""What a run on all data tells of every sample, and the scores that the rivals make of it.

One run for each seed is recorded and shared by all score methods. A score is float64 ``[N]``;
the larger, the more the method wants the sample.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from .data import CACHE, Data
from .networks import Network
from .trainer import Plan, Recipe, train

HERE = Path(__file__).parent
# What a recorded run follows from besides its recipe.
FILES = ("cifar", "data", "networks", "trainer")
CODE = hashlib.sha256(b"".join((HERE / f"{name}.py").read_bytes() for name in FILES)).hexdigest()


@dataclass(frozen=True)
class Records:
    """Of every epoch, as the training saw the samples."""

    logits: Tensor  # float16 [epochs, N, C]
    features: Tensor  # float32 [N, D], of the trained network
    labels: Tensor  # int64 [N]
    samples_read: int
    seconds: float
    cpu_seconds: float

    def probabilities(self) -> Tensor:
        """Of the labels, float64 ``[epochs, N]``."""
        chances = self.logits.double().softmax(-1)
        return chances.gather(2, self.labels.expand(len(chances), -1)[..., None])[..., 0]

    def losses(self) -> Tensor:
        """Cross entropy, float64 ``[epochs, N]``."""
        return torch.stack(
            [
                functional.cross_entropy(logits.double(), self.labels, reduction="none")
                for logits in self.logits
            ]
        )


class Recording(Plan):
    """Plain training on all samples that notes their logits."""

    def __init__(self, data: Data, epochs: int) -> None:
        count, device = len(data.y), data.y.device
        super().__init__(torch.ones(count, dtype=torch.bool, device=device))
        # On the device, so that no step waits for it.
        self.logits = torch.zeros(epochs, count, data.classes, dtype=torch.float16, device=device)
        self._epoch = 0

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        self._epoch = epoch
        return self.reads

    def loss(self, logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        self.logits[self._epoch, ids] = logits.detach().half()
        return super().loss(logits, targets, ids)


def record(data: Data, recipe: Recipe, seed: int, key: str) -> Records:
    """The recorded run, from the cache where ``key``, the recipe, the seed and the code that
    trains have been seen."""
    name = json.dumps([key, asdict(recipe), seed, CODE])
    path = CACHE / f"records-{hashlib.sha256(name.encode()).hexdigest()[:20]}.safetensors"
    if not path.exists():
        _make_records(data, recipe, seed, path)
    tensors = load_file(path)
    cost = tensors.pop("cost")
    return Records(
        **tensors, samples_read=int(cost[0]), seconds=cost[1].item(), cpu_seconds=cost[2].item()
    )


def _make_records(data: Data, recipe: Recipe, seed: int, path: Path) -> None:
    plan = Recording(data, recipe.epochs)
    trained = train(data, recipe, plan, seed, epochs=recipe.epochs)
    model = trained.model.eval()
    with torch.no_grad():
        features = torch.cat(
            [model.features(part.permute(0, 3, 1, 2)).float() for part in data.x.split(500)]
        )
    tensors = {
        "logits": plan.logits.cpu(),
        "features": features.cpu().contiguous(),
        "labels": data.y.cpu(),
        "cost": torch.tensor(
            [trained.samples_read, trained.seconds, trained.cpu_seconds], dtype=torch.float64
        ),
    }
    CACHE.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, part)
    part.replace(path)


def el2n(records: Records, epochs: int) -> Tensor:
    """Mean length of the error vector over the first epochs (Paul et al., NeurIPS 2021)."""
    early = records.logits[:epochs].double().softmax(-1)
    wanted = functional.one_hot(records.labels, early.shape[-1])
    return (early - wanted).norm(dim=-1).mean(0)


def forgetting(records: Records) -> Tensor:
    """How often a sample was right and is wrong at its next visit (Toneva et al., ICLR 2019).

    One that was never right counts as forgotten without end.
    """
    right = records.logits.argmax(-1) == records.labels
    events = (right[:-1] & ~right[1:]).sum(0).double()
    events[~right.any(0)] = torch.inf
    return events


def aum(records: Records) -> Tensor:
    """Minus the mean margin of the label's logit over the largest other (Pleiss et al., NeurIPS
    2020): the smaller the area under the margin, the harder the sample."""
    logits = records.logits.double()
    label = records.labels.expand(len(logits), -1)[..., None]
    own = logits.gather(2, label)[..., 0]
    others = logits.scatter(2, label, -torch.inf).max(-1).values
    return -(own - others).mean(0)


def dual(probabilities: Tensor, window: int) -> Tensor:
    """Difficulty times uncertainty (DUAL; Cho et al., ICML 2025).

    ``probabilities`` of the labels ``[epochs, N]``, of the early epochs: over every window of so
    many epochs the standard deviation times one minus the mean; the mean over the windows.
    """
    windows = probabilities.unfold(0, window, 1)
    return (windows.std(-1) * (1 - windows.mean(-1))).mean(0)


def to_class_center(records: Records) -> Tensor:
    """Distance of the features to the mean of the class (Moderate; Xia et al., ICLR 2023)."""
    features = records.features.double()
    classes = int(records.labels.max()) + 1
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, records.labels, features)
    counts = records.labels.bincount(minlength=classes).clamp(min=1)
    return (features - (sums / counts[:, None])[records.labels]).norm(dim=1)
