"""A fast trainer: the dataset lies on the device, batches and augmentation are made there.

What an epoch reads and how its losses are weighed is a plan's to say, so that plain training,
scoring, and every dynamic method run through the same loop. Initial weights, order and augmentation
depend on the seed alone: two plans with one seed see a sample of an epoch in the same guise and in
the same order, which is what makes differences over seeds small.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import Data
from .networks import NETWORKS, Network


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: SGD with Nesterov momentum, rate up in a line and down in a line."""

    model: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 5e-4
    momentum: float = 0.9
    rise: float = 0.25  # share of the run in which the rate rises
    crop: int = 0  # pixels of padding for random crops
    flip: bool = False
    bfloat16: bool = True
    compile: bool = False  # with batches of one size, so that it is compiled once for all runs


class Plan:
    """Plain training on the samples of ``reads``; other plans change what they need."""

    def __init__(self, reads: Tensor) -> None:
        self.reads = reads  # bool [N]

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        """Bool ``[N]``: what this epoch reads; ``done`` is the share of the run that is over."""
        return self.reads

    def loss(self, logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        return functional.cross_entropy(logits, targets)

    def end(self, epoch: int) -> None:
        """The epoch is over, as far as it came."""


@dataclass
class Trained:
    """A model, and what it took."""

    model: Network
    samples_read: int
    seconds: float
    cpu_seconds: float


def train(
    data: Data,
    recipe: Recipe,
    plan: Plan,
    seed: int,
    *,
    samples: int | None = None,
    epochs: int | None = None,
) -> Trained:
    """Train a new model for so many samples, or for so many epochs of the plan.

    ``data`` lies on the device that is to be used. The result is the model after the last step.
    """
    if (samples is None) == (epochs is None):
        raise ValueError("give either the samples or the epochs that the run is to take")
    device = data.x.device
    start, cpu_start = time.perf_counter(), time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[recipe.model]().to(device, memory_format=torch.channels_last)
    features = model.features
    if recipe.compile:
        features = torch.compile(features, dynamic=False)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    images = functional.pad(data.x, (0, 0) + (recipe.crop,) * 4)
    read, epoch = 0, 0
    while (epoch < epochs) if epochs is not None else (read < samples):
        model.train()
        done = epoch / epochs if epochs is not None else read / samples
        mask = plan.begin(epoch, done, model).to(device)
        generator = torch.Generator(device).manual_seed(1_000_003 * (seed + 1) + epoch)
        order = torch.randperm(len(data.y), generator=generator, device=device)
        order = order[mask[order]]
        guise = _draw_guise(len(data.y), recipe, generator)
        batches = order.tensor_split(_steps(len(order), recipe))
        for number, ids in enumerate(batches):
            if samples is not None:
                ids = ids[: samples - read]
                done = read / samples
            else:
                done = (epoch + number / len(batches)) / epochs
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * _rate(done, recipe.rise)
            shown = _filled(ids, recipe.batch_size) if recipe.compile else ids
            batch = _augment(images, shown, guise, data.x.shape[1], recipe)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
                logits = model.head(features(batch)[: len(ids)])
            loss = plan.loss(logits.float(), data.y[ids], ids)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            read += len(ids)
            if read == samples:
                break
        plan.end(epoch)
        epoch += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Trained(model, read, time.perf_counter() - start, time.process_time() - cpu_start)


def _steps(count: int, recipe: Recipe) -> int:
    """Batches of an epoch that reads so many samples.

    They are of even size, because a last batch of a few samples would be a step into nowhere. A
    compiled network takes batches of one size, so no batch is larger.
    """
    batches = count / recipe.batch_size
    return max(1, math.ceil(batches) if recipe.compile else round(batches))


def _filled(ids: Tensor, size: int) -> Tensor:
    """The ids, then the first of them again up to ``size``: the loss leaves these out."""
    return ids.repeat(-(-size // len(ids)))[:size]


def _rate(done: float, rise: float) -> float:
    """The learning rate as a share of the highest one."""
    return max(done / rise if done < rise else (1 - done) / (1 - rise), 0.01)


def _draw_guise(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Row, column and flip for every sample of an epoch, int64 ``[3, N]``."""
    device = generator.device
    offsets = torch.randint(0, 2 * recipe.crop + 1, (2, count), generator=generator, device=device)
    flips = torch.randint(0, 2, (1, count), generator=generator, device=device)
    return torch.cat([offsets, flips * recipe.flip])


def _augment(images: Tensor, ids: Tensor, guise: Tensor, size: int, recipe: Recipe) -> Tensor:
    """The batch, ``[B, C, H, W]`` in channels-last order."""
    if not recipe.crop and not recipe.flip:
        return images[ids].permute(0, 3, 1, 2)
    row, column, flip = guise[:, ids, None]
    span = torch.arange(size, device=images.device)
    columns = column + torch.where(flip.bool(), size - 1 - span, span)
    rows = row + span
    return images[ids[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor, bfloat16: bool, batch: int = 500) -> Tensor:
    """Float32 ``[N, C]`` in evaluation mode."""
    model.eval()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        return torch.cat([model(part.permute(0, 3, 1, 2)).float() for part in x.split(batch)])


def accuracy(model: nn.Module, data: Data, bfloat16: bool) -> tuple[float, float]:
    """On the test set, in %: over all, and the mean over the classes."""
    right = (logits_of(model, data.x_test, bfloat16).argmax(1) == data.y_test).double()
    classes = [right[data.y_test == c].mean() for c in data.y_test.unique()]
    return 100 * right.mean().item(), 100 * torch.stack(classes).mean().item()
