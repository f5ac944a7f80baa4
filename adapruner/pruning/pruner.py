"""Pruner: dataset pruning in a training loop of one's own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from adapruner import ops
from adapruner._util.checks import check_tensors, check_whole
from adapruner.errors import DatasetMismatchError
from adapruner.ops.device import check_device
from adapruner.pruning import bitmask
from adapruner.pruning.arguments import (
    check_held_out,
    check_labels,
    check_one_process,
    checked_warmup,
)
from adapruner.pruning.gates import Gates
from adapruner.pruning.history import entry_of
from adapruner.pruning.methods import DEFAULT_METHOD, current_name, find_method
from adapruner.pruning.sampler import PrunedBatchSampler, Samples
from adapruner.pruning.schedule import Best, Controller, choose_best
from adapruner.pruning.selection import Selection, check_keep_ratio, keep_count

if TYPE_CHECKING:
    from adapruner.data.loaders.torch_loader import PrunedLoader
    from adapruner.results.result import PruneResult


_STATE = (
    *("settings", "fingerprint", "segments", "epoch", "history", "controller", "gates"),
    *("kept", "read", "best", "unreadable", "not_finite"),
)


class Pruner:
    """Learns which samples to keep while the user's own loop trains the model.

    A loop calls :meth:`loss` (or :meth:`weigh`) once for each batch, :meth:`step` at the end of
    each epoch, and :meth:`result` at the end. An epoch trains on the samples of :meth:`reads`; the
    loader of :meth:`loader` and :class:`adapruner.PrunedSampler` read them. The model and the
    optimiser are never touched.

    Args:
        num_samples: N, the number of samples of the dataset.
        keep_ratio: share of the samples to keep, in (0, 1]; exactly ⌊keep_ratio·N + ½⌋ are kept.
        epochs: epochs of the run, at least 1.
        warmup_epochs: epochs at the start that train on everything, unweighted, while the gates do
            not step; 0 for a model that is trained already. About a tenth of ``epochs`` where None.
        method: "sampled" draws samples by their gates; "published" keeps the largest gate logits,
            as the paper does.
        seed: seed of the order, the exploration and the augmentation.
        labels: integers ``[N]``; where given, every class keeps exactly its share.
        held_out: dataset indices that the loop does not train on. They take their losses from
            :meth:`observe` and compete among themselves for their own share.
        explore: each epoch also reads this share of N of pruned samples, so that they can return.
        normalize_loss: divide losses by their running mean in the pressure, for losses that are not
            on the scale of cross entropy.
        track_losses: keep the last loss of every sample (4 bytes a sample). Gates then also step in
            epochs that do not visit them. Without it, a later visit stands for those epochs, and
            short runs select less like runs that visit all.
        device: device of the gates and the losses, "cpu" or a CUDA device; torch's default where
            None. Errors that a GPU finds in a batch are raised by :meth:`step`.

    Attributes:
        epoch: the current epoch, from 0.
        history: one entry for each epoch that has ended; see :class:`adapruner.PruneResult`.

    Example:
        >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
        >>> model = torch.nn.Linear(5, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruner = Pruner(64, keep_ratio=0.5, epochs=4)
        >>> loader = pruner.loader((x, y), batch_size=16)
        >>> for epoch in range(4):
        ...     for inputs, targets, ids in loader:
        ...         loss = pruner.loss(model(inputs), targets, ids)
        ...         loss.backward(); optimizer.step(); optimizer.zero_grad()
        ...     summary = pruner.step()
        >>> len(pruner.result().indices)
        32
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float = 0.7,
        epochs: int = 20,
        *,
        warmup_epochs: int | None = None,
        method: str = DEFAULT_METHOD,
        seed: int = 0,
        labels: Any | None = None,
        held_out: Any | None = None,
        explore: float = 0.02,
        normalize_loss: bool = False,
        track_losses: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        check_one_process()
        check_whole("num_samples", num_samples, 1)
        check_whole("epochs", epochs, 1)
        check_whole("seed", seed, 0)
        keep_ratio = check_keep_ratio(keep_ratio, num_samples)
        warmup_epochs = checked_warmup(warmup_epochs, epochs)
        if not 0 <= explore <= 1:
            raise ValueError(f"explore must be a share in [0, 1]; found {explore}")
        device = check_device(device)
        self.num_samples = num_samples
        self.keep_ratio = keep_ratio
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.seed = seed
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.method = find_method(method).at(keep_ratio, epochs)
        self.gates = Gates(
            num_samples, keep_ratio, self.method, device, track_losses, normalize_loss
        )
        self.gates.set_integer("resting", int(warmup_epochs > 0))
        self.selection = Selection(
            num_samples,
            keep_ratio,
            seed=seed,
            labels=None if labels is None else check_labels(labels, num_samples),
            held_out=None if held_out is None else check_held_out(held_out, num_samples),
            explore=explore,
        )
        self.controller = Controller(
            epochs, warmup_epochs, keep_ratio, self.method.slope, self.method.descent
        )
        self.settings = {
            "keep_ratio": keep_ratio,
            "epochs": epochs,
            "warmup_epochs": warmup_epochs,
            "method": current_name(method),
            "seed": seed,
            "balance": None if labels is None else "class",
            "held_out": self.selection.held_out_count,
            "explore": explore,
            "normalize_loss": normalize_loss,
            "track_losses": track_losses,
        }
        self.best: Best | None = None
        self.unreadable_reasons: dict[int, str] = {}
        self.not_finite: list[int] = []
        self.fingerprint = ""
        self.samples: Samples | None = None
        self._evaluated = 0
        self._started = time.perf_counter()

    # --- what an epoch reads

    def reads(self) -> np.ndarray:
        """Bools ``[N]``: the samples that the current epoch trains on. Each call makes a copy."""
        return bitmask.unpack(self.selection.read, self.num_samples)

    def read_mask(self) -> Tensor:
        """The same as bits, uint8 ``[ceil(N / 8)]``: sample i is bit i % 8 of byte i / 8."""
        return self.selection.read

    def planned_reads(self) -> list[int]:
        """Number of samples that each epoch of the run trains on.

        For the epochs that have ended this is what they read. For later ones it is the plan, which
        holds unless the controller pauses or samples turn out to be unreadable.
        """
        ended = [entry["samples_read"] for entry in self.history]
        if self.finished:
            return ended
        ratios = self.controller.planned_ratios(self.epoch)
        later = [self.selection.count_reads(ratio) for ratio in ratios]
        return [*ended, bitmask.count(self.selection.read), *later]

    def batches(
        self, batch_size: int, drop_last: bool = False, block_size: int | None = None
    ) -> Iterator[Tensor]:
        """The batches of the current epoch, as indices, for data that is in memory already.

        The data only needs random access, so it can lie on the device:

        >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
        >>> model, pruner = torch.nn.Linear(5, 3), Pruner(64, epochs=2)
        >>> for ids in pruner.batches(16):
        ...     loss = pruner.loss(model(x[ids]), y[ids], ids)

        Args:
            batch_size: samples in a batch; the last one may have fewer.
            drop_last: leave out a last batch that is not full.
            block_size: see :func:`adapruner.pruning.order.block_order`.

        Returns:
            Dataset indices, int64, on the gates' device, in the order that a :meth:`loader` has.
        """
        sampler = PrunedBatchSampler(self, batch_size, drop_last, block_size=block_size)
        return (self._on_device(ids) for ids in sampler.batches())

    def loader(
        self,
        dataset: Any,
        batch_size: int = 128,
        *,
        transform: Callable[[Any], Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        pin_memory: bool = False,
        drop_last: bool = False,
        block_size: int | None = None,
        on_error: str = "skip",
    ) -> PrunedLoader:
        """A loader of ``(inputs, targets, ids)`` that reads the samples of the current epoch.

        Args:
            dataset: anything that :func:`adapruner.data.as_source` takes, of N samples.
            batch_size, num_workers, collate_fn, pin_memory, drop_last: as in
                :class:`torch.utils.data.DataLoader`.
            transform: applied to each input. Where None, the images of a folder, of shards or of a
                Hugging Face dataset become tensors in [0, 1]; they must then be of one size.
            block_size: see :func:`adapruner.pruning.order.block_order`.
            on_error: "skip" leaves out unreadable samples and lists them in the result; "raise"
                stops at the first one.

        Raises:
            ValueError: the dataset has another length than N.
        """
        from adapruner.data.loaders.choice import training_source
        from adapruner.data.loaders.torch_loader import PrunedLoader

        return PrunedLoader(
            training_source(dataset, transform, collate_fn),
            self,
            batch_size,
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            drop_last=drop_last,
            block_size=block_size,
            on_error=on_error,
        )

    def note_samples(self, samples: Samples) -> None:
        """Take note of the dataset, of N samples. Each loader made for this pruner calls this."""
        if len(samples) != self.num_samples:
            raise ValueError(
                f"the dataset has {len(samples)} samples; this pruner is for {self.num_samples}"
            )
        self.fingerprint = samples.fingerprint()
        self.samples = samples

    # --- the losses of a batch

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        overwrite_logits: bool = False,
    ) -> Tensor:
        """The training loss of a batch: cross entropy. Each call also steps the gates.

        Some methods weigh the loss by the gates (the published one does); for others it is the
        plain mean.

        Gates step once for each call with gradients enabled, whatever becomes of the loss. They do
        not step under ``no_grad``, nor when activation checkpointing repeats a forward pass.

        Args:
            logits: ``[B, C]`` or ``[B, C, ...]``.
            target: ``[B]`` or ``[B, ...]``, integers.
            ids: ``[B]``, dataset indices of the samples, on any device.
            weight, ignore_index, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
            overwrite_logits: see :func:`adapruner.ops.masked_cross_entropy`.

        Returns:
            Scalar, with its graph.
        """
        check_tensors(logits=logits, target=target)
        ids = self._on_device(ids)
        losses = ops.masked_cross_entropy(
            logits,
            target,
            ids,
            self.gates.logits,
            self.gates.state,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            overwrite_logits=overwrite_logits,
        )
        self.gates.learn(ids, losses)
        return losses.loss

    def linear_loss(
        self,
        hidden: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """:meth:`loss` of the logits of a last linear layer, without holding all logits at once.

        Use it for large vocabularies, where logits are most of the memory of a step. Gates step as
        in :meth:`loss`.

        Args:
            hidden: inputs of the layer, ``[B, H]`` or ``[B, ..., H]``; ``[B, T, H]`` for a language
                model.
            linear_weight: ``[C, H]``; for a language model the weight of its head.
            target: ``[B]`` or ``[B, ...]``, integers; for a language model the next tokens.
            ids: ``[B]``, dataset indices of the samples.
            linear_bias: ``[C]``.
            weight, ignore_index, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.

        Returns:
            Scalar, with its graph on ``hidden``, ``linear_weight`` and ``linear_bias``.

        Example:
            >>> head = torch.nn.Linear(8, 1000)
            >>> hidden, tokens = torch.randn(2, 5, 8), torch.randint(0, 1000, (2, 5))
            >>> pruner = Pruner(64, epochs=2)
            >>> ids = torch.tensor([7, 40])
            >>> loss = pruner.linear_loss(hidden, head.weight, tokens, ids, linear_bias=head.bias)
            >>> loss.backward()
        """
        check_tensors(hidden=hidden, linear_weight=linear_weight, target=target)
        ids = self._on_device(ids)
        losses = ops.masked_linear_cross_entropy(
            hidden,
            linear_weight,
            linear_bias,
            target,
            ids,
            self.gates.logits,
            self.gates.state,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
        self.gates.learn(ids, losses)
        return losses.loss

    def weigh(self, sample_loss: Tensor, ids: Tensor) -> Tensor:
        """The training loss of a batch from per-sample losses, for any task. Steps the gates.

        Args:
            sample_loss: ℓ ≥ 0, ``[B]``, unreduced, with its graph.
            ids: ``[B]``, dataset indices of the samples.

        Returns:
            1/B · Σ s_i·ℓ_i, scalar, with its graph; s_i is 1 where the method does not weigh.
        """
        check_tensors(sample_loss=sample_loss)
        ids = self._on_device(ids)
        losses = ops.masked_loss(sample_loss, ids, self.gates.logits, self.gates.state)
        self.gates.learn(ids, losses)
        return losses.loss

    def observe(self, sample_loss: Tensor, ids: Tensor) -> None:
        """Take in losses of held-out samples from an evaluation. Each counts as a visit.

        Args:
            sample_loss: ℓ ≥ 0, ``[B]``.
            ids: ``[B]``, dataset indices of the samples.
        """
        check_tensors(sample_loss=sample_loss)
        ids = self._on_device(ids)
        losses = ops.masked_loss(sample_loss.detach(), ids, self.gates.logits, self.gates.state)
        self.gates.observe(ids, losses)
        self._evaluated += len(ids)

    def _on_device(self, ids: Tensor) -> Tensor:
        """The ids on the gates' device. Loaders give them on the CPU; the device does not wait."""
        if not isinstance(ids, Tensor):
            ids = torch.as_tensor(ids, device="cpu")
        return ids.to(self.gates.state.device, non_blocking=True)

    # --- unreadable samples

    @property
    def unreadable(self) -> list[tuple[int, str]]:
        """(index, reason) of the unreadable samples, by index."""
        return sorted(self.unreadable_reasons.items())

    def exclude(self, unreadable: Sequence[tuple[int, str]]) -> None:
        """Note (index, reason) of unreadable samples. They are never kept."""
        for index, reason in unreadable:
            self.unreadable_reasons.setdefault(index, reason)
        indices = torch.tensor([index for index, _ in unreadable], dtype=torch.int64, device="cpu")
        self.gates.exclude(indices)
        if self.best is not None and bitmask.holds_any(self.best.mask, indices):
            self.best = None

    # --- the end of an epoch

    @property
    def finished(self) -> bool:
        """Whether every epoch has been stepped."""
        return self.epoch >= self.epochs

    def step(
        self, validation_loss: float | None = None, standard_error: float = 0.0
    ) -> dict[str, Any]:
        """End the epoch: choose what the next one reads.

        Args:
            validation_loss: mean loss on held-out data. Where given, the schedule pauses when the
                loss falls behind its best, and a method that chooses the best selection does so by
                it.
            standard_error: standard error of that mean.

        Returns:
            The epoch's entry of the history.

        Raises:
            RuntimeError: the run has ended already.
            ValueError: fewer samples can be read than are to be kept.
            IndexError: a GPU has found an id or a target out of range in a batch of this epoch.
        """
        if self.finished:
            raise RuntimeError(f"this run has ended after {self.epochs} epochs")
        gates, selection, controller = self.gates, self.selection, self.controller
        gates.check_errors()
        warming_up = self.epoch < self.warmup_epochs
        loss = None if validation_loss is None else float(validation_loss)
        entry = entry_of(self.epoch, warming_up, gates, selection, loss, self._evaluated)
        self.not_finite += [i for i in gates.not_finite() if i not in self.not_finite]
        if not warming_up and loss is not None:
            self._note_best(loss, float(standard_error))
        entry["decision"] = controller.step(self.epoch, loss, float(standard_error))
        gates.end_epoch()
        if warming_up and self.epoch + 1 == self.warmup_epochs:
            gates.set_integer("resting", 0)
        # Nothing is pruned before every sample was visited once.
        pruning = not warming_up and not gates.any_unvisited()
        last = self.epoch + 1 == self.epochs
        ratio = self.keep_ratio if last else controller.ratio_now if pruning else 1.0
        keys = None
        if ratio < 1:
            keys = self.method.keys(gates, [*self.history, entry], self.seed, final=last)
        selection.select(gates, ratio, controller.slope_now, keys)
        self.epoch += 1
        selection.explore_pruned(gates, self.epoch)
        entry["seconds"] = time.perf_counter() - self._started
        self._started, self._evaluated = time.perf_counter(), 0
        self.history.append(entry)
        return entry

    def _note_best(self, validation_loss: float, standard_error: float) -> None:
        """Remember the selection of this epoch if it is at r and among the best."""
        kept = self.selection.kept
        if not self.method.chooses_best or not math.isfinite(validation_loss):
            return
        if self.selection.kept_count != keep_count(self.keep_ratio, self.num_samples):
            return
        if (kept & ~self.gates.readable()).any():
            return
        self.best = choose_best(self.best, validation_loss, standard_error, self.epoch, kept)

    # --- the outcome, and saving

    def result(self) -> PruneResult:
        """The outcome of the run.

        Raises:
            RuntimeError: the run has not ended.
        """
        from adapruner.results.making import result_of

        return result_of(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from the start of the current epoch: tensors and plain values."""
        return {
            "settings": dict(self.settings),
            "fingerprint": self.fingerprint,
            "segments": self.selection.digest(),
            "epoch": self.epoch,
            "history": [dict(entry) for entry in self.history],
            "controller": self.controller.state_dict(),
            "gates": {name: tensor.clone() for name, tensor in self.gates.state_dict().items()},
            "kept": self.selection.kept.clone(),
            "read": self.selection.read.clone(),
            "best": None if self.best is None else self.best._asdict(),
            "unreadable": [list(item) for item in self.unreadable_reasons.items()],
            "not_finite": list(self.not_finite),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            DatasetMismatchError: the state is of another dataset, where both are known.
            ValueError: it is from a run of other settings or another number of samples; or it is
                not a state of a Pruner.
        """
        if missing := [name for name in _STATE if name not in state]:
            raise ValueError(f"this is not a state of a Pruner: it lacks {', '.join(missing)}")
        theirs = state["fingerprint"]
        if theirs and self.fingerprint and theirs != self.fingerprint:
            raise DatasetMismatchError(
                f"the state belongs to another dataset: it was made for fingerprint {theirs}, the "
                f"loader of this pruner is for {self.fingerprint}"
            )
        for name, value in self.settings.items():
            found = state["settings"].get(name)
            if (current_name(found) if name == "method" else found) != value:
                raise ValueError(
                    f"the state is from a run with {name}={found!r}; this one has {name}={value!r}"
                )
        if state["segments"] != self.selection.digest():
            raise ValueError("the state is from a run with other labels or other samples held out")
        self.gates.load_state_dict(state["gates"])
        self.epoch = state["epoch"]
        self.history = [dict(entry) for entry in state["history"]]
        self.controller.load_state_dict(state["controller"])
        self.selection.kept = state["kept"].clone()
        self.selection.read = state["read"].clone()
        self.best = None if state["best"] is None else Best(**state["best"])
        self.unreadable_reasons = {index: reason for index, reason in state["unreadable"]}
        self.not_finite = list(state["not_finite"])
        self._started = time.perf_counter()
