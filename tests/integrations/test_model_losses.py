"""What models of transformers add to the loss of their samples: it is trained, or it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="needs transformers")
datasets = pytest.importorskip("datasets", reason="needs datasets")
pytest.importorskip("accelerate", reason="needs accelerate")

from adapruner import Pruner  # noqa: E402
from adapruner.integrations import model_losses  # noqa: E402
from adapruner.integrations.hugging_face import PrunedTrainer, PruningMixin  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.filterwarnings("ignore:a selection needs about 10 epochs"),
]
N, VOCABULARY, LENGTH, COEFFICIENT = 8, 50, 10, 0.5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
HEADS = {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True} | HEADS


def mixtral(**settings: Any) -> Any:
    sizes = SIZES | EXPERTS | {"num_local_experts": 4, "router_aux_loss_coef": COEFFICIENT}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes | settings))


def qwen() -> Any:
    sizes = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    config = transformers.Qwen2MoeConfig(
        **SIZES, **EXPERTS, **sizes, router_aux_loss_coef=COEFFICIENT
    )
    return transformers.Qwen2MoeForCausalLM(config)


def granite() -> Any:
    """A model that scales its logits too, so that its head is not fused."""
    own = {"num_local_experts": 4, "router_aux_loss_coef": COEFFICIENT, "logits_scaling": 3.0}
    return transformers.GraniteMoeForCausalLM(
        transformers.GraniteMoeConfig(**SIZES, **EXPERTS, **own)
    )


def jet() -> Any:
    """A model whose coefficient has another name."""
    sizes = {name: size for name, size in SIZES.items() if name != "num_attention_heads"}
    own = {"kv_channels": 8, "num_local_experts": 4, "aux_loss_coef": COEFFICIENT}
    return transformers.JetMoeForCausalLM(transformers.JetMoeConfig(**sizes, **EXPERTS, **own))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS))


def bert(kind: str = "SequenceClassification", **settings: Any) -> Any:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}
    config = transformers.BertConfig(**SIZES | still | settings)
    return getattr(transformers, f"BertFor{kind}")(config)


def rows(labels: Tensor | None = None) -> Any:
    """One batch, in which each row has as many labelled tokens as the others."""
    tokens = torch.randint(1, VOCABULARY, (N, LENGTH))
    if labels is None:
        labels = torch.cat([torch.full((N, 3), -100), tokens[:, 3:]], 1)
    mask = torch.ones_like(tokens)
    columns = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    return datasets.Dataset.from_dict({name: x.tolist() for name, x in columns.items()})


def trained(
    kind: type, folder: Path, model: Any, data: Any, **arguments: Any
) -> tuple[dict[str, Tensor], float, Any]:
    """Gradients and loss of the first step of a copy of ``model``, and its trainer."""
    gradients: dict[str, Tensor] = {}

    class Noted(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            if not gradients:
                parameters = model.named_parameters()
                gradients.update({n: p.grad.clone() for n, p in parameters if p.grad is not None})

    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": N,
        "num_train_epochs": 1,
        "max_grad_norm": 0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    settings |= arguments
    options = {"keep_ratio": 0.5} if issubclass(kind, PruningMixin) else {}
    trainer = kind(
        copy.deepcopy(model),
        transformers.TrainingArguments(**settings),
        train_dataset=data,
        callbacks=[Noted()],
        **options,
    )
    loss = trainer.train().training_loss
    return gradients, loss, trainer


@pytest.mark.parametrize("make", [mixtral, qwen, granite, jet])
def test_load_balancing_is_trained_as_in_the_trainer(tmp_path: Path, make: Any) -> None:
    model, data = make(), rows()
    expected, loss, _ = trained(transformers.Trainer, tmp_path, model, data)
    found, other, trainer = trained(PrunedTrainer, tmp_path, model, data)
    assert other == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
    # The selection sees the cross entropy of each sample alone.
    tokens, labels = (torch.tensor(data[name]) for name in ("input_ids", "labels"))
    model.train()
    with torch.no_grad():
        logits = model(input_ids=tokens, output_router_logits=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.movedim(-1, 1), labels[:, 1:], reduction="none")
    losses = losses.sum(1) / (labels[:, 1:] != -100).sum(1)
    torch.testing.assert_close(trainer.pruner.gates.last_loss, losses)
    assert loss > losses.mean() + 0.1


def test_load_balancing_that_is_off_is_not_added(tmp_path: Path) -> None:
    data = rows()
    for settings in ({"output_router_logits": False}, {"router_aux_loss_coef": 0.0}):
        model = mixtral(**settings)
        _, loss, _ = trained(transformers.Trainer, tmp_path, model, data)
        assert trained(PrunedTrainer, tmp_path, model, data)[1] == pytest.approx(loss, rel=1e-5)


def test_load_balancing_is_averaged_over_a_group(tmp_path: Path) -> None:
    model, data = mixtral(), rows()
    half = {"per_device_train_batch_size": N // 2, "gradient_accumulation_steps": 2}
    _, loss, trainer = trained(PrunedTrainer, tmp_path, model, data, **half)
    assert trainer.state.global_step == 1
    model.train()
    order = Pruner(N, 0.5, 1, seed=trainer.args.seed).batches(N // 2)
    parts = [model(**{n: torch.tensor(data[n])[ids] for n in data.column_names}) for ids in order]
    assert loss == pytest.approx(sum(float(part.loss.detach()) for part in parts) / 2, rel=1e-5)


class PenaltyForCausalLM(transformers.LlamaForCausalLM):
    """A model that adds a penalty of its logits to its loss."""

    def forward(self, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        outputs = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        if outputs.loss is not None:
            outputs.loss = outputs.loss + 1e-3 * outputs.logits.logsumexp(-1).square().mean()
        return outputs


class PenaltyForSequenceClassification(transformers.BertForSequenceClassification):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        if outputs.loss is not None:
            outputs.loss = outputs.loss + self.classifier.weight.abs().mean()
        return outputs


def test_a_loss_of_ones_own_is_refused(tmp_path: Path) -> None:
    small = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    bart = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=16, dropout=0.0, encoder_layers=1, **small
    )
    for model, data in (
        (PenaltyForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS)), rows()),
        (transformers.BartForCausalLM(bart), rows()),  # its labels are not moved by one
        (
            PenaltyForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=3)),
            rows(torch.arange(N) % 3),
        ),
    ):
        message = rf"the loss of {type(model).__name__} to be .* Override pruned_loss"
        with pytest.raises(TypeError, match=message):
            trained(PrunedTrainer, tmp_path, model, data, remove_unused_columns=False)


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (lambda: bert(), torch.arange(N) % 3),
        (lambda: bert(num_labels=1), torch.rand(N)),
        (lambda: bert(problem_type="regression"), torch.rand(N, 3)),
        (lambda: bert(problem_type="multi_label_classification"), torch.arange(3 * N) % 2),
        (lambda: bert(), torch.rand(N, 3).round()),  # several labels, by their type alone
        (lambda: bert("TokenClassification"), torch.arange(N * LENGTH) % 3),
        (lambda: bert("MaskedLM"), torch.arange(N * LENGTH) % VOCABULARY),
        (llama, None),
    ],
)
def test_the_gradients_are_those_of_the_trainer(
    tmp_path: Path, make: Any, labels: Tensor | None
) -> None:
    model = make()
    if labels is not None and labels.ndim == 1 and len(labels) > N:
        labels = labels.view(N, -1)
    data = rows(labels)
    given = data
    if model.config.problem_type == "multi_label_classification":
        given = rows(labels.float()).remove_columns("input_ids")
        given = given.add_column("input_ids", data["input_ids"])  # the Trainer refuses integers
    expected, loss, _ = trained(transformers.Trainer, tmp_path, model, given)
    found, other, trainer = trained(PrunedTrainer, tmp_path, model, data)
    assert other == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
    assert trainer._loss_checked


def test_a_batch_without_labels_says_nothing_of_the_loss(tmp_path: Path) -> None:
    labels = torch.full((2 * N, LENGTH), -100)
    first = next(iter(Pruner(2 * N, 0.5, 1, seed=42).batches(N)))
    rest = torch.ones(2 * N, dtype=torch.bool).index_fill(0, first, False)
    tokens = torch.randint(1, VOCABULARY, (2 * N, LENGTH))
    labels[rest] = tokens[rest]
    data = datasets.Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    assert trained(PrunedTrainer, tmp_path, llama(), data)[2]._loss_checked
    model = PenaltyForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS))
    with pytest.raises(TypeError, match="the loss of PenaltyForCausalLM"):
        trained(PrunedTrainer, tmp_path, model, data, remove_unused_columns=False)


def test_a_loss_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compute_loss_func must be None.*Override pruned_loss"):
        PrunedTrainer(
            bert(),
            transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True),
            train_dataset=rows(torch.arange(N) % 3),
            compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.mean(),
        )
    trl = pytest.importorskip("trl", reason="needs trl")

    class PrunedSFT(PruningMixin, trl.SFTTrainer):
        pass

    arguments = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True, "bf16": False}
    with pytest.raises(ValueError, match=r"loss_type must be 'nll'.*found 'dft'"):
        PrunedSFT(
            llama(),
            trl.SFTConfig(**arguments, loss_type="dft"),
            train_dataset=rows(),
            processing_class=tokenizer(),
        )


def test_a_trainer_whose_loss_would_be_left_out_is_refused(tmp_path: Path) -> None:
    class Weighted(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    class Pruned(PruningMixin, Weighted):
        pass

    class Own(PruningMixin, Weighted):
        def pruned_loss(self, model: Any, inputs: dict[str, Any], ids: Tensor) -> Tensor:
            return 2 * super().pruned_loss(model, inputs, ids)

    data = rows(torch.arange(N) % 3)
    with pytest.raises(TypeError, match=r"found Weighted\.compute_loss, which would be left out"):
        trained(Pruned, tmp_path, bert(), data)
    trained(Own, tmp_path, bert(), data)
    with pytest.raises(TypeError, match="expected PruningMixin before the trainer"):

        class Late(transformers.Trainer, PruningMixin):
            pass


def test_a_batch_without_labels_is_refused(tmp_path: Path) -> None:
    data = rows(torch.arange(N) % 3).remove_columns("labels")
    with pytest.raises(ValueError, match="expected labels in each batch; found input_ids, att"):
        trained(PrunedTrainer, tmp_path, bert(), data)


def test_load_balancing_has_the_coefficient_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs trl")

    class PrunedSFT(PruningMixin, trl.SFTTrainer):
        pass

    start, data, losses = mixtral(), rows(), []
    for kind, coefficient in ((trl.SFTTrainer, 0.3), (PrunedSFT, 0.3), (PrunedSFT, 0.0)):
        trainer = kind(
            copy.deepcopy(start),
            trl.SFTConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=N,
                num_train_epochs=1,
                router_aux_loss_coef=coefficient,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=data,
            processing_class=tokenizer(),
        )
        losses.append(trainer.train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] < losses[1] - 0.1


def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i + 3 for i in range(40)} | {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def test_few_logits_are_compared() -> None:
    labels = torch.full((2, 100), -100)
    labels[0, 20:60] = labels[1, 30:40] = 1
    kept = model_losses.last_positions(labels)
    assert kept == 48  # positions 52 to 99; the last label is at 59
    assert (labels[:, -kept:] != -100).sum() == model_losses.COMPARED
    assert model_losses.last_positions(labels[:, :5]) == 5
    assert model_losses.last_positions(torch.ones(2, 3)) == 3
