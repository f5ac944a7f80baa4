"""fast_prune: train a model once and learn which samples are worth keeping."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from adapruner._util.checks import check_loss, checked_real, checked_whole
from adapruner._util.lock import locked_folder
from adapruner._util.progress import tell
from adapruner._util.seeds import Stream, generators_restored, seed_generators, stream_seed
from adapruner.data.loaders.choice import (
    Columns,
    choose_loader,
    held_out_loader,
    training_loader,
    training_source,
)
from adapruner.data.sources.base import Source, Transform
from adapruner.data.sources.find import fitting
from adapruner.data.sources.items import Target
from adapruner.data.sources.map_style import SubsetSource, has_transform
from adapruner.ops.device import check_device
from adapruner.pruning.constant import SampleLoss
from adapruner.pruning.methods import DEFAULT_METHOD
from adapruner.pruning.pruner import Pruner
from adapruner.results.result import PruneResult
from adapruner.training.checkpoint import describe, describe_function
from adapruner.training.groups import hold_out, quota_labels
from adapruner.training.parallel import core_of, shared_model
from adapruner.training.trainer import FUNCTIONS, CrossEntropy, OptimizerFactory, Trainer


def fast_prune(
    model: nn.Module,
    data: Any,
    keep_ratio: float = 0.7,
    epochs: int = 20,
    *,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    loader: str = "auto",
    num_workers: int = 0,
    block_size: int | None = None,
    columns: Columns | None = None,
    target: Target | None = None,
    transform: Transform | None = None,
    evaluation_transform: Transform | None = None,
    validation_data: Any | None = None,
    learning_rate: float | None = None,
    optimizer: OptimizerFactory | None = None,
    precision: str = "fp32",
    compile: bool = False,
    loss: SampleLoss | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    class_weights: Any | None = None,
    normalize_loss: bool = False,
    balance: Any | None = None,
    method: str = DEFAULT_METHOD,
    warmup_epochs: int | None = None,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    fingerprint: str | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    on_error: str = "skip",
    progress: bool = True,
    process_group: Any | None = None,
) -> PruneResult:
    """Train ``model`` on ``data`` and learn which samples to keep, in one run.

    The run trains ``model`` in place, from its current weights, on fewer samples in each epoch. At
    the end ``model`` has the weights of the last epoch. The run reads fewer samples than an
    ordinary run with as many epochs: the warm-up reads all of them, and later epochs read from all
    down to ``keep_ratio`` of them. Each epoch also reads pruned samples, up to 2 % of N, so that
    they can return.

    Where ``torch.distributed`` is initialised, all processes train together: W ranks with batches
    of B train and select like one process with batches of W·B. Each rank calls ``fast_prune`` with
    the same arguments and gets the same result. Rank 0 shows the progress and writes checkpoints.

    Args:
        model: takes a batch of inputs and returns logits ``[B, C]`` or ``[B, C, ...]``, or an
            object with the logits as ``.logits``, or a mapping with them as "logits" or "out", or
            with ``loss`` any outputs that ``loss`` takes. Inputs that are a mapping are passed as
            keywords.
            If its weights are in ``torch.channels_last``, batches of images are in that format too.
            With many ranks, a plain model is wrapped in ``DistributedDataParallel``. A model that
            is wrapped in it or sharded by ``fully_shard`` already is taken as it is.
        data: a map-style dataset of (input, target), the path of an image folder, WebDataset
            shards, (inputs, targets) as tensors, arrays or .npy files, or a Hugging Face dataset;
            see :func:`adapruner.data.as_source`.
        keep_ratio: share of the samples to keep, in (0, 1]; exactly ⌊keep_ratio·N + ½⌋ are kept.
            If fewer can be read, all readable samples are kept, with a warning. If more than 5 % of
            N are missing to that number, it is an error.
        epochs: epochs of the run. A run selects well if it fits most of the data. A new model needs
            ten epochs or more.
        batch_size: samples in a batch of this process.
        seed: seed of the order, the held-out part, the augmentation and the model's dropout.
        device: "cpu" or a CUDA device; the device of the model where None.
        loader: "torch" is a DataLoader. "dali" is NVIDIA DALI: its native threads decode images of
            folders and shards, take uint8 arrays, and apply the transforms of
            :mod:`adapruner.vision`. "auto" is DALI if it is installed and can read the samples, and
            else "torch". The result's ``config`` holds the loader, the reason, and the loader of
            the evaluation.
        num_workers: processes that read samples. With DALI, its threads; one per core where 0.
        block_size: for slow disks, the size of blocks of neighbouring samples that are read
            together; see :func:`adapruner.pruning.order.block_order`. Where None, all samples are
            mixed.
        columns, target: where an item has its inputs and its target; see
            :func:`adapruner.data.as_source`.
        transform: applied to each input of the training data. Where None, the images of a folder,
            of shards or of a Hugging Face dataset become tensors in [0, 1] and must have one size.
        evaluation_transform: applied instead to the held-out samples and to ``validation_data``;
            ``transform`` where None.
        validation_data: held-out data, in any form of ``data``, with the same numbers of the
            classes. Where None, 5 % of ``data`` (at most 5,000 samples) is held out of the
            training. These samples are ranked by their losses in the evaluations, and kept by their
            own share. If 5 % is below 20 samples, nothing is held out.
        learning_rate: highest learning rate of the default optimiser; 2e-3 where None.
        optimizer: function of the model's parameters. It returns an optimiser, or an optimiser and
            a learning rate scheduler, which is stepped once per epoch. Where None, AdamW with a
            one-cycle learning rate. On a GPU, make the optimiser with ``fused=True``: with any
            other optimiser, the host waits for the GPU in every step.
        precision: "fp32", or "bf16" for the model and the losses under :class:`torch.autocast`. A
            CPU that does not compute in bfloat16 emulates it, which is much slower than "fp32".
        compile: call the model through :func:`torch.compile`.
        loss: function of (outputs, targets). It returns the loss of each sample, ``[B]``, at least
            0, unreduced. Where None, cross entropy. :mod:`adapruner.training.losses` has losses for
            common tasks. Samples without a target have their inputs as targets. It is also called
            with constant outputs; see :meth:`adapruner.Pruner.custom_loss`.
        ignore_index: target that the cross entropy ignores, for pixels or tokens without a class.
        label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
        class_weights: weight of each class in the cross entropy, ``[C]``.
        normalize_loss: for losses that are not on the scale of cross entropy; see
            :class:`adapruner.Pruner`.
        balance: "class" keeps exactly the same share of every class. Integers ``[N]``, the group
            of each sample, keep the same share of every group, such as the frames of one video.
            Where None and the classes of all samples are known before the run, three quarters of
            the kept set are dealt evenly over the classes, so that rare classes keep their samples,
            and the draw decides on the rest. It needs the method "sampled". Near-duplicates that
            lie together in the dataset are found, with a warning; name them as groups if you can.
        method: "sampled" draws samples by their gates; "published" keeps the largest gate logits,
            as the paper does.
        warmup_epochs: epochs before the gates start; 0 for a model that is trained already. About a
            tenth of ``epochs`` where None.
        collate_fn: makes a batch from a list of (input, target).
        fingerprint: a string that identifies the dataset, in place of its content.
        checkpoint_dir: folder for a checkpoint after each epoch, outside the image folder. A
            checkpoint that is already there is resumed. The folder is locked until the run ends, so
            each run needs its own.
        on_error: "skip" leaves out unreadable samples, lists them in the result and never keeps
            them; "raise" stops at the first one.
        progress: show the progress on standard error.
        process_group: the processes that train on different samples; see
            :class:`adapruner.Pruner`.

    Returns:
        The kept indices, the gate logits, and the record of the run.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value.
        IndexError: a target is out of range for the model's logits.
        DatasetMismatchError: the checkpoint belongs to another dataset.
        FileFormatError: the checkpoint is damaged.
        FolderInUseError: another run is using ``checkpoint_dir``.
        UnreadableSampleError: a sample is unreadable and ``on_error="raise"``, or no sample is
            readable.
        FloatingPointError: no batch of an epoch had a finite loss, and no sample was excluded
            because its input is not finite.
        RuntimeError: called under :class:`torch.no_grad` or :class:`torch.inference_mode`.
        RankError: another rank has failed.

    Example:
        >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
        >>> model = torch.nn.Linear(5, 3)
        >>> result = fast_prune(model, (x, y), keep_ratio=0.7, epochs=3, progress=False)
        >>> len(result.indices)
        45
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; found {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have a parameter that requires gradients; found none")
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "fast_prune trains the model; found it called under torch.no_grad() or inference_mode()"
        )
    if evaluation_transform is not None and not callable(evaluation_transform):
        raise TypeError(
            "evaluation_transform must be callable or None; found "
            f"{type(evaluation_transform).__name__}"
        )
    if not callable(collate_fn):
        raise TypeError(f"collate_fn must be callable; found {type(collate_fn).__name__}")
    if learning_rate is not None and optimizer is not None:
        raise ValueError(
            "expected learning_rate or optimizer; found both (learning_rate is for the default "
            "optimiser)"
        )
    if learning_rate is not None:
        learning_rate = checked_real("learning_rate", learning_rate, "a number above 0")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0; found {learning_rate}")
    seed, batch_size = checked_whole("seed", seed, 0), checked_whole("batch_size", batch_size, 1)
    num_workers = checked_whole("num_workers", num_workers, 0)
    if block_size is not None:
        block_size = checked_whole("block_size", block_size, 1)
    compile = bool(compile)
    where = check_device(_device_of(model) if device is None else device)
    cross_entropy = _cross_entropy(loss, class_weights, ignore_index, label_smoothing)
    source = training_source(data, transform, collate_fn, fingerprint, columns, target)
    _check_outside(checkpoint_dir, source)
    labels = quota_labels(balance, source)
    held_out = None if validation_data is not None else hold_out(len(source), seed)
    pruner = Pruner(
        len(source),
        keep_ratio,
        epochs,
        warmup_epochs=warmup_epochs,
        method=method,
        seed=seed,
        labels=labels,
        held_out=held_out,
        normalize_loss=normalize_loss,
        device=where,
        process_group=process_group,
    )
    ranks = pruner.ranks
    shared, parallel = shared_model(model.to(where), ranks, where)
    trainer = Trainer(
        shared,
        pruner,
        loss,
        learning_rate,
        optimizer,
        precision,
        compile,
        progress,
        on_error,
        cross_entropy,
    )
    training_choice = choose_loader(loader, source, collate_fn)
    batches = training_loader(
        training_choice,
        source,
        pruner,
        batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn,
        block_size=block_size,
        on_error=on_error,
    )
    if validation_data is None:
        evaluated = _evaluation_source(source, evaluation_transform)
        indices = np.zeros(0, dtype=np.int64) if held_out is None else held_out
    else:
        evaluated = training_source(
            validation_data,
            evaluation_transform or transform,
            collate_fn,
            **fitting(validation_data, columns, target),
        )
        other = _other_numbers(source.class_names, evaluated.class_names)
        if other is not None and loss is None:
            raise ValueError(other)
        pruner.warn("class_names", other)
        indices = np.arange(len(evaluated))
    evaluation_choice = choose_loader(
        "torch" if training_choice.name == "torch" else "auto", evaluated, collate_fn
    )
    evaluation = held_out_loader(
        evaluation_choice,
        evaluated,
        indices,
        batch_size,
        ranks=ranks,
        seed=seed,
        num_workers=num_workers,
        collate_fn=collate_fn,
        device=where,
    )
    if trainer.progress:
        tell(
            f"loader: {training_choice.name} ({training_choice.why}); "
            f"held-out samples: {evaluation_choice.name}"
        )
        if not ranks.alone:
            tell(f"ranks: {ranks.size}; the model: {parallel}")
    settings = {
        "loader": training_choice.name,
        "batch_size": batch_size,
        "block_size": block_size,
        "model": describe(core_of(model)),
        "optimizer": [type(trainer.optimizer).__name__, type(trainer.scheduler).__name__],
        "learning_rate": trainer.highest_rate,
        "precision": precision,
        "loss": None if loss is None else _name_of(loss),
        "class_weights": None if (w := cross_entropy.weight) is None else w.tolist(),
        "ignore_index": cross_entropy.ignore_index,
        "label_smoothing": cross_entropy.label_smoothing,
        "validation_data": None if validation_data is None else evaluated.fingerprint(),
        "transform": describe_function(transform or getattr(data, "transform", None)),
        "evaluation_transform": describe_function(evaluation_transform),
        "collate_fn": describe_function(collate_fn),
        "loss_function": describe_function(loss),
    }
    same = {name: value for name, value in settings.items() if name not in FUNCTIONS}
    same |= {"evaluation_loader": evaluation_choice.name, "held_out_samples": len(indices)}
    ranks.meet("fast_prune", None, **same)
    writes = checkpoint_dir if trainer.leads else None
    with ranks.failing_together(), _training_mode_kept(model), _reserved(writes):
        if checkpoint_dir is not None:
            trainer.resume(checkpoint_dir, settings)
        while not pruner.finished:
            with _seeded(seed, pruner.epoch, ranks.rank, where):
                trainer.train(batches)
                losses = trainer.evaluate(evaluation, observe=validation_data is None)
            trainer.end_epoch(losses)
            if checkpoint_dir is not None:
                trainer.checkpoint(checkpoint_dir, settings)
    more = {
        "batch_size": batch_size,
        "device": where.type if ranks.size > 1 else str(where),
        "precision": precision,
        "compile": compile,
        "loader": training_choice.name,
        "loader_reason": training_choice.why,
        "evaluation_loader": evaluation_choice.name,
        "ranks": ranks.size,
        "parallel": parallel,
    }
    trainer.warn_of_steps_left_out()
    result = pruner.result()
    return replace(result, config=result.config | more)


