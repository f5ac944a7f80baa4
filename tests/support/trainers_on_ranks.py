"""Short runs of trainers of other libraries, on one rank or on two. Each rank writes what it did.

The global batch is the same on any number of ranks. ``python trainers_on_ranks.py KIND FOLDER``
runs one; Lightning starts its second process itself.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from adapruner import Pruner, PruneResult

N, GLOBAL_BATCH, GROUP, EPOCHS = 90, 8, 2, 12
Outcome = dict[str, Any]


def points() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.arange(N) % 3)


def layer() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(5, 3).double()


def outcome(result: PruneResult, read: list[list[int]], steps: int) -> Outcome:
    kept, reads = result.indices.tolist(), [entry["samples_read"] for entry in result.history]
    return {"kept": kept, "reads": reads, "batches": read, "steps": steps}


def run_accelerate(ranks: int, folder: Path) -> Outcome:
    from accelerate import Accelerator

    from adapruner.integrations.accelerate import prepare_loader

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=GROUP)
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    pruner = Pruner(N, 0.5, EPOCHS)
    loader = prepare_loader(accelerator, DataLoader(points(), GLOBAL_BATCH // ranks), pruner)
    read, gathered, steps = [], [], 0
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for x, y, ids in loader:
            with accelerator.accumulate(model):
                accelerator.backward(pruner.loss(model(x), y, ids))
                optimizer.step()
                optimizer.zero_grad()
            read.append(ids.tolist())
            of_all = accelerator.gather_for_metrics(ids, use_gather_object=True)
            gathered.append([int(index) for index in of_all])
            steps += accelerator.sync_gradients
        pruner.step()
    return outcome(pruner.result(), read, steps) | {"gathered": gathered}


def run_trainer(ranks: int, folder: Path) -> Outcome:
    import transformers
    from datasets import Dataset

    from adapruner.integrations.hugging_face import PrunedTrainer

    read: list[list[int]] = []

    class Watched(PrunedTrainer):
        def pruned_loss(self, model: Any, inputs: dict[str, Any], ids: torch.Tensor) -> Any:
            read.append(ids.tolist())
            return super().pruned_loss(model, inputs, ids)

    torch.manual_seed(0)
    tokens = torch.randint(1, 50, (N, 8))
    rows = {"input_ids": tokens.tolist(), "labels": tokens.tolist()}
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, max_position_embeddings=32)
    trainer = Watched(
        transformers.LlamaForCausalLM(config).double(),
        transformers.TrainingArguments(
            str(folder / "trainer"),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=GLOBAL_BATCH // ranks,
            gradient_accumulation_steps=GROUP,
            save_strategy="steps",  # the ranks meet to save
            save_steps=40,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(rows),
        keep_ratio=0.5,
    )
    steps = trainer.train().global_step
    return outcome(trainer.pruned_result(), read, steps)


def run_lightning(ranks: int, folder: Path) -> Outcome:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from adapruner.integrations.lightning import AdaprunerCallback, pruner_of

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()
            self.read: list[list[int]] = []

        def training_step(self, batch: Any, _: int) -> Any:
            x, y, ids = batch
            self.read.append(ids.tolist())
            return pruner_of(self).loss(self.layer(x), y, ids)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    pruning, net = AdaprunerCallback(keep_ratio=0.5), Net()
    saver = ModelCheckpoint(folder / "lightning", every_n_train_steps=40)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=GROUP,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        accelerator="cpu",
        precision="64-true",
        callbacks=[pruning, saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, pruning.loader(DataLoader(points(), GLOBAL_BATCH // ranks)))
    return outcome(pruning.result(), net.read, trainer.global_step)


RUNS = {"accelerate": run_accelerate, "trainer": run_trainer, "lightning": run_lightning}


def main() -> None:
    kinds, folder = sys.argv[1].split(","), Path(sys.argv[2])
    found = {kind: RUNS[kind](2, folder) for kind in kinds}
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"{'-'.join(kinds)}-{rank}.json").write_text(json.dumps(found))
    # A group that ends with its process may abort it: its threads are still running.
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
