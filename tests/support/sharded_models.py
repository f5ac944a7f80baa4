"""Runs of the Trainer on two ranks that share a model. Each rank writes what it did.

``python sharded_models.py KIND,KIND FOLDER`` runs some kinds, one after the other. A kind is a way
to share a model, with "-tied" for a model whose head is its embedding:

- "ddp";
- "fsdp1" and "fsdp2", by Accelerate;
- "loaded": by FSDP2 when transformers loads the model. The head stays whole after its forward;
- "freed": the same, and the head is sharded again after its forward;
- "zero1", "zero2" and "zero3", by DeepSpeed.

"tensor" reads batches for tensor parallelism, where the ranks read the same samples.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from datasets import Dataset
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader, TensorDataset

from adapruner import Pruner
from adapruner._util.tensors import whole
from adapruner.integrations.accelerate import prepare_loader
from adapruner.integrations.hugging_face import PrunedTrainer

N, BATCH, GROUP, EPOCHS, VOCABULARY, LENGTH, RATE = 22, 4, 2, 3, 50, 8, 0.5


def model_of(kind: str) -> Any:
    """A model of two layers, with the same weights in each process."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        max_position_embeddings=32,
        tie_word_embeddings=kind.endswith("-tied"),
        **heads,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)


def loaded_model(kind: str, folder: Path) -> Any:
    """The model, sharded when it is loaded. The test has saved it."""
    from transformers.distributed import DistributedConfig

    plan = {"lm_head": "free_full_weight"} if kind.startswith("freed") else None
    config = DistributedConfig(fsdp_size=2, fsdp_plan=plan)
    saved = folder / f"{kind}-start"
    return transformers.LlamaForCausalLM.from_pretrained(saved, distributed_config=config)


def rows() -> tuple[Tensor, Tensor]:
    """Tokens and labels. The first labels of a row are left out, as many as the row says."""
    tokens = torch.randint(1, VOCABULARY, (N, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    for row in range(N):
        labels[row, : 1 + row % 5] = -100
    return tokens, labels


class Watched(PrunedTrainer):
    """Notes the ids and the loss of each batch."""

    def __init__(self, kind: str, *args: Any, **kwargs: Any) -> None:
        self.kind = kind
        self.read: list[list[int]] = []
        self.losses: list[float] = []
        super().__init__(*args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate shards models on GPUs alone. Here it is told to do so on the CPU too."""
        super().create_accelerator_and_postprocess()
        if not self.kind.startswith("fsdp"):
            return
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        state = self.accelerator.state
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        state.device = torch.device("cpu")  # FSDP does not take "cpu:0"
        self.is_fsdp_enabled = True

    def pruned_loss(self, model: Any, inputs: dict[str, Any], ids: Tensor) -> Tensor:
        self.read.append(ids.tolist())
        loss = super().pruned_loss(model, inputs, ids)
        self.losses.append(float(loss.detach()))
        return loss


def options_of(kind: str) -> dict[str, Any]:
    """The arguments of the Trainer that share a model."""
    way = kind.removesuffix("-tied")
    if way in ("fsdp1", "fsdp2"):
        config = {"version": int(way[-1]), "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
        config["sync_module_states"] = False
        return {"fsdp": True, "fsdp_config": config}
    if way.startswith("zero"):
        config = {
            "zero_optimization": {"stage": int(way[-1])},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        }
        return {"deepspeed": config}
    return {}


def weights_of(kind: str, trainer: Any) -> dict[str, Tensor]:
    """The whole weights of a trained model. All ranks call this."""
    model = trainer.model_wrapped
    with contextlib.ExitStack() as stack:
        if kind.startswith("fsdp1"):
            from torch.distributed.fsdp import FullyShardedDataParallel

            stack.enter_context(FullyShardedDataParallel.summon_full_params(model))
        elif kind.startswith("zero3"):
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(list(model.parameters())))
        named = trainer.accelerator.unwrap_model(model).named_parameters()
        return {
            name.replace("_fsdp_wrapped_module.", ""): whole(value.detach()).clone()
            for name, value in named
        }


def refusal(trainer: Any) -> str:
    """The error for the weight of a head that DeepSpeed shards."""
    head = trainer.model.get_output_embeddings()
    try:
        trainer.pruner.linear_loss(
            torch.zeros(1, head.in_features), head.weight, torch.tensor([0]), torch.tensor([0])
        )
    except TypeError as error:
        return str(error)
    return ""


def run(kind: str, folder: Path) -> dict[str, Any]:
    tokens, labels = rows()
    loaded = kind.startswith(("loaded", "freed"))
    model = loaded_model(kind, folder) if loaded else model_of(kind)
    trainer = Watched(
        kind,
        model,
        transformers.TrainingArguments(
            str(folder / kind),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH // 2,
            gradient_accumulation_steps=GROUP,
            optim="sgd",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options_of(kind),
        ),
        train_dataset=Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()}),
        keep_ratio=0.5,
        pruner_options={"warmup_epochs": 0},
    )
    trainer.train()
    return {
        "refused": refusal(trainer) if kind.startswith("zero3") else "",
        "read": trainer.read,
        "losses": trainer.losses,
        "weights": weights_of(kind, trainer),
        "batches": [-(-entry["samples_read"] // BATCH) for entry in trainer.pruner.history],
        "kept": trainer.pruned_result().indices.tolist(),
        "fused": trainer._fused_head is not None,
        "model": type(trainer.model_wrapped).__name__,
    }


def run_tensor_parallel() -> dict[str, Any]:
    """The error for a pruner of both ranks, and the samples that a pruner of each rank reads."""
    accelerator = accelerate.Accelerator(cpu=True)
    # Accelerate takes it on GPUs alone.
    accelerator.state.parallelism_config = accelerate.ParallelismConfig(tp_size=2)
    loader = DataLoader(TensorDataset(torch.arange(N)), BATCH)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    error = ""
    try:
        prepare_loader(accelerator, loader, Pruner(N))
    except ValueError as caught:
        error = str(caught)
    pruner = Pruner(N, process_group=mesh.get_group("data"))
    read = [ids.tolist() for _, ids in prepare_loader(accelerator, loader, pruner)]
    return {"error": error, "read": read}


def main() -> None:
    kinds, folder = sys.argv[1].split(","), Path(sys.argv[2])
    found = {
        kind: run_tensor_parallel() if kind == "tensor" else run(kind, folder) for kind in kinds
    }
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
