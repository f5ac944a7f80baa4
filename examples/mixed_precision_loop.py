"""A loop of your own: autocast, gradient accumulation, and a schedule over the planned steps.

15 % of the labels of scikit-learn's digits are made wrong. The loader is any DataLoader.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import adapruner

ACCUMULATE = 4  # batches of an optimiser step


def digits(wrong: float = 0.15):
    """The training set, and which labels are wrong."""
    held = load_digits()
    x = torch.from_numpy(held.images).float().flatten(1) / 16
    y = torch.from_numpy(held.target)
    generator = torch.Generator().manual_seed(0)
    is_wrong = torch.rand(len(y), generator=generator) < wrong
    return TensorDataset(x, torch.where(is_wrong, (y + 1) % 10, y)), is_wrong


def run(epochs: int = 20):
    """The result, and which training labels are wrong."""
    dataset, is_wrong = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = adapruner.Pruner(len(dataset), keep_ratio=0.7, epochs=epochs)
    ordinary = DataLoader(dataset, batch_size=16, shuffle=True)
    loader = adapruner.pruned_loader(ordinary, pruner)
    steps = loader.batch_sampler.planned_batches(ACCUMULATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        batches = len(loader)  # it falls from epoch to epoch
        for place, (x, y, ids) in enumerate(loader):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = pruner.loss(model(x), y, ids)
            # The last group of an epoch may have fewer batches.
            group = min(ACCUMULATE, batches - place // ACCUMULATE * ACCUMULATE)
            (loss / group).backward()
            if (place + 1) % ACCUMULATE == 0 or place + 1 == batches:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        pruner.step()
    return pruner.result(), is_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    torch.set_num_threads(1)  # the network is too small for more threads to help
    parser.add_argument("--epochs", type=int, default=20)
    result, is_wrong = run(parser.parse_args().epochs)
    print(f"kept {len(result.indices)} of {result.num_samples}")
    before, after = is_wrong.float().mean(), is_wrong[result.indices].float().mean()
    print(f"wrong labels: {before:.1%} of the training set, {after:.1%} of the kept set")


if __name__ == "__main__":
    main()
