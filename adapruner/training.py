"""fast_prune: train a model once, and know which samples are worth keeping."""

from __future__ import annotations

import copy
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import default_collate
from tqdm.auto import tqdm

from adapruner.checkpoint import describe, load_checkpoint, save_checkpoint, to_cpu
from adapruner.data.base import Source, Transform
from adapruner.data.loader import PrunedLoader, Unreadable, evaluation_loader, refuse_unreadable
from adapruner.data.order import epoch_seed
from adapruner.data.sources import as_source
from adapruner.methods import DEFAULT_METHOD
from adapruner.pruner import Pruner
from adapruner.result import DatasetMismatchError, PruneResult
from adapruner.vision import to_tensor

SampleLoss: TypeAlias = Callable[[Any, Any], Tensor]
OptimizerFactory: TypeAlias = Callable[[Any], Any]

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
# Held out of the training data for the controller: this share, between these numbers of samples.
HELD_OUT_SHARE, HELD_OUT_LEAST, HELD_OUT_MOST = 0.05, 20, 5000


def fast_prune(
    model: nn.Module,
    data: Any,
    keep_ratio: float = 0.7,
    epochs: int = 20,
    *,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    transform: Transform | None = None,
    evaluation_transform: Transform | None = None,
    validation_data: Any | None = None,
    learning_rate: float | None = None,
    optimizer: OptimizerFactory | None = None,
    loss: SampleLoss | None = None,
    normalize_loss: bool = False,
    balance: str | None = None,
    method: str = DEFAULT_METHOD,
    warmup_epochs: int | None = None,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    fingerprint: str | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    on_error: str = "skip",
    progress: bool = True,
) -> PruneResult:
    """Train ``model`` on ``data`` and learn which samples to keep, in one run.

    ``model`` is trained in place, from the weights it comes with, on ever fewer samples, and holds
    the weights of the last epoch at the end. The run reads less than an ordinary one of as many
    epochs: everything in the warm-up, then from all down to ``keep_ratio`` of the samples, and in
    each epoch up to 2 % of the pruned ones, so that these can come back.

    Args:
        model: takes a batch of inputs, gives logits ``[B, C]`` or ``[B, C, ...]`` (or an object
            with them as ``.logits``), or with ``loss`` whatever that takes.
        data: a map-style dataset of (input, target), an image folder's path, (inputs, targets) as
            tensors or arrays, or a Hugging Face dataset; see :func:`adapruner.data.as_source`.
        keep_ratio: share of the samples to keep, in (0, 1]; exactly ⌊keep_ratio·N + ½⌋ are kept.
        epochs: epochs of the run.
        batch_size: samples in a batch.
        seed: of the order, the held-out part, the augmentation and the model's own dropout.
        device: where to train; this build has kernels for "cpu".
        num_workers: processes that read samples.
        transform: applied to each input of the training data. Where None, the images of a folder or
            of a Hugging Face dataset become tensors in [0, 1]; they must then be of one size.
        evaluation_transform: applied instead where the model is evaluated, on the held-out part and
            ``validation_data``.
        validation_data: held-out data, of any form that ``data`` can have. Where None, 5 % of
            ``data`` (at most 5,000 samples) is held out of the training: those samples are ranked
            by their evaluations and kept by their own share. Below 20 such samples, nothing is.
        learning_rate: highest learning rate of AdamW where ``optimizer`` is None; 2e-3 where None.
        optimizer: called with the model's parameters; gives an optimiser, or an optimiser and a
            learning rate scheduler that is stepped once per epoch. Where None, AdamW with a
            one-cycle learning rate.
        loss: called with (outputs, targets); gives the loss of each sample, ``[B]``, at least 0,
            unreduced. Where None, cross entropy.
        normalize_loss: for losses that are not on the scale of cross entropy: see :class:`Pruner`.
        balance: "class" keeps the same share of every class, exactly.
        method: "balanced", or "adapruner", the published objective.
        warmup_epochs: epochs before the gates start; 0 for a model that is trained already. About a
            tenth of ``epochs`` where None.
        collate_fn: makes a batch of a list of (input, target).
        fingerprint: a string that identifies the dataset, instead of what is found out from it.
        checkpoint_dir: where to write a checkpoint after each epoch; one that is there is resumed.
        on_error: "skip" leaves out samples that cannot be read, lists them in the result and never
            keeps them; "raise" stops at the first one.
        progress: whether to show it, on standard error.

    Returns:
        The kept indices, the gate logits and how they came about.

    Raises:
        TypeError, ValueError: an argument is not what it should be; the message says how.
        IndexError: a target is out of range for the model's logits.
        DatasetMismatchError: the checkpoint belongs to another dataset.
        UnreadableSampleError: a sample cannot be read and ``on_error="raise"``, or none can.
        FloatingPointError: in a whole epoch no batch had a finite loss.

    Example:
        >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
        >>> model = torch.nn.Linear(5, 3)
        >>> result = fast_prune(model, (x, y), keep_ratio=0.7, epochs=3, progress=False)
        >>> len(result.indices)
        45
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; found {type(model).__name__}")
    if balance not in (None, "class"):
        raise ValueError(f'balance must be None or "class"; found {balance!r}')
    if learning_rate is not None and optimizer is not None:
        raise ValueError("learning_rate is for the default optimiser; optimizer sets its own")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a number above 0; found {learning_rate}")
    source = _open(data, transform, collate_fn, fingerprint)
    if balance == "class" and source.targets is None:
        raise ValueError(
            'balance="class" needs the classes without reading the samples: give the dataset a '
            "`targets` attribute"
        )
    held_out = None if validation_data is not None else _hold_out(len(source), seed)
    pruner = Pruner(
        len(source),
        keep_ratio,
        epochs,
        warmup_epochs=warmup_epochs,
        method=method,
        seed=seed,
        labels=source.targets if balance == "class" else None,
        held_out=held_out,
        normalize_loss=normalize_loss,
        device=device,
    )
    run = _Run(model.to(device), pruner, loss, learning_rate, optimizer, progress, on_error)
    loader = pruner.loader(
        source,
        batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn,
        on_error=on_error,
    )
    if validation_data is None:
        evaluated = _evaluation_source(source, evaluation_transform)
        indices = np.zeros(0, dtype=np.int64) if held_out is None else held_out
    else:
        evaluated = _open(validation_data, evaluation_transform or transform, collate_fn)
        indices = np.arange(len(evaluated))
    evaluation = evaluation_loader(
        evaluated, indices, batch_size, seed=seed, num_workers=num_workers, collate_fn=collate_fn
    )
    settings = {
        "batch_size": batch_size,
        "model": describe(model),
        "optimizer": [type(run.optimizer).__name__, type(run.scheduler).__name__],
        "learning_rate": run.highest_rate,
    }
    if checkpoint_dir is not None:
        run.resume(checkpoint_dir, settings)
    with _training_mode_kept(model):
        while not pruner.finished:
            with _seeded(seed, pruner.epoch):
                run.train(loader)
                losses = run.evaluate(evaluation, observe=validation_data is None)
            run.end_epoch(losses)
            if checkpoint_dir is not None:
                run.checkpoint(checkpoint_dir, settings)
    return _with_provenance(pruner.result(), source, batch_size)


class _Run:
    """The model, its optimiser and the pruner, through the epochs."""

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner,
        loss: SampleLoss | None,
        learning_rate: float | None,
        optimizer: OptimizerFactory | None,
        progress: bool,
        on_error: str,
    ) -> None:
        self.on_error = on_error
        self.model = model
        self.pruner = pruner
        self.loss = loss
        self.progress = progress
        self.device = pruner.gates.logits.device
        self.scheduler: Any = None
        # Of the one-cycle schedule; None where the optimiser is the user's.
        self.highest_rate = None if optimizer else learning_rate or LEARNING_RATE
        made = (
            torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            if optimizer is None
            else optimizer(model.parameters())
        )
        if isinstance(made, (tuple, list)) and len(made) == 2:
            made, self.scheduler = made
        if not isinstance(made, Optimizer):
            raise TypeError(
                "optimizer must be a function of the parameters that gives a torch optimiser, or "
                f"an optimiser and a scheduler; it gave {type(made).__name__}"
            )
        self.optimizer: Optimizer = made

    def train(self, loader: PrunedLoader) -> None:
        """One epoch over what the pruner has it read."""
        self.model.train()
        pruner, batches, finite = self.pruner, len(loader), 0
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
                _set_learning_rate(self.optimizer, self.highest_rate, done)
            outputs = self._forward(inputs)
            if self.loss is None:
                loss = pruner.loss(outputs, _to(targets, self.device), ids)
            else:
                loss = pruner.weigh(self.loss(outputs, _to(targets, self.device)), ids)
            self.optimizer.zero_grad(set_to_none=True)
            # A loss that is not finite would ruin the weights for good: its step is left out.
            if math.isfinite(loss.item()):
                finite += 1
                loss.backward()
                self.optimizer.step()
        if not finite:
            raise FloatingPointError(
                f"no batch of epoch {pruner.epoch} had a finite loss; the samples concerned start "
                f"with {pruner.gates.not_finite()[:5]}; check the learning rate and the inputs"
            )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], observe: bool) -> Tensor:
        """Losses of the held-out samples, float64; the gates take them in where they have some."""
        self.model.eval()
        losses = [torch.zeros(0, dtype=torch.float64)]
        for batch, ids, unreadable in batches:
            if unreadable:
                self._leave_out(unreadable, observe)
            if not len(ids):
                continue
            inputs, targets = batch
            outputs, targets = self._forward(inputs), _to(targets, self.device)
            sample_loss = (
                _sample_cross_entropy(outputs, targets)
                if self.loss is None
                else self.loss(outputs, targets)
            )
            if observe:
                self.pruner.observe(sample_loss, ids)
            losses.append(sample_loss.double().cpu())
        return torch.cat(losses)

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
            self.scheduler.step(mean if mean is not None else self.pruner.gates.training_loss())
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
        if state["fingerprint"] != self.pruner.fingerprint:
            raise DatasetMismatchError(
                f"the checkpoint in {os.fspath(folder)} belongs to another dataset: it was made "
                f"for fingerprint {state['fingerprint']}, the dataset given has "
                f"{self.pruner.fingerprint}"
            )
        for name, value in settings.items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"the checkpoint in {os.fspath(folder)} was made with another {name}; remove "
                    "it to start anew, or choose another folder"
                )
        self.pruner.load_state_dict(state["pruner"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def _forward(self, inputs: Any) -> Any:
        inputs = _to(inputs, self.device)
        outputs = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
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


def _sample_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """ℓ ``[B]``, the mean over a sample's rows that are not ignored, without gates."""
    rows = functional.cross_entropy(logits, target.long(), reduction="none").reshape(
        len(target), -1
    )
    counted = (target.reshape(rows.shape) != -100).sum(1).clamp(min=1)
    return rows.sum(1) / counted


