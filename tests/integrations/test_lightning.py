"""The Lightning callback, in runs of Lightning's own Trainer."""

from __future__ import annotations

import math
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.training_data import blobs
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, random_split

lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")

from lightning.pytorch.callbacks import (  # noqa: E402
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

from adapruner import with_ids  # noqa: E402
from adapruner.errors import PruningWarning  # noqa: E402
from adapruner.integrations.lightning import AdaprunerCallback, pruner_of  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
N, BATCH, EPOCHS = 200, 16, 6


class Net(lightning.LightningModule):
    def __init__(self, plan: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Linear(5, 3)
        self.plan = plan
        self.read: list[list[int]] = []
        self.rates: list[float] = []
        self.validated: list[int] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y, ids = batch
        self.read.append(ids.tolist())
        return pruner_of(self).loss(self.net(x), y, ids)

    def validation_step(self, batch: Any, _: int) -> None:
        x, y = batch
        self.log("loss", nn.functional.cross_entropy(self.net(x), y))

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.current_epoch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        [pruning] = [c for c in self.trainer.callbacks if isinstance(c, AdaprunerCallback)]
        steps = pruning.planned_steps() if self.plan else self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader_of(samples: int, rare: bool = False, **arguments: Any) -> DataLoader[Any]:
    """A loader of blobs. Where ``rare``, two of the three classes have few samples."""
    x, y = blobs(samples)
    if rare:
        y = torch.where(torch.arange(samples) % 10 < 8, 0, y)
    return DataLoader(TensorDataset(x, y), BATCH, shuffle=True, **arguments)


def trainer_of(folder: Path, *callbacks: Any, **arguments: Any) -> Any:
    """A Trainer; the first callback prunes, and only others make checkpoints."""
    return lightning.Trainer(
        **{"max_epochs": EPOCHS, "logger": False, "accelerator": "cpu", "devices": 1} | arguments,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=len(callbacks) > 1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(
    folder: Path,
    *callbacks: Any,
    checkpoint: str | None = None,
    workers: int = 0,
    module: Net | None = None,
    keep_ratio: float = 0.5,
    rare: bool = False,
    **arguments: Any,
) -> tuple[Net, AdaprunerCallback, Any]:
    module, pruning = module or Net(), AdaprunerCallback(keep_ratio=keep_ratio)
    trainer = trainer_of(folder, pruning, *callbacks, **arguments)
    training = pruning.loader(loader_of(N, rare, num_workers=workers))
    trainer.fit(module, training, loader_of(40), ckpt_path=checkpoint)
    return module, pruning, trainer


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_reads_validates_and_steps_as_planned(
    tmp_path: Path, accumulate: int, precision: str
) -> None:
    net, pruning, trainer = fit(tmp_path, accumulate_grad_batches=accumulate, precision=precision)
    pruner = pruning.pruner
    reads = [entry["samples_read"] for entry in pruner.history]
    assert reads == pruner.planned_reads()
    assert reads[0] == N
    assert reads[-1] < 0.6 * N
    batches = [-(-count // BATCH) for count in reads]
    steps = sum(-(-count // accumulate) for count in batches)
    assert len(net.read) == sum(batches)
    assert len(net.rates) == trainer.global_step == pruning.planned_steps() == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert net.validated == list(range(EPOCHS))
    first = 0
    for count, read in zip(batches, reads, strict=True):  # no epoch reads a sample twice
        ids = [index for batch in net.read[first : first + count] for index in batch]
        assert len(set(ids)) == len(ids) == read
        first += count
    result = pruning.result()
    assert (len(result.indices), result.partial) == (N // 2, False)
    assert all("reads" not in name for name in pruner.warnings)


def resumed_runs(folder: Path, saver: Any, workers: int, **arguments: Any) -> int:
    """Compare runs that resume from each checkpoint with the whole run. Returns their number."""
    whole, expected, _ = fit(folder, saver, **arguments)
    parameters = [p.clone() for p in whole.parameters()]
    checkpoints = sorted(Path(saver.dirpath).glob("*.ckpt"))
    for path in checkpoints:
        net, pruning, _ = fit(folder, checkpoint=str(path), workers=workers, **arguments)
        if net.read:
            assert net.read == whole.read[-len(net.read) :]
        assert torch.equal(pruning.result().gate_logits, expected.result().gate_logits)
        assert torch.equal(pruning.result().indices, expected.result().indices)
        reads = [entry["samples_read"] for entry in pruning.pruner.history]
        assert reads == [entry["samples_read"] for entry in expected.pruner.history]
        assert all(map(torch.equal, net.parameters(), parameters))
    return len(checkpoints)


@pytest.mark.parametrize(("every", "workers"), [(13, 0), (17, 1)])  # 13 is the end of an epoch
def test_a_checkpoint_of_a_step_is_gone_on_from(tmp_path: Path, every: int, workers: int) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=every, save_top_k=-1)
    assert resumed_runs(tmp_path, saver, workers) >= 3


def test_a_checkpoint_of_an_epoch_is_gone_on_from(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", monitor="loss", save_top_k=-1, filename="{epoch}")
    assert resumed_runs(tmp_path, saver, 0, max_epochs=4) == 4


@pytest.mark.parametrize(
    ("saves", "arguments"),
    [
        ({"save_on_train_epoch_end": False}, {}),
        ({}, {"check_val_every_n_epoch": 2}),
        ({}, {"val_check_interval": 0.5}),
        ({"monitor": None, "every_n_train_steps": 1}, {}),
    ],
)
def test_a_checkpoint_of_a_validation_is_gone_on_from(
    tmp_path: Path, saves: dict[str, Any], arguments: dict[str, Any]
) -> None:
    # Epochs get shorter, and rare classes have floors, which the last selection needs.
    arguments = arguments | {"keep_ratio": 0.2, "rare": True}
    settings = {"monitor": "loss", "save_top_k": -1} | saves
    saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}-{step}", **settings)
    assert resumed_runs(tmp_path, saver, 0, **arguments) >= 3


def test_early_stopping_gives_a_partial_result(tmp_path: Path) -> None:
    stop = EarlyStopping("loss", patience=0, min_delta=10.0, check_on_train_epoch_end=False)
    net, pruning, _ = fit(tmp_path, stop, max_epochs=12)
    assert len(net.validated) == 2
    assert pruning.pruner.epoch == 2
    result = pruning.result()
    assert result.partial
    assert len(result.indices) == N // 2


def test_max_steps_ends_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    _, pruning, trainer = fit(tmp_path, max_epochs=12, max_steps=30)
    assert trainer.global_step == pruning.planned_steps() == 30
    result = pruning.result()
    assert result.partial
    assert result.saved["samples_read"] == 2 * N + 4 * BATCH  # 13 batches an epoch
    assert len(result.indices) == N // 2


def test_fewer_batches_than_planned_are_warned_of(tmp_path: Path) -> None:
    _, pruning, trainer = fit(tmp_path, limit_train_batches=5)
    assert trainer.global_step == pruning.planned_steps() == 5 * EPOCHS
    assert "found 120 of them without a loss" in pruning.pruner.warnings["reads"]
    assert len(pruning.result().indices) == N // 2


def test_fast_dev_run_runs(tmp_path: Path) -> None:
    _, pruning, _ = fit(tmp_path, fast_dev_run=True)
    assert pruning.pruner.epochs == 1
    assert len(pruning.result().indices) == N // 2


def test_a_schedule_of_too_many_steps_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"CosineAnnealingLR is planned for 78 steps, and"):
        fit(tmp_path, module=Net(plan=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="CosineAnnealingLR is planned")
        fit(tmp_path, max_epochs=2)


def test_a_hook_can_return_the_loader(tmp_path: Path) -> None:
    pruning = AdaprunerCallback(keep_ratio=0.5)

    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> Any:
            return pruning.loader(loader_of(N))

    trainer = lightning.Trainer(
        max_epochs=4,
        logger=False,
        accelerator="cpu",
        callbacks=[pruning],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), datamodule=Data())
    pruner = pruning.pruner
    assert [entry["samples_read"] for entry in pruner.history] == pruner.planned_reads()
    assert len(pruning.result().indices) == N // 2


def test_validations_that_an_epoch_is_too_short_for_are_refused_at_once(tmp_path: Path) -> None:
    shortest = -(-N // 2 // BATCH)  # and a few batches of explored samples
    wrong = shortest + 3
    with pytest.raises(ValueError, match=rf"val_check_interval must be .*; found {wrong}\. Pass"):
        fit(tmp_path, val_check_interval=wrong)
    module, _, _ = fit(tmp_path, val_check_interval=shortest, max_epochs=3)
    assert len(module.validated) >= 3
    fit(tmp_path, val_check_interval=N, check_val_every_n_epoch=None, max_epochs=3)


class Observes(Net):
    def validation_step(self, batch: Any, _: int) -> None:
        x, y, ids = batch
        losses = nn.functional.cross_entropy(self.net(x), y, reduction="none")
        pruner_of(self).observe(losses, ids)


@pytest.mark.parametrize("checks", [0, 2])
def test_a_validation_may_observe_held_out_samples(tmp_path: Path, checks: int) -> None:
    """Those of the sanity check before the run do not count."""
    held_out = list(range(0, N, 5))
    pruning = AdaprunerCallback(keep_ratio=0.5, held_out=held_out)
    trainer = trainer_of(tmp_path, pruning, num_sanity_val_steps=checks)
    training = loader_of(N)
    held = DataLoader(Subset(with_ids(training.dataset), held_out), BATCH)
    trainer.fit(module := Observes(), pruning.loader(training), held)
    result = pruning.result()
    assert [entry["samples_evaluated"] for entry in result.history] == [len(held_out)] * EPOCHS
    assert result.visits is not None
    assert (result.visits[held_out] == EPOCHS).all()
    assert not any("losses of" in text for text in result.warnings)
    assert not {i for ids in module.read for i in ids} & set(held_out)


def test_a_split_that_is_made_anew_in_each_epoch_is_warned_of(tmp_path: Path) -> None:
    class Splits(Net):
        def train_dataloader(self) -> Any:
            part, _ = random_split(data, [N - 20, 20])
            return pruning.loader(DataLoader(part, BATCH, shuffle=True))

    data = loader_of(N).dataset
    pruning = AdaprunerCallback(keep_ratio=0.5)
    with pytest.warns(PruningWarning, match="a later loader of this pruner has another dataset"):
        trainer_of(tmp_path, pruning, max_epochs=3).fit(Splits())
    module = Splits()
    part, _ = random_split(data, [N - 20, 20])
    module.train_dataloader = lambda: pruning.loader(DataLoader(part, BATCH))  # type: ignore
    pruning = AdaprunerCallback(keep_ratio=0.5)
    trainer_of(tmp_path, pruning, max_epochs=3).fit(module)
    assert not any("later loader" in text for text in pruning.result().warnings)


def test_a_second_run_needs_a_callback_of_its_own(tmp_path: Path) -> None:
    for steps in (5, -1):  # in the middle of the first epoch, and at the end of the run
        net, pruning, trainer = fit(tmp_path, max_steps=steps)
        read = len(net.read)
        loader = pruning.loader(loader_of(N))
        trainer.fit(net, loader)  # the trainer has ended, so nothing happens
        assert len(net.read) == read
        other = lightning.Trainer(
            max_epochs=EPOCHS,
            logger=False,
            accelerator="cpu",
            callbacks=[pruning],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with pytest.raises(RuntimeError, match="A second run needs a callback of its own"):
            other.fit(Net(), loader)


def test_a_run_that_was_stopped_goes_on_in_its_trainer(tmp_path: Path) -> None:
    stop = EarlyStopping("loss", patience=0, min_delta=10.0, check_on_train_epoch_end=False)
    net, pruning, trainer = fit(tmp_path, stop)
    first = len(net.read)
    trainer.callbacks.remove(stop)
    trainer.fit(net, pruning.loader(loader_of(N)), loader_of(40))
    reads = [entry["samples_read"] for entry in pruning.pruner.history]
    assert reads == pruning.pruner.planned_reads()
    assert sum(map(len, net.read)) == sum(reads)
    assert len(net.read) > first
    result = pruning.result()
    assert (len(result.indices), result.partial) == (N // 2, False)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    def trainer(**arguments: Any) -> Any:
        return lightning.Trainer(
            logger=False, accelerator="cpu", enable_checkpointing=False, **arguments
        )

    pruning = AdaprunerCallback()
    with pytest.raises(TypeError, match="must be a torch DataLoader; found list"):
        pruning.loader([1, 2])
    with pytest.raises(RuntimeError, match="the pruner is made when the run begins"):
        pruning.result()
    with pytest.raises(ValueError, match="max_epochs must be at least 1"):
        trainer(max_steps=3, max_epochs=-1, callbacks=[pruning]).fit(Net(), loader_of(N))
    with pytest.raises(ValueError, match="overfit_batches must be 0"):
        trainer(max_epochs=3, overfit_batches=2, callbacks=[pruning]).fit(Net(), loader_of(N))
    for module in (Net(), Net(plan=False)):
        with pytest.raises(RuntimeError, match=r"must be that of AdaprunerCallback\.loader"):
            trainer(max_epochs=3, callbacks=[AdaprunerCallback()]).fit(module, loader_of(N))
    with pytest.raises(RuntimeError, match="expected an AdaprunerCallback among the callbacks"):
        pruner_of(SimpleNamespace(trainer=SimpleNamespace(callbacks=[])))


@pytest.mark.parametrize("plan", [True, False])
def test_averaged_weights_do_not_lengthen_the_run(tmp_path: Path, plan: bool) -> None:
    class Normalised(Net):
        def __init__(self) -> None:
            super().__init__(plan)
            self.net = nn.Sequential(nn.BatchNorm1d(5), self.net)

    averaging = StochasticWeightAveraging(1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, pruning, _ = fit(tmp_path, averaging, module=Normalised())
    assert pruning.pruner.epochs == len(pruning.pruner.history) == EPOCHS
    result = pruning.result()
    assert (len(result.indices), result.partial) == (N // 2, False)


def test_steps_are_planned_for_an_accumulation_that_changes(tmp_path: Path) -> None:
    schedule = GradientAccumulationScheduler({0: 1, 2: 3, 4: 2})
    net, pruning, trainer = fit(tmp_path, schedule)
    assert pruning.planned_steps() == trainer.global_step == len(net.rates)
    reads = [entry["samples_read"] for entry in pruning.pruner.history]
    groups = [1, 1, 3, 3, 2, 2]
    batches = [math.ceil(count / BATCH) for count in reads]
    steps = [math.ceil(n / group) for n, group in zip(batches, groups, strict=True)]
    assert trainer.global_step == sum(steps)


def test_a_loader_beside_a_longer_one_begins_again(tmp_path: Path) -> None:
    class Two(Net):
        def training_step(self, batch: Any, _: int) -> Tensor:
            self.longer = [*getattr(self, "longer", []), len(batch["b"][0])]
            return super().training_step(batch["a"], _)

    net, pruning = Two(False), AdaprunerCallback(keep_ratio=0.5)
    trainer = trainer_of(tmp_path, pruning, max_epochs=2)
    loaders = {"a": pruning.loader(loader_of(64)), "b": loader_of(7 * BATCH)}
    with pytest.warns(PruningWarning, match="losses"):  # of samples that are read twice
        trainer.fit(net, loaders)
    assert net.longer == [BATCH] * 14
    assert [len(ids) for ids in net.read[:7]] == [BATCH] * 7
    assert net.read[4:7] == net.read[:3]
    assert sorted(chain.from_iterable(net.read[:4])) == list(range(64))


def test_a_loader_beside_a_stream_begins_again_at_its_start(tmp_path: Path) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter(torch.zeros(7 * BATCH, 2))

    class Two(Net):
        def training_step(self, batch: Any, _: int) -> Tensor:
            return super().training_step(batch["a"], _)

    net, pruning = Two(False), AdaprunerCallback(keep_ratio=0.5)
    trainer = trainer_of(tmp_path, pruning, max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples that are read twice
        trainer.fit(net, {"a": pruning.loader(loader_of(64)), "b": DataLoader(Stream(), BATCH)})
    assert len(net.read) == 7
    assert net.read[4:] == net.read[:3]
