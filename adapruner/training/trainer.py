"""The training of one run: its model, optimiser and pruner, through the epochs."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from adapruner._util.checks import check_same_dataset
from adapruner._util.tensors import to_cpu
from adapruner.data.unreadable import Unreadable, refuse_unreadable
from adapruner.pruning.pruner import Pruner
from adapruner.training.batches import memory_format_of, to_device
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint
from adapruner.training.evaluation import check_targets, sample_cross_entropy
from adapruner.training.learning_rate import LEARNING_RATE, WEIGHT_DECAY, set_learning_rate
from adapruner.training.steps import Steps

SampleLoss: TypeAlias = Callable[[Any, Any], Tensor]
OptimizerFactory: TypeAlias = Callable[[Any], Any]

_OPTIMIZER = (
    "optimizer must be a function of the parameters that gives a torch optimiser, or an optimiser "
    "and a scheduler; {}"
)

# Names of the arithmetic, and what autocast is asked for.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


class Loader(Protocol):
    """Yields (inputs, targets, ids), and says how many batches the epoch has."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Any, Any, Tensor]]: ...


class Trainer:
    """The model, its optimiser and the pruner, through the epochs."""

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
    ) -> None:
        if precision not in PRECISIONS:
            named = ", ".join(f'"{name}"' for name in PRECISIONS)
            raise ValueError(f"precision must be one of {named}; found {precision!r}")
        self.on_error = on_error
        self.model = model
        self._call: Callable[..., Any] = torch.compile(model) if compile else model
        self._precision = PRECISIONS[precision]
        self._memory_format = memory_format_of(model)
        self.pruner = pruner
        self.loss = loss
        self.progress = progress
        self.device = pruner.gates.logits.device
        self.scheduler: Any = None
        self.steps_left_out = 0
        # Of the one-cycle schedule; None where the optimiser is the user's.
        self.highest_rate = None if optimizer else learning_rate or LEARNING_RATE
        if optimizer is not None and not callable(optimizer):
            raise TypeError(_OPTIMIZER.format(f"found {type(optimizer).__name__}"))
        made = (
            torch.optim.AdamW(
                model.parameters(),
                lr=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                fused=self.device.type == "cuda",  # so that no step waits for the GPU
            )
            if optimizer is None
            else optimizer(model.parameters())
        )
        if isinstance(made, (tuple, list)) and len(made) == 2:
            made, self.scheduler = made
        if not isinstance(made, Optimizer):
            raise TypeError(_OPTIMIZER.format(f"it gave {type(made).__name__}"))
        self.optimizer: Optimizer = made
        self._steps = Steps(made, self.device)

    def train(self, loader: Loader) -> None:
        """One epoch over what the pruner has it read."""
        self.model.train()
        pruner, batches = self.pruner, len(loader)
        self._steps.finite = 0
        bar = tqdm(
            loader,
            total=batches,
            desc=f"epoch {pruner.epoch + 1}/{pruner.epochs}",
            leave=False,
            # None: where standard error is no terminal there is no bar, only a line per epoch.
            disable=None if self.progress else True,
        )
        for position, (inputs, targets, ids) in enumerate(bar):
            if self.highest_rate is not None:
                done = (pruner.epoch + position / batches) / pruner.epochs
                set_learning_rate(self.optimizer, self.highest_rate, done)
            inputs, targets = self._on_device(inputs), to_device(targets, self.device)
            with self._autocast():
                outputs = self._forward(inputs)
                if self.loss is None:
                    loss = pruner.loss(outputs, targets, ids)
                else:
                    loss = pruner.weigh(self.loss(outputs, targets), ids)
            self._steps.take(loss, inputs, ids)
            if self._steps.full:
                self._look()
        self._look()
        if not self._steps.finite:
            raise FloatingPointError(
                f"no batch of epoch {pruner.epoch} had a finite loss; the samples concerned start "
                f"with {pruner.gates.not_finite()[:5]}; check the learning rate and the inputs"
            )

    def _look(self) -> None:
        """Take note of the batches that were left out, and raise what a GPU has found wrong."""
        self.pruner.gates.check_errors()
        for batch in self._steps.look():
            self.steps_left_out += 1
            refused = [Unreadable(i, "its input is not finite") for i in batch.ids]
            refuse_unreadable(refused, self.on_error)
            self.pruner.exclude(refused)

    def warn_of_what_was_left_out(self) -> None:
        """One warning of the samples, one of the steps; to be called by fast_prune."""
        if unreadable := self.pruner.unreadable:
            index, reason = unreadable[0]
            warnings.warn(
                f"{len(unreadable)} of {self.pruner.num_samples} samples cannot be read and are "
                f"not kept; the first one, sample {index}: {reason}",
                stacklevel=3,
            )
        if self.steps_left_out:
            warnings.warn(
                f"steps left out, since the loss of their batch was not finite: "
                f"{self.steps_left_out}; the result lists the samples concerned as not_finite",
                stacklevel=3,
            )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], observe: bool) -> Tensor:
        """Losses of the held-out samples, float64; the gates take them in where they have some."""
        self.model.eval()
        losses = [torch.zeros(0, dtype=torch.float64, device=self.device)]
        outside: list[Tensor] = []  # (whether any target is no class, the first one, classes)
        for batch, ids, unreadable in batches:
            if unreadable:
                self._leave_out(unreadable, observe)
            if not len(ids):
                continue
            inputs, targets = batch
            inputs, targets = self._on_device(inputs), to_device(targets, self.device)
            with self._autocast():
                outputs = self._forward(inputs)
                if self.loss is not None:
                    sample_loss = self.loss(outputs, targets)
                else:
                    sample_loss, found = sample_cross_entropy(outputs, targets)
                    outside.append(found)
            if observe:
                self.pruner.observe(sample_loss, ids)
            losses.append(sample_loss.double())
        check_targets(outside)
        return torch.cat(losses).cpu()

    def _leave_out(self, unreadable: list[Unreadable], of_training_data: bool) -> None:
        refuse_unreadable(unreadable, self.on_error)
        if of_training_data:
            self.pruner.exclude(unreadable)
        else:
            sample, reason = unreadable[0]
            warnings.warn(
                f"{len(unreadable)} samples of the validation data cannot be read and are left "
                f"out; the first one, sample {sample}: {reason}",
                stacklevel=4,
            )

    def end_epoch(self, held_out_losses: Tensor) -> None:
        finite = held_out_losses[held_out_losses.isfinite()]
        # A broken sample is listed and left out; where most are broken the model is, and is behind.
        if 2 * len(finite) > len(held_out_losses):
            held_out_losses = finite
        count = len(held_out_losses)
        mean = held_out_losses.mean().item() if count else None
        error = held_out_losses.std().item() / math.sqrt(count) if count > 1 else 0.0
        if isinstance(self.scheduler, ReduceLROnPlateau):
            measured = self.pruner.gates.training_loss() if mean is None else mean
            self.scheduler.step(math.inf if measured is None else measured)
        elif self.scheduler is not None:
            self.scheduler.step()
        entry = self.pruner.step(mean, error)
        if self.progress:
            tqdm.write(describe_epoch(entry, self.pruner.epochs), file=sys.stderr)

    def checkpoint(self, folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        state = {
            "settings": settings,
            "fingerprint": self.pruner.fingerprint,
            "pruner": self.pruner.state_dict(),
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }
        save_checkpoint(folder, to_cpu(state))

    def resume(self, folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        # Made now: a place that cannot be written is to be known before the first epoch.
        os.makedirs(folder, exist_ok=True)
        state = load_checkpoint(folder)
        if state is None:
            return
        owner = f"the checkpoint in {os.fspath(folder)}"
        check_same_dataset(owner, "fingerprint", state["fingerprint"], self.pruner.fingerprint)
        for name, value in settings.items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"{owner} was made with another {name}; remove it to start anew, or choose "
                    "another folder"
                )
        self.pruner.load_state_dict(state["pruner"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def _on_device(self, inputs: Any) -> Any:
        return to_device(inputs, self.device, self._memory_format)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self._precision, enabled=self._precision is not None
        )

    def _forward(self, inputs: Any) -> Any:
        outputs = self._call(**inputs) if isinstance(inputs, Mapping) else self._call(inputs)
        if self.loss is None and not isinstance(outputs, Tensor):
            outputs = getattr(outputs, "logits", outputs)
            if not isinstance(outputs, Tensor):
                raise TypeError(
                    "the model must give logits as a tensor, or an object with them as .logits; it "
                    f"gave {type(outputs).__name__} (other outputs need loss=)"
                )
        return outputs


def describe_epoch(entry: Mapping[str, Any], epochs: int) -> str:
    """An epoch of the history as one line of text."""

    def number(name: str) -> str:
        return "   -  " if entry[name] is None else f"{entry[name]:6.3f}"

    return (
        f"epoch {entry['epoch'] + 1:>3}/{epochs}  ratio {entry['keep_ratio']:.3f}  "
        f"read {entry['samples_read']:>9,}  loss {number('training_loss')}  "
        f"held-out {number('validation_loss')}  {entry['decision']:<8}  {entry['seconds']:.1f} s"
    )
