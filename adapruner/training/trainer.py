"""The training of a run: model, optimiser and pruner through the epochs."""

from __future__ import annotations

import math
import os
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from adapruner._util.checks import check_same_dataset
from adapruner._util.progress import bar_is_shown, tell
from adapruner._util.tensors import to_cpu
from adapruner.data.sources.items import described
from adapruner.data.unreadable import Unreadable, no_sample_readable, refuse_unreadable
from adapruner.errors import FileFormatError
from adapruner.pruning.constant import SampleLoss
from adapruner.pruning.pruner import Pruner
from adapruner.pruning.record import logits_of_classes
from adapruner.training.batches import batch_norms_for, memory_format_of, to_device
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint
from adapruner.training.evaluation import check_targets, counted_samples, sample_cross_entropy
from adapruner.training.learning_rate import (
    LEARNING_RATE,
    WEIGHT_DECAY,
    set_learning_rate,
    share_done,
)
from adapruner.training.parallel import core_of, leads, load_whole, load_whole_optimizer
from adapruner.training.steps import Steps, not_finite_inputs

OptimizerFactory: TypeAlias = Callable[[Any], Any]

_OPTIMIZER = (
    "optimizer must be a function of the parameters that returns a torch optimiser, or an "
    "optimiser and a scheduler; found {}"
)

# Settings of a run that may be functions. Nobody can tell whether two are the same for sure.
FUNCTIONS = ("transform", "evaluation_transform", "collate_fn", "loss_function")
# The reason of samples that are excluded although they could be read.
INPUT_NOT_FINITE = "its input is not finite"
# Each precision and the dtype of its autocast.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


class CrossEntropy(NamedTuple):
    """The options of the default loss, as in :func:`adapruner.ops.masked_cross_entropy`."""

    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0


