"""TRL: prune an instruction set while SFTTrainer fine-tunes a language model on it.

Everything is made here, so that nothing is downloaded: questions for the opposite of a word, a
tokenizer of words, and a small Llama. 15 % of the answers are wrong.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from adapruner.integrations.hugging_face import PruningMixin

WORDS = """
hot cold big small old new fast slow high low hard soft wet dry full empty early late light dark
rich poor strong weak clean dirty near far open closed loud quiet sharp blunt deep shallow happy sad
long short wide narrow thick thin brave shy
"""
PAIRS = WORDS.split()  # each word is beside its opposite
FORMS = (
    "what is the opposite of {} ?",
    "give the opposite of {} .",
    "name a word that means the reverse of {} .",
    "the opposite of {} is",
    "{} has which opposite ?",
    "which word is the contrary of {} ?",
)


class PrunedSFTTrainer(PruningMixin, SFTTrainer):
    """SFTTrainer that prunes its training set."""


def instructions(seed: int = 0, wrong: float = 0.15) -> Dataset:
    """A question in each form for each word, with its answer, and whether the answer is wrong."""
    opposite = {a: b for i in range(0, len(PAIRS), 2) for a, b in [PAIRS[i : i + 2]]}
    opposite |= {b: a for a, b in opposite.items()}
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for form in FORMS:
        for word, answer in opposite.items():
            is_wrong = bool(torch.rand((), generator=generator) < wrong)
            if is_wrong:
                answer = PAIRS[int(torch.randint(len(PAIRS), (), generator=generator))]
            rows.append(
                {"prompt": form.format(word), "completion": f" {answer}", "wrong": is_wrong}
            )
    return Dataset.from_list(rows)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the words of all questions."""
    words = sorted({word for form in FORMS for word in form.split()} | set(PAIRS))
    numbers = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    model = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


def run(folder: str, epochs: int = 24):
    """The trainer after its run."""
    set_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )
    trainer = PrunedSFTTrainer(
        LlamaForCausalLM(config),
        SFTConfig(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=1,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=instructions(),
        processing_class=words,
        keep_ratio=0.8,
    )
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    torch.set_num_threads(1)  # the network is too small for more threads to help
    parser.add_argument("--epochs", type=int, default=24)
    with tempfile.TemporaryDirectory() as folder:
        trainer = run(folder, parser.parse_args().epochs)
        # The indices are rows of the dataset as the trainer holds it, after its preparation.
        rows = trainer.train_dataset
        kept = rows.select(trainer.pruned_result().indices.tolist())
    print(f"kept {len(kept)} of {len(rows)} instructions")
    before, after = (sum(part["wrong"]) / len(part) for part in (rows, kept))
    print(f"wrong answers: {before:.1%} of the training set, {after:.1%} of the kept set")


if __name__ == "__main__":
    main()
