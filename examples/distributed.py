"""Many processes: digits, learned by two CPU processes that train one model and prune together.

    torchrun --standalone --nproc-per-node=2 examples/distributed.py

The loop is that of one process: the loader gives each process its share, and `pruner.step` has all
of them select the same samples. Takes scikit-learn's digits (1,797 images) and half a minute.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import adapruner

TEST = 497


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test data."""
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    rest, test = order[TEST:], order[:TEST]
    x = x.float() / 16
    return x[rest], y[rest], x[test], y[test]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    args = parser.parse_args()

    distributed.init_process_group("gloo")  # "nccl" on GPUs
    rank = distributed.get_rank()
    x, y, test_x, test_y = load()
    torch.manual_seed(0)
    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    pruner = adapruner.Pruner(len(y), args.keep_ratio, args.epochs)
    loader = pruner.loader((x, y), args.batch_size)
    for _ in range(args.epochs):
        read = 0
        for inputs, targets, ids in loader:
            loss = pruner.loss(model(inputs), targets, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            read += len(ids)
        summary = pruner.step()
        if rank == 0:
            print(
                f"epoch {summary['epoch'] + 1:>2}  read {summary['samples_read']:>5}, of these "
                f"{read:>4} by rank 0  loss {summary['training_loss']:.3f}",
                flush=True,
            )
    kept = pruner.result().indices

    sets: list[str] = [""] * distributed.get_world_size()
    distributed.all_gather_object(sets, str(kept.tolist()))
    if rank == 0:
        right = (model.module(test_x).argmax(1) == test_y).float().mean()
        same = "the same" if len(set(sets)) == 1 else "another"
        print(f"kept {len(kept)} of {len(y)}, {same} set on all {len(sets)} ranks")
        print(f"test accuracy {100 * right:.1f} %")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
