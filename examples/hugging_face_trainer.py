"""Hugging Face Trainer: a classifier of token sequences, on a set with wrong labels.

The texts, the tokens and the small BERT are made here, so that nothing is downloaded. The class of
a text is the kind of word that it has most of, and 15 % of the training labels are made wrong.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from adapruner.integrations.hugging_face import PrunedTrainer

CLASSES, WORDS, LENGTH = 4, 120, 12


def texts(count: int, seed: int, wrong: float = 0.0):
    """Rows of tokens with labels, and which labels are wrong. Word w is of kind w % CLASSES."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, CLASSES, (count,), generator=generator)
    tokens = torch.randint(0, WORDS // CLASSES, (count, LENGTH), generator=generator) * CLASSES
    kinds = torch.randint(0, CLASSES, (count, LENGTH), generator=generator)
    typical = torch.rand(count, LENGTH, generator=generator) < 0.6
    tokens += torch.where(typical, label[:, None], kinds)
    is_wrong = torch.rand(count, generator=generator) < wrong
    given = torch.where(is_wrong, (label + 1) % CLASSES, label)
    rows = {"input_ids": (tokens + 1).tolist(), "labels": given.tolist()}
    return Dataset.from_dict(rows), is_wrong


def run(folder: str, epochs: int = 12, samples: int = 1500):
    """The result, the evaluation's accuracy, and which training labels are wrong."""
    set_seed(0)
    training, is_wrong = texts(samples, 0, wrong=0.15)
    config = BertConfig(
        vocab_size=WORDS + 1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
    )
    trainer = PrunedTrainer(
        BertForSequenceClassification(config),
        TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=training,
        eval_dataset=texts(200, 1)[0],
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(1) == p.label_ids).mean()},
        keep_ratio=0.7,
    )
    trainer.train()
    return trainer.pruned_result(), trainer.evaluate()["eval_accuracy"], is_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    torch.set_num_threads(1)  # the network is too small for more threads to help
    parser.add_argument("--epochs", type=int, default=12)
    with tempfile.TemporaryDirectory() as folder:
        result, accuracy, is_wrong = run(folder, parser.parse_args().epochs)
    print(f"kept {len(result.indices)} of {result.num_samples}, accuracy {accuracy:.1%}")
    before, after = is_wrong.float().mean(), is_wrong[result.indices].float().mean()
    print(f"wrong labels: {before:.1%} of the training set, {after:.1%} of the kept set")


if __name__ == "__main__":
    main()
