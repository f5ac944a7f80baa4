"""Regression: how diabetes patients fare after a year, learned from the part that adapruner keeps.

Squared errors are not on the scale of cross entropy. The default method takes losses of any scale,
and `normalize_loss=True` is for `--method published`. Takes scikit-learn's diabetes data (442
patients, ten measurements each) and a few seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import adapruner

METRIC = "R²"
BATCH, TEST = 32, 132


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test data, split by the seed, in units of the training data's spread."""
    x, y = (torch.from_numpy(part).float() for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 + seed))
    rest, test = order[TEST:], order[:TEST]
    x, y = (x - x[rest].mean(0)) / x[rest].std(0), (y - y[rest].mean()) / y[rest].std()
    return x[rest], y[rest], x[test], y[test]


def train(x: Tensor, y: Tensor, epochs: int, seed: int, pruner=None) -> nn.Module:
    """A new model, trained on all of (x, y), or on what the pruner chooses."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        batches = pruner.batches(BATCH) if pruner else torch.randperm(len(y)).split(BATCH)
        for ids in batches:
            sample_loss = (model(x[ids]).squeeze(1) - y[ids]).square()
            loss = pruner.weigh(sample_loss, ids) if pruner else sample_loss.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if pruner:
            pruner.step()
        rate.step()
    return model


@torch.no_grad()
def r2(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of the targets' variance that the model explains."""
    error = (model(x).squeeze(1) - y).square().sum()
    return 1 - (error / (y - y.mean()).square().sum()).item()


def compare(
    keep_ratio: float, epochs: int, seed: int, method: str = "sampled"
) -> Iterator[tuple[str, int, float]]:
    """Every way to train: its name, the samples that it keeps and its R² on the test data."""
    x, y, *test = load(seed)
    count = math.floor(keep_ratio * len(y) + 0.5)
    pruner = adapruner.Pruner(
        len(y), keep_ratio, epochs, seed=seed, method=method, normalize_loss=True
    )
    yield "adapruner", count, r2(train(x, y, epochs, seed, pruner), *test)
    kept = pruner.result().indices
    yield "kept set, anew", count, r2(train(x[kept], y[kept], epochs, seed), *test)
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:count]
    yield "random part", count, r2(train(x[chosen], y[chosen], epochs, seed), *test)
    yield "all data", len(y), r2(train(x, y, epochs, seed), *test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="sampled", help="of adapruner")
    parser.add_argument("--quick", action="store_true", help="3 epochs")
    args = parser.parse_args()
    print(f"{'trained on':<16}{'samples':>8}{METRIC:>8}")
    epochs = 3 if args.quick else args.epochs
    for name, samples, value in compare(args.keep_ratio, epochs, args.seed, args.method):
        print(f"{name:<16}{samples:>8}{value:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