def _cross_entropy(
    loss: SampleLoss | None, class_weights: Any, ignore_index: int, label_smoothing: float
) -> CrossEntropy:
    """The options of the default loss.

    Raises:
        TypeError: ``loss`` is no function.
        ValueError: an option has a wrong value, or is given together with ``loss``.
    """
    if loss is not None:
        check_loss(loss)
    weights = None if class_weights is None else _weights_of(class_weights)
    label_smoothing = checked_real("label_smoothing", label_smoothing, "a share in [0, 1]")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1]; found {label_smoothing}")
    ignore_index = checked_whole("ignore_index", ignore_index, -(2**63))
    options = CrossEntropy(weights, ignore_index, label_smoothing)
    given = weights is not None or options[1:] != CrossEntropy()[1:]
    if loss is not None and given:
        raise ValueError(
            "class_weights, ignore_index and label_smoothing are for the cross entropy; found them "
            "together with loss"
        )
    return options


def _weights_of(class_weights: Any) -> torch.Tensor:
    message = f"class_weights must be numbers of at least 0, [C]; found {class_weights!r}"
    try:
        weights = torch.as_tensor(class_weights, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(message) from error
    if weights.dim() != 1 or not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(message)
    return weights


def _name_of(loss: SampleLoss) -> str:
    """The name of a function, or of the class of another callable."""
    return str(getattr(loss, "__qualname__", type(loss).__qualname__))


def _device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the default device without parameters."""
    return next((p.device for p in model.parameters()), torch.get_default_device())


def _evaluation_source(source: Source, transform: Transform | None) -> Source:
    """``source`` with this transform in the place of its own, or of that below a Subset."""
    if transform is None:
        return source
    changed = copy.copy(source)
    if isinstance(changed, SubsetSource) and changed.transform is None and has_transform(changed):
        changed.base = _evaluation_source(changed.base, transform)
    else:
        changed.transform = transform
    return changed


def _check_outside(folder: str | os.PathLike[str] | None, source: Source) -> None:
    """Raise ValueError where checkpoints would be, or lie in, a class folder of the images."""
    if folder is None or source.root is None or source.kind != "image folder":
        return
    inside = os.path.relpath(os.path.realpath(folder), os.path.realpath(source.root))
    # Names that start with a dot are no classes. ".." is outside.
    if inside == os.curdir or not any(part.startswith(".") for part in inside.split(os.sep)):
        raise ValueError(
            f"checkpoint_dir must be outside the image folder {source.root}, whose folders are "
            f"classes; found {os.fspath(folder)}"
        )


def _other_numbers(names: list[str] | None, others: list[str] | None) -> str | None:
    """A message if validation data number a class of the data otherwise, or None."""
    numbers = {name: number for number, name in enumerate(names or ())}
    for number, name in enumerate(others or ()):
        if numbers.get(name, number) != number:
            return (
                f"validation_data must number the classes as data does; found {name!r} to be class "
                f"{numbers[name]} in data and class {number} in validation_data. Let both have the "
                "same classes"
            )
    return None


@contextmanager
def _seeded(seed: int, epoch: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for an epoch, and restore them at the end.

    Dropout and a collate function draw from them. Ranks drop different units. All threads share
    these generators, so runs in several threads take turns, epoch by epoch.
    """
    own = stream_seed(seed, epoch, Stream.MODEL) + rank
    on_gpu = device.type == "cuda"
    with generators_restored(), torch.random.fork_rng(devices=[device] if on_gpu else []):
        seed_generators(own)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        yield


@contextmanager
def _reserved(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Make the folder of the checkpoints, and hold its lock."""
    if folder is None:
        yield
        return
    os.makedirs(folder, exist_ok=True)  # now, so that a bad place shows before the first epoch
    with locked_folder(folder):
        yield


@contextmanager
def _training_mode_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
