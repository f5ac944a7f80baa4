"""Accelerate's own loops over a pruned loader: steps, accumulation and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_data import blobs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerate = pytest.importorskip("accelerate", reason="needs accelerate")

from adapruner import PrunedBatchSampler, Pruner  # noqa: E402
from adapruner.integrations.accelerate import prepare_loader  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded")
N, BATCH, GROUP, EPOCHS = 200, 16, 4, 12


class Run:
    """A loop as Accelerate's documentation has it, which can stop and resume."""

    def __init__(self, workers: int = 0) -> None:
        torch.manual_seed(0)
        self.accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=GROUP, step_scheduler_with_optimizer=False
        )
        model = nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.data = DataLoader(TensorDataset(*blobs(N)), BATCH, shuffle=True, num_workers=workers)
        self.pruner = Pruner(N, keep_ratio=0.5, epochs=EPOCHS)
        self.read: list[list[int]] = []
        self.steps: list[int] = []  # batches of each optimiser step
        self.waiting = 0

    def train(self, skip: int = 0, stop: tuple[int, int] | None = None) -> int:
        """Train to the end, or to a batch of an epoch. Returns the batches of the last epoch."""
        loader = prepare_loader(self.accelerator, self.data, self.pruner)
        while not self.pruner.finished:
            epoch = self.pruner.epoch
            loader.set_epoch(epoch)
            batches = accelerate.skip_first_batches(loader, skip) if skip else loader
            for place, (x, y, ids) in enumerate(batches):
                if stop == (epoch, place + skip):
                    return place + skip
                with self.accelerator.accumulate(self.model):
                    loss = self.pruner.loss(self.model(x), y, ids)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                self.read.append(ids.tolist())
                self.waiting += 1
                if self.accelerator.sync_gradients:
                    self.steps.append(self.waiting)
                    self.waiting = 0
            self.pruner.step()
            skip = 0
        return 0


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_ends_with_a_step(workers: int) -> None:
    run = Run(workers)
    run.train()
    reads = [entry["samples_read"] for entry in run.pruner.history]
    assert reads == run.pruner.planned_reads()
    expected: list[int] = []
    for read in reads:
        batches = -(-read // BATCH)
        whole, rest = divmod(batches, GROUP)
        expected += [GROUP] * whole + [rest] * (rest > 0)
    assert run.steps == expected
    assert len(expected) == PrunedBatchSampler(run.pruner, BATCH).planned_batches(GROUP)
    assert len(run.pruner.result().indices) == N // 2
    assert run.pruner.result().warnings == []


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    whole = Run()
    whole.train()
    stopped = Run()
    place = stopped.train(stop=(4, GROUP))  # no gradients wait
    state: dict[str, Any] = {
        "pruner": stopped.pruner.state_dict(),
        "model": stopped.model.state_dict(),
        "place": place,
    }
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = Run()
    again.pruner.load_state_dict(state["pruner"])
    again.model.load_state_dict(state["model"])
    again.train(skip=state["place"])
    assert stopped.read + again.read == whole.read
    assert torch.equal(again.pruner.result().gate_logits, whole.pruner.result().gate_logits)
    assert all(map(torch.equal, again.model.parameters(), whole.model.parameters()))


def test_batches_that_processes_split_are_refused() -> None:
    run = Run()
    splitting = accelerate.Accelerator(
        cpu=True, dataloader_config=accelerate.DataLoaderConfiguration(split_batches=True)
    )
    with pytest.raises(ValueError, match="split_batches must be off"):
        prepare_loader(splitting, run.data, run.pruner)


def test_a_forgotten_step_and_a_late_state_are_refused() -> None:
    run = Run()
    loader = prepare_loader(run.accelerator, run.data, run.pruner)
    list(loader)
    with pytest.raises(ValueError, match=r"epoch of the pruner, 0; found 1\. Call pruner\.step"):
        list(loader)
    later = Run()
    later.train(stop=(3, 0))
    loader = prepare_loader(run.accelerator, run.data, run.pruner)
    run.pruner.load_state_dict(later.pruner.state_dict())
    with pytest.raises(ValueError, match=r"load the pruner's state before the loader is prepared"):
        list(loader)


def test_evaluation_and_gathering_in_the_middle_of_an_epoch() -> None:
    run = Run()
    accelerator, pruner = run.accelerator, run.pruner
    loader = prepare_loader(accelerator, run.data, pruner)
    held_out = accelerator.prepare(DataLoader(TensorDataset(*blobs(41)), BATCH))
    while not pruner.finished:
        gathered, steps = [], 0
        for place, (x, y, ids) in enumerate(loader):
            with accelerator.accumulate(run.model):
                accelerator.backward(pruner.loss(run.model(x), y, ids))
                run.optimizer.step()
                run.optimizer.zero_grad()
            steps += accelerator.sync_gradients
            gathered += accelerator.gather_for_metrics(ids).tolist()
            if place == GROUP:
                seen = [accelerator.gather_for_metrics(y) for _, y in held_out]
                assert sum(map(len, seen)) == 41
        expected = [index for ids in pruner.batches(BATCH) for index in ids.tolist()]
        assert gathered == expected  # the last batch too
        assert steps == -(-len(loader) // GROUP)
        pruner.step()
    assert len(pruner.result().indices) == N // 2