class Loader(Protocol):
    """Yields (inputs, targets, ids), with None for targets that the samples do not have.

    ``len`` is the number of batches of the epoch.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Any, Any, Tensor]]: ...


class Trainer:
    """Trains a model through the epochs of a pruner.

    :func:`adapruner.fast_prune` documents the arguments.

    Attributes:
        highest_rate: highest learning rate of the one-cycle schedule; None with the user's
            optimiser.
        steps_left_out: number of steps left out because their loss or a gradient was not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner,
        loss: SampleLoss | None,
        learning_rate: float | None,
        optimizer: OptimizerFactory | None,
        precision: str,
        compile: bool,
        progress: bool,
        on_error: str,
        cross_entropy: CrossEntropy | None = None,
    ) -> None:
        if not isinstance(precision, str) or precision not in PRECISIONS:
            named = ", ".join(f'"{name}"' for name in PRECISIONS)
            raise ValueError(f"precision must be one of {named}; found {precision!r}")
        self.on_error = on_error
        self.ranks = pruner.ranks
        self.model = model
        self._call: Callable[..., Any] = torch.compile(model) if compile else model
        self._precision = PRECISIONS[precision]
        self._memory_format = memory_format_of(model)
        self.pruner = pruner
        self.loss = loss
        self.leads = leads(model, self.ranks)
        self.progress = progress and self.leads
        self.device = pruner.gates.logits.device
        options = cross_entropy or CrossEntropy()
        if options.weight is not None:
            options = options._replace(weight=options.weight.to(self.device))
        self._cross_entropy = options
        self.scheduler: Any = None
        self.steps_left_out = 0
        self.highest_rate = None if optimizer else learning_rate or LEARNING_RATE
        if optimizer is not None and not callable(optimizer):
            raise TypeError(_OPTIMIZER.format(type(optimizer).__name__))
        made = (
            torch.optim.AdamW(
                model.parameters(),
                lr=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                fused=self.device.type == "cuda",  # then no step waits for the GPU
            )
            if optimizer is None
            else optimizer(model.parameters())
        )
        if isinstance(made, (tuple, list)) and len(made) == 2:
            made, self.scheduler = made
        if not isinstance(made, Optimizer):
            raise TypeError(_OPTIMIZER.format(f"a function that returns {type(made).__name__}"))
        if isinstance(made, torch.optim.LBFGS):
            raise TypeError(_OPTIMIZER.format("LBFGS, which trains on each batch many times"))
        if self.scheduler is not None and not callable(getattr(self.scheduler, "step", None)):
            found = f"a {type(self.scheduler).__name__} as the scheduler"
            raise TypeError(_OPTIMIZER.format(found))
        self.optimizer: Optimizer = made
        self._steps = Steps(model, made, self.device)
        # The last inputs, which a rank without a share of held-out samples calls the model with.
        self._last_inputs: Any = None

    def train(self, loader: Loader) -> None:
        """Train one epoch on the samples of ``loader``.

        Raises:
            FloatingPointError: no batch had a finite loss and finite gradients, and no sample was
                excluded because its input is not finite.
        """
        self.model.train()
        pruner, batches = self.pruner, len(loader)
        planned_reads, broken_before = pruner.planned_reads(), self._broken_inputs()
        self._steps.begin()
        bar = tqdm(
            loader,
            total=batches,
            desc=f"epoch {pruner.epoch + 1}/{pruner.epochs}",
            leave=False,
            disable=not bar_is_shown(self.progress),
        )
        position = -1
        for position, (inputs, targets, ids) in enumerate(bar):
            if self.highest_rate is not None:
                done = share_done(planned_reads, pruner.epoch, position / batches)
                set_learning_rate(self.optimizer, self.highest_rate, done)
            inputs, targets = self._pair(inputs, targets)
            self._keep(inputs)
            with batch_norms_for(self.model, len(ids)):
                with self._autocast():
                    outputs = self._forward(inputs)
                    if self.loss is None:
                        loss = pruner.loss(outputs, targets, ids, **self._cross_entropy._asdict())
                    else:
                        loss = pruner.custom_loss(self.loss, outputs, targets, ids)
                self._steps.take(loss, inputs, ids)
            if self._steps.full:
                self._look()
        self._look()
        if self.ranks.alone and batches and position < 0 and pruner.unreadable:
            raise no_sample_readable()
        self.ranks.copy_first(list(self.model.buffers()))  # the statistics of batch norms
        if not self._steps.finite:
            pruner.synchronize()
            some_left = len(pruner.unreadable) < pruner.num_samples
            if some_left and self._broken_inputs() > broken_before:
                return  # they explain it, and are excluded now
            raise FloatingPointError(
                f"no batch of epoch {pruner.epoch} had a finite loss and finite gradients; the "
                f"first samples without a finite loss are {pruner.gates.not_finite()[:5]}; check "
                "the learning rate and the inputs"
            )

    def _broken_inputs(self) -> int:
        """Number of samples that are excluded because their input is not finite."""
        return sum(reason == INPUT_NOT_FINITE for _, reason in self.pruner.unreadable)

    def _keep(self, inputs: Any) -> None:
        if not self.ranks.alone:
            self._last_inputs = inputs

    def _look(self) -> None:
        """Note the batches that were left out, and raise errors that a GPU has found."""
        self.pruner.gates.check_errors()
        for batch in self._steps.look():
            self.steps_left_out += 1
            refused = [Unreadable(i, INPUT_NOT_FINITE) for i in batch.ids]
            refuse_unreadable(refused, self.on_error)
            self.pruner.exclude(refused)

    def warn_of_steps_left_out(self) -> None:
        """Warn of steps that were left out. fast_prune calls this before it makes the result, which
        keeps the warning."""
        if self.steps_left_out:
            self.pruner.warn(
                "steps",
                f"steps left out because the loss or a gradient of their batch was not finite: "
                f"{self.steps_left_out}; the result lists samples whose loss was not finite",
                stacklevel=4,
            )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], observe: bool) -> Tensor:
        """Losses of the held-out samples of all ranks, float64.

        Args:
            batches: (batch, ids, unreadable samples).
            observe: whether the samples are part of the training data, so that their gates step.
        """
        self.model.eval()
        losses = [torch.zeros(0, dtype=torch.float64, device=self.device)]
        outside: list[Tensor] = []  # targets out of range, for check_targets
        unreadable: list[Unreadable] = []
        faults: list[tuple[Tensor, Tensor]] = []  # ids, and whether their input is broken
        for batch, ids, broken in batches:
            unreadable += broken
            refuse_unreadable(broken, self.on_error)
            if observe and broken:
                self.pruner.exclude(broken)
            if len(ids):
                inputs, targets = self._pair(*batch)
                logits, sample_loss = self._held_out_losses(inputs, targets, outside)
                broken_inputs = not_finite_inputs(inputs, len(ids), self.device)
                faults.append((ids, broken_inputs & ~sample_loss.isfinite()))
                counted = self._counted(batch[1])  # before the copy, so that no device waits
                if counted is not None:  # the others have no loss, so this is no visit of them
                    ids, sample_loss = ids[counted.to(ids.device)], sample_loss[counted]
                    logits = None if logits is None else logits[counted]
            elif self.ranks.alone:
                continue
            else:  # the other ranks wait for this one where the model exchanges something
                with self._autocast():
                    self._forward(self._last_inputs)
                logits, sample_loss = None, torch.zeros(0, device=self.device)
            if observe:
                self.pruner.observe(sample_loss, ids, logits)
            losses.append(sample_loss.double())
        check_targets(outside, self._cross_entropy.ignore_index)
        broken = [
            Unreadable(index, INPUT_NOT_FINITE)
            for ids, found in faults
            for index in ids.cpu()[found.cpu()].tolist()
        ]
        refuse_unreadable(broken, self.on_error)
        if observe and broken:
            self.pruner.exclude(broken)
        if not observe:
            unreadable += broken
            self._warn_of_unreadable(unreadable)
        return self.ranks.gather_calls(losses).cpu()

    def _counted(self, targets: Any) -> Tensor | None:
        """As :func:`counted_samples`; None with a loss function, which knows what it ignores."""
        if self.loss is not None:
            return None
        return counted_samples(targets, self._cross_entropy.ignore_index)

    def _held_out_losses(
        self, inputs: Any, targets: Any, outside: list[Tensor]
    ) -> tuple[Tensor | None, Tensor]:
        """The logits of a classifier, else None, and the losses."""
        with self._autocast():
            outputs = self._forward(inputs)
            if self.loss is not None:
                return logits_of_classes(outputs, targets), self.loss(outputs, targets)
            options = self._cross_entropy._asdict()
            sample_loss, found = sample_cross_entropy(outputs, targets, **options)
        outside.append(found)
        return outputs, sample_loss

    def _warn_of_unreadable(self, own: list[Unreadable]) -> None:
        """Rank 0 warns of the unreadable samples of the validation data, of all ranks."""
        every = sorted(chain.from_iterable(self.ranks.exchange("evaluate", own)))
        if every and self.ranks.first:
            sample, reason = every[0]
            warnings.warn(
                f"{len(every)} samples of the validation data cannot be read and are left "
                f"out; the first is sample {sample}: {reason}",
                stacklevel=4,
            )

    def end_epoch(self, held_out_losses: Tensor) -> None:
        """Step the scheduler and the pruner, with the mean of the held-out losses."""
        finite = held_out_losses[held_out_losses.isfinite()]
        # Few losses that are not finite come from broken samples, and are left out. If most losses
        # are not finite, the model is broken; the mean must show it.
        if 2 * len(finite) > len(held_out_losses):
            held_out_losses = finite
        count = len(held_out_losses)
        mean = held_out_losses.mean().item() if count else None
        error = held_out_losses.std().item() / math.sqrt(count) if count > 1 else 0.0
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.pruner.synchronize()
            measured = self.pruner.gates.training_loss() if mean is None else mean
            self.scheduler.step(math.inf if measured is None else measured)
        elif self.scheduler is not None:
            self.scheduler.step()
        entry = self.pruner.step(mean, error)
        if self.progress:
            tell(describe_epoch(entry, self.pruner.epochs))

    def checkpoint(self, folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        """Write a checkpoint of the run. Rank 0 writes it for all ranks."""
        state = {
            "settings": settings,
            "ranks": self.ranks.size,
            "fingerprint": self.pruner.fingerprint,
            "pruner": self.pruner.state_dict(),
            "model": dict(core_of(self.model).state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "steps_left_out": self.steps_left_out,
        }
        state = to_cpu(state)
        self.ranks.on_first(
            "checkpoint", lambda: save_checkpoint(folder, state) if self.leads else None
        )

    def resume(self, folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        """Load the checkpoint in ``folder``, if it has one. Each rank reads it.

        The number of ranks may change. The run goes on with the same batches if those of all ranks
        together have the same size. docs/many-gpus.md says where its weights are the same bits.

        Raises:
            DatasetMismatchError: the checkpoint belongs to another dataset.
            FileFormatError: the checkpoint is damaged.
            ValueError: the checkpoint was made with other settings, or ranks find different ones.
        """
        state = load_checkpoint(folder)
        owner = f"the checkpoint in {os.fspath(folder)}"
        with _as_damage(owner):
            found = None if state is None else state["pruner"]["epoch"]
        self.ranks.meet("resume", epoch_in_the_checkpoint_folder=found)
        if state is None:
            return
        with _as_damage(owner):
            self._take_up(state, settings, owner)

    def _take_up(self, state: dict[str, Any], settings: dict[str, Any], owner: str) -> None:
        check_same_dataset(owner, "fingerprint", state["fingerprint"], self.pruner.fingerprint)
        saved = state["settings"]
        saved_size = saved["batch_size"]
        if saved_size * state.get("ranks", 1) == settings["batch_size"] * self.ranks.size:
            settings = settings | {"batch_size": saved_size}
        for name, value in settings.items():
            if name not in FUNCTIONS and (found := saved.get(name)) != value:
                raise ValueError(
                    f"{owner} was made with another {name}: expected {reprlib.repr(value)}, found "
                    f"{reprlib.repr(found)}; remove it to start again, or choose another folder"
                )
        try:
            self.pruner.load_state_dict(state["pruner"])
        except ValueError as error:
            raise type(error)(
                f"{owner}: {error}; remove it to start again, or choose another folder"
            ) from error
        if self.pruner.finished and self.progress:
            tell(f"{owner} is of a complete run, so nothing is trained")
        for name in FUNCTIONS:
            # An older checkpoint does not name them.
            if (before := saved.get(name, settings[name])) == settings[name]:
                continue
            self.pruner.warn(
                name,
                f"{owner} is of a complete run with another {name}: expected {settings[name]}; "
                f"found {before}. The result is of that one"
                if self.pruner.finished
                else f"the run goes on with another {name}: expected {before}, as in {owner}; "
                f"found {settings[name]}. The selection rests on losses of both",
            )
        self.steps_left_out = int(state.get("steps_left_out", 0))  # older ones do not count them
        load_whole(core_of(self.model), state["model"])
        load_whole_optimizer(self.optimizer, state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def _pair(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """A batch on the device. Without targets, the inputs are the targets too."""
        inputs = to_device(inputs, self.device, self._memory_format)
        if targets is not None:
            return inputs, to_device(targets, self.device)
        if self.loss is None:
            raise TypeError(
                "samples must have a target for the default loss; found inputs alone. Name the "
                "target with target=, or give a loss, which gets the inputs as targets"
            )
        return inputs, inputs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self._precision, enabled=self._precision is not None
        )

    def _forward(self, inputs: Any) -> Any:
        outputs = self._call(**inputs) if isinstance(inputs, Mapping) else self._call(inputs)
        if self.loss is None and not isinstance(outputs, Tensor):
            outputs = _logits_of(outputs)
        return outputs


def _logits_of(outputs: Any) -> Tensor:
    """The logits among the outputs of a model.

    They are ``.logits``, as in Hugging Face models, or the entry "logits" or "out" of a mapping, as
    in torchvision's segmentation models.
    """
    found = getattr(outputs, "logits", None)
    if isinstance(outputs, Mapping):
        found = next((outputs[name] for name in ("logits", "out") if name in outputs), found)
    if not isinstance(found, Tensor):
        raise TypeError(
            "the model must return logits as a tensor, an object with .logits, or a mapping with "
            f'"logits" or "out"; found {described(outputs)} (other outputs need loss=)'
        )
    return found


@contextmanager
def _as_damage(owner: str) -> Iterator[None]:
    """Let an error say that ``owner``, a checkpoint, has other parts than the state of a run."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise FileFormatError(
            f"{owner} does not hold the state of a run; remove it to start again, or choose "
            f"another folder: {type(error).__name__}: {error}"
        ) from error


def describe_epoch(entry: Mapping[str, Any], epochs: int) -> str:
    """One line of text about an epoch of the history. It fits 80 columns in usual runs."""

    def number(name: str) -> str:
        return "-" if entry[name] is None else f"{entry[name]:.3f}"

    seconds = entry["seconds"]
    return (
        f"epoch {entry['epoch'] + 1:>3}/{epochs} keep {entry['keep_ratio']:.2f} "
        f"read {entry['samples_read']:,} loss {number('training_loss')} "
        f"held-out {number('validation_loss')} {entry['decision']} "
        f"{seconds:.{1 if seconds < 100 else 0}f} s"
    )
