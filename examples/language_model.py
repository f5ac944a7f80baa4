"""Language modelling: a small GPT on the part of Shakespeare that adapruner keeps.

A sample is a sequence of 64 characters. `pruner.linear_loss` takes the last layer in, so that its
logits are never held whole; the loss of a sample is the mean over its characters. Takes
tinyshakespeare/input.txt in the folder of `--data`.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adapruner

METRIC = "perplexity"
LENGTH, BATCH, WIDTH, HEADS, LAYERS = 64, 32, 64, 4, 2


def load(folder: Path) -> tuple[Tensor, Tensor, int]:
    """Sequences [N, LENGTH + 1] of training (the first 90 %) and validation, and the vocabulary."""
    text = (folder / "tinyshakespeare" / "input.txt").read_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(character) for character in text])
    parts = tokens.split(int(0.9 * len(tokens)))
    # Each predicts LENGTH characters, the last of which is the first of the next sequence.
    training, validation = (part.unfold(0, LENGTH + 1, LENGTH) for part in parts)
    return training, validation, len(characters)


class Block(nn.Module):
    """Causal attention and a perceptron, each beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class GPT(nn.Module):
    """Gives the hidden states [B, T, WIDTH]; their logits are `head` of them."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.body = nn.Sequential(*(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.token(tokens) + self.place.weight[: tokens.shape[1]])


def train(sequences: Tensor, vocabulary: int, epochs: int, seed: int, pruner=None) -> GPT:
    """A new model, trained on all sequences, or on what the pruner chooses."""
    torch.manual_seed(seed)
    model = GPT(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda e: min((e + 1) / 2, 0.5 + 0.5 * math.cos(math.pi * e / epochs))
    )
    for _ in range(epochs):
        batches = pruner.batches(BATCH) if pruner else torch.randperm(len(sequences)).split(BATCH)
        for ids in batches:
            inputs, targets = sequences[ids, :-1], sequences[ids, 1:]
            hidden = model(inputs)
            if pruner:
                loss = pruner.linear_loss(hidden, model.head.weight, targets, ids)
            else:
                loss = F.cross_entropy(model.head(hidden).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if pruner:
            pruner.step()
        rate.step()
    return model


@torch.no_grad()
def perplexity(model: GPT, sequences: Tensor) -> float:
    """exp of the mean loss of a character."""
    losses = [
        F.cross_entropy(model.head(model(part[:, :-1])).flatten(0, 1), part[:, 1:].flatten())
        * len(part)
        for part in sequences.split(256)
    ]
    return math.exp(sum(losses).item() / len(sequences))


def compare(
    folder: Path,
    keep_ratio: float,
    epochs: int,
    seed: int,
    method: str = "sampled",
    most: int | None = None,
) -> Iterator[tuple[str, int, float]]:
    """Every way to train: its name, the samples that it keeps and its validation perplexity."""
    data, validation, vocabulary = load(folder)
    data, validation = data[:most], validation[:most]
    count = math.floor(keep_ratio * len(data) + 0.5)

    def run(indices=slice(None), pruner=None) -> float:
        return perplexity(train(data[indices], vocabulary, epochs, seed, pruner), validation)

    pruner = adapruner.Pruner(
        len(data), keep_ratio, epochs, seed=seed, method=method, normalize_loss=True
    )
    yield "adapruner", count, run(pruner=pruner)
    yield "kept set, anew", count, run(pruner.result().indices)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    yield "random part", count, run(chosen)
    yield "all data", len(data), run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="sampled", help="of adapruner")
    parser.add_argument("--quick", action="store_true", help="2 epochs of 200 sequences")
    args = parser.parse_args()
    if not (args.data / "tinyshakespeare" / "input.txt").exists():
        parser.error(f"--data is to hold tinyshakespeare/input.txt; {args.data} does not")
    epochs, most = (2, 200) if args.quick else (args.epochs, None)
    print(f"{'trained on':<16}{'samples':>8}{METRIC:>12}")
    ways = compare(args.data, args.keep_ratio, epochs, args.seed, args.method, most)
    for name, samples, value in ways:
        print(f"{name:<16}{samples:>8}{value:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
