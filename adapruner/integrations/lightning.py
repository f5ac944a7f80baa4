"""Pruning in Lightning: a callback that reloads, steps, saves and resumes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from adapruner._util.extras import require
from adapruner.data.loaders.user_loader import batches_of, pruned_loader
from adapruner.pruning.pruner import Pruner
from adapruner.pruning.sampler import PrunedBatchSampler
from adapruner.results.result import PruneResult

lightning: Any = require("lightning.pytorch", extra="lightning")


class AdaprunerCallback(lightning.Callback):
    """Prunes the training set of a Lightning run while it trains.

    Three lines change in a user's code: the callback joins the trainer, :meth:`loader` wraps the
    training loader, and the training step takes its loss from :func:`pruner_of`.

    The callback makes the trainer reload its loaders every epoch, because the number of batches
    falls. It steps the pruner at the end of each epoch. Its state is part of Lightning's
    checkpoints, and a run resumes in the middle of an epoch. An epoch that the trainer ends early,
    by early stopping or ``max_steps``, is not stepped: :meth:`result` is then partial. The last
    epoch of ``StochasticWeightAveraging``, which only reads, does not count.

    Args:
        keep_ratio: share of the training set to keep.
        pruner_options: further arguments of :class:`adapruner.Pruner`, by name. ``epochs`` is the
            ``max_epochs`` of the trainer.

    Example:
        >>> from lightning.pytorch import LightningModule, Trainer  # doctest: +SKIP
        >>> class Net(LightningModule):  # doctest: +SKIP
        ...     def training_step(self, batch, _):
        ...         x, y, ids = batch
        ...         return pruner_of(self).loss(self(x), y, ids)
        >>> pruning = AdaprunerCallback(keep_ratio=0.7)  # doctest: +SKIP
        >>> trainer = Trainer(max_epochs=20, callbacks=[pruning])  # doctest: +SKIP
        >>> trainer.fit(Net(), pruning.loader(train_loader), val_loader)  # doctest: +SKIP
        >>> kept = pruning.result().indices  # doctest: +SKIP
    """

    def __init__(self, keep_ratio: float = 0.7, **pruner_options: Any) -> None:
        self._options = {"keep_ratio": keep_ratio, **pruner_options}
        self._pruner: Pruner | None = None
        self._trainer: Any = None
        self._epochs = 0
        self._loaded: dict[str, Any] | None = None
        self._sampler: PrunedBatchSampler | None = None
        self.trained_batches = 0  # of the current epoch
        self._before_sanity_check: dict[str, Any] = {}
        self._restored_whole = False  # from a checkpoint after an epoch's last batch

    @property
    def pruner(self) -> Pruner:
        """The pruner of the run.

        Raises:
            RuntimeError: the run has not begun.
        """
        if self._pruner is None:
            raise RuntimeError(
                "the pruner is made when the run begins; found no run. Pass callback.loader(...) "
                "to trainer.fit, or return it from train_dataloader"
            )
        return self._pruner

    def loader(self, loader: DataLoader[Any]) -> _TrainingLoader:
        """``loader`` with the samples of the pruner's epoch, with ids, for ``trainer.fit``.

        A batch is that of ``loader`` with the ids as one more element; see
        :func:`adapruner.pruned_loader`. The hook ``train_dataloader`` can return it too.
        """
        return _TrainingLoader(self, loader)

    def planned_steps(self) -> int:
        """Planned optimiser steps of the run, for a schedule in ``configure_optimizers``.

        Use it in place of ``trainer.estimated_stepping_batches``, which counts every epoch as long
        as the first. It takes ``accumulate_grad_batches``, a ``GradientAccumulationScheduler``,
        ``limit_train_batches`` and ``max_steps`` into account. If a limit leaves out batches,
        pruning waits until every sample was read once, so the run may take more steps.

        Raises:
            RuntimeError: the run has not begun, or its training loader is not of :meth:`loader`.
        """
        if self._trainer is None:
            raise RuntimeError("steps are planned when the run begins; found no run")
        trainer = self._trainer
        _ = trainer.estimated_stepping_batches  # loads the training loader
        limit = trainer.limit_train_batches
        lengths = [
            int(length * limit) if isinstance(limit, float) else min(length, limit)
            for length in self._batch_sampler().planned_lengths()
        ]
        group = _accumulation(trainer)
        steps = sum(-(-length // group(epoch)) for epoch, length in enumerate(lengths))
        return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)

    def result(self) -> PruneResult:
        """The result of the run; see :meth:`adapruner.Pruner.result`."""
        return self.pruner.result()

    def _make_loader(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The pruned form of a loader. The first one makes the pruner."""
        if self._trainer is None:
            raise RuntimeError("the loader reads when trainer.fit runs; found no run")
        if self._pruner is None:
            samples = len(loader.dataset)  # type: ignore[arg-type]
            device = self._trainer.strategy.root_device
            pruner = Pruner(samples, epochs=self._epochs, **{"device": device, **self._options})
            _check_ranks(self._trainer.strategy, pruner)
            self._pruner = pruner
            if self._loaded is not None:
                self._restore(self._pruner, self._loaded)
        pruned = pruned_loader(loader, self._pruner)
        batch_sampler: Any = pruned.batch_sampler
        self._sampler = batch_sampler
        return pruned

    def _batch_sampler(self) -> PrunedBatchSampler:
        if self._sampler is None:
            raise RuntimeError(
                "the training loader must be that of AdaprunerCallback.loader; found another one. "
                "Pass callback.loader(loader) to trainer.fit, or return it from train_dataloader"
            )
        return self._sampler

    # --- hooks of Lightning

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise ValueError(
                f"max_epochs must be at least 1, the epochs of the run; found {trainer.max_epochs}"
            )
        if trainer.overfit_batches:
            raise ValueError(
                "overfit_batches must be 0, since it replaces the samples of the run; found "
                f"{trainer.overfit_batches}"
            )
        if self._pruner is not None and self._pruner.epochs != trainer.max_epochs:
            raise ValueError(
                f"max_epochs must stay that of the run, {self._pruner.epochs}; found "
                f"{trainer.max_epochs}. A second run needs a callback of its own"
            )
        # Noted now: StochasticWeightAveraging adds an epoch without steps later.
        self._trainer, self._epochs = trainer, trainer.max_epochs
        trainer.reload_dataloaders_every_n_epochs = 1

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the pruner, which a validation step may use, before the first validation."""
        _ = trainer.estimated_stepping_batches  # loads the training loader
        if self._pruner is not None:
            self._before_sanity_check = self._pruner.state_dict()

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Forget what the pruner has observed since."""
        if self._pruner is not None:
            self._pruner.load_state_dict(self._before_sanity_check)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        _check_validations(trainer, min(self._batch_sampler().planned_lengths()))
        if trainer.global_step == 0 and (self.pruner.epoch or self.trained_batches):
            raise RuntimeError(
                "a run starts with samples that were not pruned yet; found a callback that has "
                f"trained {self.pruner.epoch} epochs. A second run needs a callback of its own, or "
                "a checkpoint to resume from"
            )
        planned, estimated = self.planned_steps(), trainer.estimated_stepping_batches
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            total = getattr(schedule, "total_steps", getattr(schedule, "T_max", None))
            if config.interval == "step" and total == estimated != planned:
                warnings.warn(
                    f"{type(schedule).__name__} is planned for {total} steps, and the pruned run "
                    f"has {planned}; use AdaprunerCallback.planned_steps() in place of "
                    "trainer.estimated_stepping_batches",
                    stacklevel=2,
                )

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self.trained_batches += 1

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._catch_up()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.pruner.finished:
            return
        steps_used_up = 0 <= trainer.max_steps <= trainer.global_step
        stopped = trainer.should_stop or steps_used_up
        whole = self.trained_batches >= trainer.num_training_batches
        # No batch was trained if the pruner has stepped already: see _catch_up.
        if self.trained_batches and (whole or not stopped):
            self.pruner.step()
            self.trained_batches = 0
            self._restored_whole = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "pruner": None if self._pruner is None else self._pruner.state_dict(),
            "trained_batches": self.trained_batches,
            "batches": None if self._trainer is None else self._trainer.num_training_batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint. The pruner is made later if its dataset is not known yet."""
        self._loaded = state
        if self._pruner is not None:
            self._restore(self._pruner, state)

    def _restore(self, pruner: Pruner, state: dict[str, Any]) -> None:
        if state["pruner"] is None:
            return
        pruner.load_state_dict(state["pruner"])
        self.trained_batches = state["trained_batches"]
        self._restored_whole = self.trained_batches >= state["batches"]

    def _catch_up(self) -> None:
        """Step the pruner if the trainer has gone on to another epoch than that of a checkpoint.

        After a checkpoint of the end of a validation, the trainer ends the epoch itself. After one
        of the last batch of an epoch, it begins the next epoch at once.
        """
        if self._restored_whole and self._trainer.current_epoch > self.pruner.epoch:
            self.pruner.step()
            self.trained_batches = 0
            self._restored_whole = False


class _TrainingLoader:
    """A training loader whose pruner is made when the run begins, in each process of the run.

    It is not a DataLoader, so Lightning does not put a sampler of its own into it. An iteration
    starts at the batch after the last trained one.
    """

    def __init__(self, callback: AdaprunerCallback, loader: DataLoader[Any]) -> None:
        batches_of(loader)  # raises early
        self._callback, self._loader = callback, loader
        self._ended: int | None = None  # the last epoch of which all batches were read
        self._pruned: DataLoader[Any] | None = None

    def _ready(self) -> DataLoader[Any]:
        if self._pruned is None:
            self._pruned = self._callback._make_loader(self._loader)
        self._callback._catch_up()
        return self._pruned

    def __len__(self) -> int:
        return len(self._ready())

    def __iter__(self) -> Iterator[Any]:
        loader: Any = self._ready()
        sampler = loader.batch_sampler
        # A loader beside longer ones begins again at its end.
        again = self._ended == self._callback.pruner.epoch
        position = {"position": 0 if again else self._callback.trained_batches}
        sampler.load_state_dict(sampler.state_dict() | position)
        return self._to_the_end(iter(loader))

    def _to_the_end(self, batches: Iterator[Any]) -> Iterator[Any]:
        epoch = self._callback.pruner.epoch
        yield from batches
        self._ended = epoch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the callback has the position. Lightning asks whether a loader can resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing; see :meth:`state_dict`."""