def _hold_out(num_samples: int, seed: int) -> np.ndarray | None:
    """A seeded part of the indices for the controller, ascending; None where it is too small."""
    count = min(int(HELD_OUT_SHARE * num_samples), HELD_OUT_MOST)
    if count < HELD_OUT_LEAST:
        return None
    generator = np.random.default_rng(np.random.SeedSequence([seed, num_samples]))
    return np.sort(generator.choice(num_samples, count, replace=False))


def _open(
    data: Any,
    transform: Transform | None,
    collate_fn: Callable[[list[Any]], Any],
    fingerprint: str | None = None,
) -> Source:
    """``data`` as a source, of tensors where its samples would be PIL images."""
    source = as_source(data, transform=transform, fingerprint=fingerprint)
    pictures = source.kind in ("image folder", "hugging face")
    if pictures and source.transform is None and collate_fn is default_collate:
        source = as_source(source, transform=to_tensor)
    return source


def _evaluation_source(source: Source, transform: Transform | None) -> Source:
    if transform is None:
        return source
    changed = copy.copy(source)
    changed.transform = transform
    return changed


def _set_learning_rate(
    optimizer: Optimizer, highest: float, done: float, warm: float = 0.15
) -> None:
    """One cycle: up in a line over the share ``warm`` of the run, down in a cosine."""
    falling = 0.5 + 0.5 * math.cos(math.pi * (done - warm) / (1 - warm))
    factor = done / warm if done < warm else falling
    for group in optimizer.param_groups:
        group["lr"] = highest * max(factor, 0.01)


def _to(value: Any, device: torch.device) -> Any:
    """Tensors in ``value``, nested as collate functions nest them, on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _to(v, device) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to(v, device) for v in value]
    return value


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[None]:
    """Give an epoch (its dropout) a seed of its own, and the caller's generator back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(epoch_seed(seed, epoch, 0, 1))
        yield


@contextmanager
def _training_mode_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _with_provenance(result: PruneResult, source: Source, batch_size: int) -> PruneResult:
    """The result, with what only the whole run knows."""
    seconds = sum(entry["seconds"] for entry in result.history)
    read = result.saved["samples_read"]
    full = result.saved["samples_read_full"]
    saved = dict(result.saved, seconds=seconds, seconds_full=seconds / max(read, 1) * full)
    if source.sizes is not None:
        saved["bytes"] = int(source.sizes.sum() - source.sizes[result.indices.numpy()].sum())
    return replace(
        result,
        config=dict(result.config, batch_size=batch_size),
        saved=saved,
        targets=None if source.targets is None else torch.from_numpy(source.targets),
        source=source,
    )
