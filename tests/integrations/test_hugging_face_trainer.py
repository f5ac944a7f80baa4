"""The Trainer of transformers with a pruner, and TRL's SFTTrainer, on tiny models made here."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="needs transformers")
datasets = pytest.importorskip("datasets", reason="needs datasets")
pytest.importorskip("accelerate", reason="needs accelerate")

from adapruner.integrations.hugging_face import PrunedTrainer, PruningMixin  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded")
N, EVALUATED, BATCH, GROUP, EPOCHS, VOCABULARY, LENGTH = 90, 20, 4, 4, 5, 50, 8
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def model_of(kind: str, **settings: Any) -> Any:
    bert = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if kind == "causal":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SIZES, num_key_value_heads=2, **settings)
        )
    if kind == "tokens":
        return transformers.BertForTokenClassification(
            transformers.BertConfig(**bert, num_labels=5, **settings)
        )
    labels = {"classes": 3, "numbers": 1, "several": 3}[kind]
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**bert, num_labels=labels, **settings)
    )


def rows_of(kind: str, count: int = N) -> Any:
    """Rows of tokens with labels of a kind, and a column that no model takes."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    labels: dict[str, Any] = {
        "classes": tokens[:, 0] % 3,
        "numbers": tokens[:, 0] / VOCABULARY,
        "several": torch.stack([tokens[:, i] % 2 for i in range(3)], 1).float(),
        "tokens": torch.cat([torch.full((count, 1), -100), tokens[:, 1:] % 5], 1),
        "causal": torch.cat([torch.full((count, 3), -100), tokens[:, 3:]], 1),
    }
    return datasets.Dataset.from_dict(
        {
            "input_ids": tokens.tolist(),
            "attention_mask": torch.ones_like(tokens).tolist(),
            "labels": labels[kind].tolist(),
            "name": [f"row {i}" for i in range(count)],
        }
    )