def _check_validations(trainer: Any, shortest: int) -> None:
    """Raise if the trainer would end the run in an epoch that is too short for its validations.

    Args:
        shortest: planned number of batches of the shortest epoch.
    """
    interval, limit = trainer.val_check_interval, trainer.limit_train_batches
    batches = int(shortest * limit) if isinstance(limit, float) else min(shortest, limit)
    in_epochs = isinstance(interval, int) and trainer.check_val_every_n_epoch is not None
    if in_epochs and trainer.enable_validation and interval > batches:
        raise ValueError(
            f"val_check_interval must be at most {batches}, the batches of the shortest epoch of "
            f"the pruned run; found {interval}. Pass a share of an epoch, such as 1.0, or "
            "check_val_every_n_epoch=None, which counts the batches of all epochs"
        )


def _accumulation(trainer: Any) -> Callable[[int], int]:
    """The number of batches whose gradients a step of an epoch takes."""
    for callback in trainer.callbacks:
        if isinstance(callback, lightning.callbacks.GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches
    return lambda epoch: trainer.accumulate_grad_batches


def _check_ranks(strategy: Any, pruner: Pruner) -> None:
    """Raise if processes that share one model, by tensor parallelism, would read other samples."""
    sharing = getattr(strategy, "distributed_sampler_kwargs", None)
    if sharing and sharing["num_replicas"] != pruner.ranks.size:
        raise ValueError(
            f"the pruner must have {sharing['num_replicas']} ranks, the processes of the strategy "
            f"that read different samples; found {pruner.ranks.size}. Pass the data-parallel "
            "group to AdaprunerCallback as process_group"
        )


def pruner_of(module: Any) -> Pruner:
    """The pruner of the run that a LightningModule is trained in.

    Raises:
        RuntimeError: its trainer has no :class:`AdaprunerCallback`, or the run has not begun.
    """
    for callback in module.trainer.callbacks:
        if isinstance(callback, AdaprunerCallback):
            return callback.pruner
    raise RuntimeError(
        "expected an AdaprunerCallback among the callbacks of the trainer; found none. A Tuner "
        "takes them away while it searches, so search with a loss that is not pruned"
    )
