"""Handwritten digits: all data, a random part, and what adapruner keeps, over several seeds.

Trains on scikit-learn's digits (1,797 images of 8×8), once with their labels and once with 15 % of
the training labels made wrong. Prints a table, and writes the figure, the last kept set and its
report. Run by `make demo`; takes about a minute and a half on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import adapruner
from adapruner.info import machine

BATCH = 64
TEST = 500


def network() -> nn.Module:
    """A small convolutional network for 8×8 images."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 24),
        *block(24, 48),
        nn.MaxPool2d(2),
        *block(48, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


def optimizer(parameters, epochs: int):
    """AdamW with a learning rate that rises for three epochs and falls in a cosine."""
    adamw = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda epoch: min((epoch + 1) / 3, 0.5 + 0.5 * math.cos(math.pi * epoch / epochs))
    )
    return adamw, rate


def train(model: nn.Module, x, y, epochs: int, seed: int) -> None:
    """An ordinary training run, for comparison."""
    generator = torch.Generator().manual_seed(seed)
    adamw, rate = optimizer(model.parameters(), epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            adamw.zero_grad()
            loss.backward()
            adamw.step()
        rate.step()


@torch.no_grad()
def accuracy(model: nn.Module, x, y) -> float:
    model.eval()
    return (model(x).argmax(1) == y).double().mean().item() * 100


def split(seed: int, wrong: float):
    """Training images and labels, the share ``wrong`` of them wrong, and clean test ones."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(digits.target)
    generator = torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(len(y), generator=generator)
    rest, test = order[TEST:], order[:TEST]
    labels = y[rest].clone()
    is_wrong = torch.rand(len(rest), generator=generator) < wrong
    shift = torch.randint(1, 10, (len(rest),), generator=generator)
    labels[is_wrong] = (labels[is_wrong] + shift[is_wrong]) % 10
    return x[rest], labels, is_wrong, x[test], y[test]


def run(seed: int, wrong: float, ratio: float, epochs: int):
    """Accuracy and seconds of every way to train, for one seed, and adapruner's result."""
    x, y, is_wrong, x_test, y_test = split(seed, wrong)
    rows = {}

    def measure(name: str, fit) -> None:
        torch.manual_seed(seed)
        model = network()
        start = time.perf_counter()
        outcome = fit(model)
        seconds = time.perf_counter() - start
        rows[name] = {"accuracy": accuracy(model, x_test, y_test), "seconds": seconds}
        if outcome is not None:
            rows[name]["result"] = outcome

    count = math.floor(ratio * len(y) + 0.5)
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:count]
    measure("all data", lambda model: train(model, x, y, epochs, seed))
    measure("random part", lambda model: train(model, x[chosen], y[chosen], epochs, seed))
    measure(
        "adapruner",
        lambda model: adapruner.fast_prune(
            model,
            (x, y),
            keep_ratio=ratio,
            epochs=epochs,
            batch_size=BATCH,
            seed=seed,
            optimizer=lambda parameters: optimizer(parameters, epochs),
            progress=False,
        ),
    )
    result = rows["adapruner"].pop("result")
    kept = result.indices
    measure("kept set, anew", lambda model: train(model, x[kept], y[kept], epochs, seed))
    rows["random part"]["wrong"] = is_wrong[chosen].double().mean().item() * 100
    rows["all data"]["wrong"] = is_wrong.double().mean().item() * 100
    for name in ("adapruner", "kept set, anew"):
        rows[name]["wrong"] = is_wrong[kept].double().mean().item() * 100
    return rows, result


def draw(table: dict[float, list[dict]], ratio: float, path: Path) -> None:
    """Accuracy of every way to train: a dot for each seed, a line for the mean."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, len(table), sharey=True)
    for ax, (wrong, runs) in zip(axes, table.items(), strict=True):
        names = list(runs[0])
        for position, name in enumerate(names):
            values = [rows[name]["accuracy"] for rows in runs]
            colour = "#0072b2" if name.startswith(("adapruner", "kept")) else "#8a8a8a"
            ax.plot([position] * len(values), values, "o", color=colour, alpha=0.6, ms=6)
            ax.hlines(np.mean(values), position - 0.3, position + 0.3, color=colour, lw=2.5)
        labels = [name.replace(" ", "\n", 1).replace(", ", ",\n") for name in names]
        ax.set_xticks(range(len(names)), labels)
        ax.set_xlim(-0.6, len(names) - 0.4)
        ax.set_title(f"{wrong:.0%} of the labels wrong" if wrong else "labels as they are")
        ax.grid(axis="y", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy, %")
    figure.suptitle(f"Digits: {ratio:.0%} of the training set kept, one dot per seed")
    figure.savefig(path, dpi=150)


def show(table: dict[float, list[dict]]) -> None:
    for wrong, runs in table.items():
        print(f"\n{wrong:.0%} of the training labels wrong, {len(runs)} seeds (mean ± std)")
        print(f"  {'':<16}{'test accuracy':>16}{'wrong among used':>19}{'seconds':>14}")
        for name in runs[0]:
            columns = [np.array([rows[name][key] for rows in runs]) for key in
                       ("accuracy", "wrong", "seconds")]  # fmt: skip
            spread = [column.std(ddof=1) if len(runs) > 1 else 0.0 for column in columns]
            print(
                f"  {name:<16}{columns[0].mean():>9.2f} ± {spread[0]:4.2f}"
                f"{columns[1].mean():>16.1f} %{columns[2].mean():>8.1f} ± {spread[2]:3.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    # The network is too small for more threads to help.
    torch.set_num_threads(1)

    table: dict[float, list[dict]] = {0.0: [], 0.15: []}
    result = None
    bar = tqdm(total=len(table) * args.seeds, desc="digits", unit="seed")
    for wrong, runs in table.items():
        for seed in range(args.seeds):
            rows, result = run(seed, wrong, args.keep_ratio, args.epochs)
            runs.append(rows)
            bar.update()
            last = "  ".join(f"{name} {row['accuracy']:.1f}" for name, row in rows.items())
            bar.write(f"{wrong:.0%} wrong, seed {seed}:  {last}")
    bar.close()

    show(table)
    draw(table, args.keep_ratio, args.out / "digits.png")
    result.save(args.out / "kept.safetensors")
    result.report(args.out / "report.html")
    about = {"keep_ratio": args.keep_ratio, "epochs": args.epochs} | machine()
    rows = {str(wrong): runs for wrong, runs in table.items()}
    text = json.dumps({"provenance": about, "runs": rows}, indent=1)
    (args.out / "digits.json").write_text(text + "\n")
    print(f"\nWritten to {args.out}/: digits.png, digits.json, kept.safetensors, report.html")


if __name__ == "__main__":
    main()