def arguments_of(folder: Path, **arguments: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": GROUP,
        "num_train_epochs": EPOCHS,
        "learning_rate": 1e-2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return transformers.TrainingArguments(**settings | arguments)


class Watched(PrunedTrainer):
    """Notes the ids of each batch, and the gradients of the first one with its inputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.read: list[list[int]] = []
        self.first: tuple[Any, Tensor, dict[str, Tensor]] | None = None
        super().__init__(*args, **kwargs)

    def pruned_loss(self, model: Any, inputs: dict[str, Any], ids: Tensor) -> Tensor:
        self.read.append(ids.tolist())
        before = copy.deepcopy(model) if self.first is None else None
        given = dict(inputs)
        loss = super().pruned_loss(model, inputs, ids)
        if before is not None:
            parameters = dict(model.named_parameters())
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
            # Copies, because the Trainer accumulates into these gradients in place.
            copies = [gradient.clone() for gradient in found]
            self.first = (before, loss.detach(), given | dict(zip(parameters, copies, strict=True)))
        return loss


def trainer_of(folder: Path, kind: str, model: Any = None, **arguments: Any) -> Watched:
    return Watched(
        model or model_of(kind),
        arguments_of(folder, **arguments),
        train_dataset=rows_of(kind),
        eval_dataset=rows_of(kind, EVALUATED),
        keep_ratio=0.5,
    )


def expected_losses(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each sample, from torch alone."""
    if kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    if kind == "numbers":
        return (logits[:, 0] - labels).square()
    if kind == "several":
        every = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return every.mean(1)
    every = nn.functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    if kind == "classes":
        return every
    return every.sum(1) / (labels != -100).sum(1)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("classes", {}),
        ("numbers", {}),
        ("several", {"problem_type": "multi_label_classification"}),
        ("tokens", {}),
        ("causal", {}),
        ("causal", {"tie_word_embeddings": True}),
    ],
)
def test_a_run_reads_evaluates_and_steps_as_planned(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    trainer = trainer_of(tmp_path, kind, model_of(kind, **settings))
    output = trainer.train()
    pruner = trainer.pruner
    reads = [entry["samples_read"] for entry in pruner.history]
    assert reads == pruner.planned_reads()
    assert (reads[0], reads[-1] < 0.6 * N) == (N, True)
    batches = [-(-count // BATCH) for count in reads]
    steps = sum(-(-count // GROUP) for count in batches)
    assert output.global_step == trainer.state.max_steps == steps
    assert trainer.lr_scheduler.get_last_lr()[0] == 0
    assert trainer.state.epoch == EPOCHS
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == EPOCHS
    assert len(trainer.read) == sum(batches)
    assert "reads" not in pruner.warnings
    # The first batch: its loss, its gradients and the samples' losses.
    model, loss, given = trainer.first
    names = [name for name, _ in model.named_parameters()]
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    losses = expected_losses(kind, model(**inputs).logits, given["labels"])
    torch.testing.assert_close(loss, losses.mean())
    gradients = torch.autograd.grad(losses.mean(), list(model.parameters()))
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(given[name], gradient, rtol=1e-3, atol=1e-6)
    result = trainer.pruned_result()
    assert len(result.indices) == N // 2
    assert len(result.subset(trainer.train_dataset)) == N // 2
    kept = trainer.train_dataset.select(result.indices.tolist())["name"]
    assert list(kept) == [f"row {i}" for i in result.indices.tolist()]


@pytest.mark.parametrize(
    "saving",
    [{"save_strategy": "steps", "save_steps": 7}, {"save_strategy": "epoch"}],
    ids=["steps", "epochs"],
)
def test_a_checkpoint_is_gone_on_from(tmp_path: Path, saving: dict[str, Any]) -> None:
    whole = trainer_of(tmp_path / "whole", "causal", **saving)
    start = copy.deepcopy(whole.model)
    whole.train()
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"))
    assert len(checkpoints) >= 4
    for checkpoint in checkpoints:
        model = copy.deepcopy(start)
        saving["save_strategy"] = "no"
        again = trainer_of(tmp_path / "again", "causal", model, **saving)
        again.train(resume_from_checkpoint=str(checkpoint))
        if again.read:
            assert again.read == whole.read[-len(again.read) :]
        assert again.state.global_step == whole.state.global_step
        assert again.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()
        found, wanted = again.pruned_result(), whole.pruned_result()
        assert torch.equal(found.gate_logits, wanted.gate_logits)
        assert torch.equal(found.indices, wanted.indices)
        assert all(map(torch.equal, model.parameters(), whole.model.parameters()))


def test_a_checkpoint_that_the_trainer_saves_by_itself_has_the_pruner(tmp_path: Path) -> None:
    """As it does where a signal stops the run, without the event of a save."""

    class Saving(transformers.TrainerCallback):
        trainer: Any = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                self.trainer._save_checkpoint(self.trainer.model, None)

    whole = trainer_of(tmp_path / "whole", "classes")
    start, saving = copy.deepcopy(whole.model), Saving()
    saving.trainer = whole
    whole.add_callback(saving)
    whole.train()
    again = trainer_of(tmp_path / "again", "classes", start)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert again.read == whole.read[-len(again.read) :]
    assert torch.equal(again.pruned_result().indices, whole.pruned_result().indices)


def test_an_epoch_that_a_callback_ends_early_counts(tmp_path: Path) -> None:
    class Cutting(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_epoch_stop = 1 <= state.epoch < 2 and state.epoch > 1.2

    trainer = trainer_of(tmp_path, "classes")
    trainer.add_callback(Cutting())
    trainer.train()
    history = trainer.pruner.history
    assert len(history) == EPOCHS
    assert history[1]["samples_skipped"] > 0
    assert history[0]["samples_skipped"] == history[2]["samples_skipped"] == 0
    assert not trainer.pruned_result().partial


def test_a_checkpoint_of_other_data_or_without_a_pruner_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "classes", save_strategy="steps", save_steps=4, max_steps=4)
    trainer.train()
    folder = str(tmp_path / "checkpoint-4")
    other = trainer_of(tmp_path / "other", "tokens")
    with pytest.raises(ValueError, match=r"fingerprint"):
        other._init_training_state(22, 6, 5, folder, None)
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    (plain / "checkpoint.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no state of a pruner"):
        trainer_of(tmp_path / "again", "classes").train(resume_from_checkpoint=str(plain))


def test_max_steps_gives_a_partial_result(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "classes", max_steps=13)
    assert trainer.train().global_step == 13
    result = trainer.pruned_result()
    assert result.partial
    assert result.saved["samples_read"] == 2 * N + BATCH * GROUP
    with pytest.raises(ValueError, match="max_steps must be at most 22, the planned"):
        trainer_of(tmp_path, "classes", max_steps=23).train()


def test_a_second_run_of_a_trainer_is_refused(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    for steps in (2, -1):  # in the middle of the first epoch, and at the end of the run
        trainer = trainer_of(tmp_path, "classes", max_steps=steps, **saving)
        trainer.train()
        with pytest.raises(RuntimeError, match=r"found a trainer that has trained \d epochs"):
            trainer.train()
    kept, read = trainer.pruned_result().indices, len(trainer.read)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert trainer.read[-1] == trainer.read[read - 1]
    assert torch.equal(trainer.pruned_result().indices, kept)


def test_label_smoothing_is_that_of_torch(tmp_path: Path) -> None:
    for kind in ("classes", "causal"):
        trainer = trainer_of(tmp_path, kind, label_smoothing_factor=0.2, max_steps=1)
        trainer.train()
        model, loss, given = trainer.first
        inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
        logits, labels = model(**inputs).logits, given["labels"]
        if kind == "causal":  # every row has as many tokens
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        wanted = nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
        torch.testing.assert_close(loss, wanted.detach())


@pytest.mark.parametrize("capped", [False, True])
def test_a_model_that_changes_its_logits_is_not_fused(tmp_path: Path, capped: bool) -> None:
    if capped:
        config = transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8)
        model = transformers.Gemma2ForCausalLM(config)
    else:
        config = transformers.GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=4.0)
        model = transformers.GraniteForCausalLM(config)
    trainer = trainer_of(tmp_path, "causal", model, max_steps=1)
    trainer.train()
    before, loss, given = trainer.first
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    losses = expected_losses("causal", before(**inputs).logits, given["labels"])
    torch.testing.assert_close(loss, losses.mean().detach())
    assert trainer._fused_head is None


def test_bf16_and_a_collator_that_pads(tmp_path: Path) -> None:
    rows = rows_of("causal")
    lengths = [LENGTH - i % 4 for i in range(N)]
    cut = [
        {name: row[name][:length] for name in ("input_ids", "attention_mask", "labels")}
        for row, length in zip(rows, lengths, strict=True)
    ]
    tokenizer = tokenizer_of()
    trainer = PrunedTrainer(
        model_of("causal"),
        arguments_of(tmp_path, bf16=True, eval_strategy="no"),
        train_dataset=datasets.Dataset.from_list(cut),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        keep_ratio=0.5,
    )
    trainer.train()
    assert len(trainer.pruned_result().indices) == N // 2
    assert trainer.pruner.gates.last_loss.isfinite().all()
    assert trainer._fused_head is not None


@pytest.mark.parametrize("way", ["model_init", "more tokens"])
def test_a_model_that_changes_before_the_run_is_trained_whole(tmp_path: Path, way: str) -> None:
    trainer = PrunedTrainer(
        None if way == "model_init" else model_of("causal"),
        arguments_of(tmp_path),
        model_init=(lambda: model_of("causal")) if way == "model_init" else None,
        train_dataset=rows_of("causal"),
        eval_dataset=rows_of("causal", EVALUATED),
        keep_ratio=0.5,
    )
    if way == "more tokens":
        trainer.model.resize_token_embeddings(VOCABULARY + 10)
    heads = []

    class Note(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
            heads.append(model.lm_head.weight.detach().clone())

    trainer.add_callback(Note())
    trainer.train()
    moved = (trainer.model.lm_head.weight - heads[0]).abs().amax(1)
    assert (moved > 0).sum() >= VOCABULARY - 1


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    class Own(PrunedTrainer):
        def pruned_loss(self, model: Any, inputs: dict[str, Any], ids: Tensor) -> Tensor:
            labels = inputs.pop("labels")
            losses = (model(**inputs).logits[:, 0] - labels).abs()
            return self.pruner.weigh(losses, ids)

    trainer = Own(
        model_of("classes"),
        arguments_of(tmp_path, eval_strategy="no"),
        train_dataset=rows_of("classes"),
        keep_ratio=0.5,
        pruner_options={"normalize_loss": True, "seed": 3},
    )
    trainer.train()
    assert len(trainer.pruned_result().indices) == N // 2
    assert trainer.pruner.seed == 3


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for name, value in {
        "num_train_epochs": 2.5,
        "auto_find_batch_size": True,
        "ignore_data_skip": True,
    }.items():
        with pytest.raises(ValueError, match=rf"{name} must be .*found {value}"):
            trainer_of(tmp_path, "classes", **{name: value})
    with pytest.raises(TypeError, match="expected a train_dataset with a length; found"):
        PrunedTrainer(
            model_of("classes"),
            arguments_of(tmp_path, max_steps=3, eval_strategy="no"),
            train_dataset=rows_of("classes").to_iterable_dataset(),
        )
    config = transformers.BertConfig(**SIZES)
    trainer = trainer_of(tmp_path, "classes", transformers.BertForNextSentencePrediction(config))
    with pytest.raises(TypeError, match=r"found BertForNextSentencePrediction\. Override"):
        trainer.train()


def tokenizer_of() -> Any:
    """A tokenizer of words, with a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i + 3 for i in range(40)} | {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def test_instructions_are_pruned_while_trl_fine_tunes(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs trl")

    class PrunedSFT(PruningMixin, trl.SFTTrainer):
        pass

    instructions = datasets.Dataset.from_list(
        [
            {
                "prompt": f"w{i % 7} w{i % 11} w{i % 13}",
                "completion": f" w{i % 5} w{i % 3}",
                "number": i,
            }
            for i in range(N)
        ]
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=GROUP,
        num_train_epochs=EPOCHS,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        shuffle_dataset=True,
    )
    trainer = PrunedSFT(
        model_of("causal"),
        arguments,
        train_dataset=instructions,
        eval_dataset=instructions.select(range(EVALUATED)),
        processing_class=tokenizer_of(),
        keep_ratio=0.5,
    )
    trainer.train()
    pruner, result = trainer.pruner, trainer.pruned_result()
    assert [entry["samples_read"] for entry in pruner.history] == pruner.planned_reads()
    assert trainer.lr_scheduler.get_last_lr()[0] == 0
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == EPOCHS
    assert sum("eval_mean_token_accuracy" in entry for entry in trainer.state.log_history) == EPOCHS
    assert len(result.indices) == N // 2
    # The prompt is no part of a sample's loss: without it, the loss is that of the completion.
    kept = trainer.train_dataset.select(result.indices.tolist())
    assert len(set(kept["number"])) == N // 2
    assert trainer._fused_head is not None
    for option in ({"packing": True}, {"padding_free": True, "max_length": None}):
        settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be off"):
            PrunedSFT(
                model_of("causal"),
                trl.SFTConfig(**settings | option),
                train_dataset=instructions,
                processing_class=tokenizer_of(),
            )
