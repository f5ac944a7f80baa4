"""Lightning: digits with wrong labels, pruned while a LightningModule trains.

15 % of the labels of scikit-learn's digits are made wrong. The learning rate follows the planned
steps, and every epoch is validated.
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adapruner.integrations.lightning import AdaprunerCallback, pruner_of


def digits(wrong: float = 0.15):
    """Training and validation sets, and which training labels are wrong."""
    held = load_digits()
    x = torch.from_numpy(held.images).float().flatten(1) / 16
    y = torch.from_numpy(held.target)
    generator = torch.Generator().manual_seed(0)
    is_wrong = torch.rand(1300, generator=generator) < wrong
    labels = torch.where(is_wrong, (y[:1300] + 1) % 10, y[:1300])
    return TensorDataset(x[:1300], labels), TensorDataset(x[1300:], y[1300:]), is_wrong


class Net(LightningModule):
    def __init__(self, pruning: AdaprunerCallback) -> None:
        super().__init__()
        self.pruning = pruning
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, _):
        x, y, ids = batch
        return pruner_of(self).loss(self.layers(x), y, ids)

    def validation_step(self, batch, _):
        x, y = batch
        right = (self.layers(x).argmax(1) == y).float().mean()
        self.log("accuracy", right, prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        steps = self.pruning.planned_steps()  # not trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def run(epochs: int = 20, **arguments):
    """The result, the validation accuracy, and which training labels are wrong."""
    seed_everything(0, verbose=False)
    training, validation, is_wrong = digits()
    pruning = AdaprunerCallback(keep_ratio=0.7)
    trainer = Trainer(max_epochs=epochs, callbacks=[pruning], logger=False, **arguments)
    loader = pruning.loader(DataLoader(training, batch_size=64, shuffle=True))
    trainer.fit(Net(pruning), loader, DataLoader(validation, batch_size=512))
    return pruning.result(), float(trainer.callback_metrics["accuracy"]), is_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    torch.set_num_threads(1)  # the network is too small for more threads to help
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    result, accuracy, is_wrong = run(epochs, accelerator="cpu", enable_checkpointing=False)
    print(f"kept {len(result.indices)} of {result.num_samples}, accuracy {accuracy:.1%}")
    before, after = is_wrong.float().mean(), is_wrong[result.indices].float().mean()
    print(f"wrong labels: {before:.1%} of the training set, {after:.1%} of the kept set")


if __name__ == "__main__":
    main()
