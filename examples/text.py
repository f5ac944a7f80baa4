"""Text classification: a small transformer on the film reviews that adapruner keeps.

A sample is a sentence with its sentiment. Items are dicts, and `target` names the label in them, as
for a tokenised Hugging Face dataset. The run also names sentences whose label may be wrong. Takes
sst2/{train,dev}.tsv in the folder of `--data`: two columns, of which the header calls one "label",
as in the SST-2 task of GLUE.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import adapruner

METRIC = "accuracy"
LENGTH, WIDTH, PAD, UNKNOWN = 24, 64, 0, 1


class Reviews(Dataset):
    """Sentences as dicts of `tokens`, int64 [LENGTH], and `label`, 0 or 1."""

    def __init__(self, path: Path, vocabulary: dict[str, int] | None, most: int | None) -> None:
        header, *lines = path.read_text("utf-8").splitlines()
        place = header.split("\t").index("label")
        pairs = [line.split("\t", 1) for line in lines[:most]]
        self.texts = [pair[1 - place] for pair in pairs]
        self.labels = [int(pair[place]) for pair in pairs]
        if vocabulary is None:
            counts = Counter(word for text in self.texts for word in text.split())
            words = [word for word, count in counts.most_common(8000) if count > 1]
            vocabulary = {word: number for number, word in enumerate(words, 2)}
        self.vocabulary = vocabulary
        self.tokens = torch.full((len(pairs), LENGTH), PAD)
        for row, text in zip(self.tokens, self.texts, strict=True):
            words = text.split()[:LENGTH]
            row[: len(words)] = torch.tensor([vocabulary.get(word, UNKNOWN) for word in words])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"tokens": self.tokens[index], "label": self.labels[index]}


class Classifier(nn.Module):
    """One layer of attention, and the mean over the words. Takes `tokens` as a keyword."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, WIDTH, padding_idx=PAD)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.dropout = nn.Dropout(0.3)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        empty = tokens == PAD
        hidden = self.dropout(self.embedding(tokens) + self.place.weight)
        hidden = self.layer(hidden, src_key_padding_mask=empty).masked_fill(empty[..., None], 0)
        return self.head(hidden.sum(1) / (~empty).sum(1, keepdim=True).clamp(min=1))


@torch.no_grad()
def accuracy(model: nn.Module, data: Reviews) -> float:
    model.eval()
    found = torch.cat([model(part).argmax(1) for part in data.tokens.split(256)])
    return (found == torch.tensor(data.labels)).double().mean().item()


def compare(
    folder: Path,
    keep_ratio: float,
    epochs: int,
    seed: int,
    method: str = "sampled",
    most: int | None = None,
    suspects: int = 0,
) -> Iterator[tuple[str, int, float]]:
    """Every way to train: its name, the samples that it keeps and its accuracy on dev.tsv.

    Also prints so many sentences whose label may be wrong.
    """
    data = Reviews(folder / "sst2" / "train.tsv", None, most)
    dev = Reviews(folder / "sst2" / "dev.tsv", data.vocabulary, None)
    count = math.floor(keep_ratio * len(data) + 0.5)

    def run(part: Dataset, ratio: float = 1.0):
        """The result of a run, and the accuracy of its model."""
        torch.manual_seed(seed)
        model = Classifier(len(data.vocabulary) + 2)
        result = adapruner.fast_prune(
            model, part, ratio, epochs, target="label", seed=seed, method=method, progress=False
        )
        return result, accuracy(model, dev)

    result, value = run(data, keep_ratio)
    yield "adapruner", count, value
    yield "kept set, anew", count, run(result.subset(data))[1]
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    yield "random part", count, run(Subset(data, chosen.tolist()))[1]
    yield "all data", len(data), run(data)[1]
    for index in result.suspects().indices[:suspects].tolist() if suspects else []:
        print(f"labelled {data.labels[index]}: {data.texts[index]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADAPRUNER_DATA", "data"))
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="sampled", help="of adapruner")
    parser.add_argument("--suspects", type=int, default=0, help="print so many likely wrong labels")
    parser.add_argument("--quick", action="store_true", help="2 epochs of 200 sentences")
    args = parser.parse_args()
    if not (args.data / "sst2" / "train.tsv").exists():
        parser.error(f"--data is to hold sst2/train.tsv; {args.data} does not")
    epochs, most = (2, 200) if args.quick else (args.epochs, 10_000)
    print(f"{'trained on':<16}{'samples':>8}{METRIC:>12}")
    ways = compare(args.data, args.keep_ratio, epochs, args.seed, args.method, most, args.suspects)
    for name, samples, value in ways:
        print(f"{name:<16}{samples:>8}{value:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
