"""Pruner: dataset pruning in a training loop of one's own."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from adapruner import masks
from adapruner.arguments import (
    check_device,
    check_held_out,
    check_labels,
    check_one_process,
    check_whole,
)
from adapruner.checkpoint import to_cpu
from adapruner.controller import Best, Controller, choose_best
from adapruner.data.base import Source, Transform
from adapruner.data.loader import PrunedLoader
from adapruner.data.plan import Plan
from adapruner.gates import Gates
from adapruner.info import version_of
from adapruner.loading import training_source
from adapruner.losses import Losses
from adapruner.methods import DEFAULT_METHOD, find_method
from adapruner.result import DatasetMismatchError, PruneResult
from adapruner.sampling import draw, preferences
from adapruner.selection import Selection, check_keep_ratio, keep_count

_STATE = (
    *("settings", "fingerprint", "segments", "epoch", "history", "controller", "gates"),
    *("kept", "read", "best", "unreadable", "not_finite"),
)


class Pruner(Losses):
    """Learns which samples to keep while the user's own loop trains the model.

    One call of :meth:`loss` (or :meth:`weigh`) for each batch, one :meth:`step` at the end of each
    epoch, :meth:`result` in the end. An epoch is meant to read the samples that :meth:`reads`
    marks; the loader of :meth:`loader` does. The optimiser is the user's and never touched.

    Args:
        num_samples: N, the number of samples of the dataset.
        keep_ratio: share of the samples to keep, in (0, 1]; exactly ⌊keep_ratio·N + ½⌋ are kept.
        epochs: epochs of the run, at least 1.
        warmup_epochs: epochs at the start that train on everything, unweighted, while gates rest;
            0 for a model that is trained already. About a tenth of ``epochs`` where None.
        method: "sampled", which draws samples by their gates, or "adapruner", the published
            objective, which keeps the largest.
        seed: of the order, the exploration and the augmentation.
        labels: integers ``[N]``; given, every class keeps its share, exactly.
        held_out: dataset indices that the loop does not train on: they take their losses from
            :meth:`observe` and compete among themselves for their own share.
        explore: share of N of pruned samples that each epoch reads besides, so that one can return.
        normalize_loss: divide losses by their running mean in the pressure, for losses that are not
            on the scale of cross entropy.
        track_losses: keep the last loss of every sample (4 bytes a sample), by which gates step in
            epochs that do not visit them; without it, a later visit stands for those epochs, and
            short runs select less like runs that visit all.
        device: of the gates and the losses, "cpu" or a CUDA device; torch's default where None.
            What a GPU's kernels find wrong with a batch is raised by :meth:`step`.

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
        if warmup_epochs is None:
            warmup_epochs = min(max(round(0.1 * epochs), 1), epochs - 1)
        check_whole("warmup_epochs", warmup_epochs, 0)
        if warmup_epochs >= epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs ({epochs}), so that gates learn; "
                f"found {warmup_epochs}"
            )
        if not 0 <= explore <= 1:
            raise ValueError(f"explore must be a share in [0, 1]; found {explore}")
        device = check_device(device)
        self._constants = find_method(method).at(keep_ratio, epochs)
        self.num_samples = num_samples
        self.keep_ratio = keep_ratio
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.method = method
        self.seed = seed
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        gates = Gates(num_samples, keep_ratio, self._constants, device, track_losses)
        super().__init__(gates, normalize_loss)
        self.selection = Selection(
            num_samples,
            keep_ratio,
            seed=seed,
            labels=None if labels is None else check_labels(labels, num_samples),
            held_out=None if held_out is None else check_held_out(held_out, num_samples),
            explore=explore,
        )
        self.controller = Controller(epochs, warmup_epochs, keep_ratio, self._constants.slope)
        gates.set_integer("resting", int(warmup_epochs > 0))
        self._settings = {
            "keep_ratio": keep_ratio,
            "epochs": epochs,
            "warmup_epochs": warmup_epochs,
            "method": method,
            "seed": seed,
            "balance": None if labels is None else "class",
            "held_out": self.selection.held_out_count,
            "explore": explore,
            "normalize_loss": normalize_loss,
            "track_losses": track_losses,
        }
        self._best: Best | None = None
        self._unreadable: dict[int, str] = {}
        self._not_finite: list[int] = []
        self.fingerprint = ""
        self._source: Source | None = None
        self._started = time.perf_counter()

    def reads(self) -> np.ndarray:
        """Bools ``[N]``, made anew by each call: the samples that the current epoch trains on."""
        return masks.unpack(self.selection.read, self.num_samples)

    def read_mask(self) -> Tensor:
        """The same as bits, uint8 ``[ceil(N / 8)]``: sample i is bit i % 8 of byte i / 8."""
        return self.selection.read

    def batches(
        self, batch_size: int, drop_last: bool = False, block_size: int | None = None
    ) -> Iterator[Tensor]:
        """What the current epoch trains on, batch by batch, for data that is in memory already.

        Random access and nothing else is asked of the data, so that it can lie on the device:

        >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
        >>> model, pruner = torch.nn.Linear(5, 3), Pruner(64, epochs=2)
        >>> for ids in pruner.batches(16):
        ...     loss = pruner.loss(model(x[ids]), y[ids], ids)

        Args:
            batch_size: samples in a batch; the last one may have fewer.
            drop_last: leave out a last batch that is not full.
            block_size: see :class:`adapruner.data.loader.PrunedLoader`.

        Returns:
            Dataset indices, int64, on the gates' device, in the order that a :meth:`loader` has.
        """
        plan = Plan(self, batch_size, drop_last, block_size)
        return (self._on_device(ids) for ids in plan.batches())

    @property
    def finished(self) -> bool:
        """Whether every epoch has been stepped."""
        return self.epoch >= self.epochs

    def loader(
        self,
        dataset: Any,
        batch_size: int = 128,
        *,
        transform: Transform | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        pin_memory: bool = False,
        drop_last: bool = False,
        block_size: int | None = None,
        on_error: str = "skip",
    ) -> PrunedLoader:
        """A loader of ``(inputs, targets, ids)`` that reads what the current epoch trains on.

        Args:
            dataset: anything that :func:`adapruner.data.as_source` takes, of N samples.
            batch_size, num_workers, collate_fn, pin_memory, drop_last: as in
                :class:`torch.utils.data.DataLoader`.
            transform: applied to each input. Where None, the images of a folder, of shards or of a
                Hugging Face dataset become tensors in [0, 1]; they must then be of one size.
            block_size: see :class:`adapruner.data.loader.PrunedLoader`.
            on_error: "skip" leaves samples out that cannot be read and lists them in the result;
                "raise" stops at the first one.

        Raises:
            ValueError: the dataset has another length than N.
        """
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

    def note_source(self, source: Source) -> None:
        """Take note of the dataset, of N samples: a loader made for this pruner calls this."""
        if len(source) != self.num_samples:
            raise ValueError(
                f"the dataset has {len(source)} samples; this pruner is for {self.num_samples}"
            )
        self.fingerprint = source.fingerprint()
        self._source = source

    @property
    def unreadable(self) -> list[tuple[int, str]]:
        """(index, reason) of the samples that cannot be read, by index."""
        return sorted(self._unreadable.items())

    def exclude(self, unreadable: Sequence[tuple[int, str]]) -> None:
        """Note (index, reason) of samples that cannot be read; they are never kept."""
        for index, reason in unreadable:
            self._unreadable.setdefault(index, reason)
        indices = torch.tensor([index for index, _ in unreadable], dtype=torch.int64)
        self.gates.exclude(indices)
        if self._best is not None and masks.holds_any(self._best.mask, indices):
            self._best = None

    def step(
        self, validation_loss: float | None = None, standard_error: float = 0.0
    ) -> dict[str, Any]:
        """End the epoch: choose what the next one reads.

        Args:
            validation_loss: mean loss on held-out data; given, the pace is held back when it falls
                behind. Of a method that does not draw, the latest of the selections with the lowest
                ones is chosen in the end.
            standard_error: of that mean.

        Returns:
            The epoch's entry of the history.

        Raises:
            RuntimeError: the run has ended already.
            ValueError: fewer samples can be read than are to be kept.
        """
        if self.finished:
            raise RuntimeError(f"this run has ended after {self.epochs} epochs")
        self.gates.check_errors()
        gates, selection, controller = self.gates, self.selection, self.controller
        warming_up = self.epoch < self.warmup_epochs
        kept = selection.kept_count
        entry: dict[str, Any] = {
            "epoch": self.epoch,
            "phase": "warm-up" if warming_up else "prune",
            "samples_read": masks.count(selection.read & gates.readable()),
            "samples_evaluated": self._evaluated,
            "kept": kept,
            "explored": masks.count(selection.explored()),
            "keep_ratio": kept / self.num_samples,
            "slope": gates.real("slope"),
            "mean_gate": gates.mean_gate,
            "open_share": gates.open_share,
            "training_loss": gates.training_loss(),
            "validation_loss": None if validation_loss is None else float(validation_loss),
        }
        self._not_finite += [i for i in gates.not_finite() if i not in self._not_finite]
        self._note_best(entry["validation_loss"], float(standard_error))
        entry["decision"] = controller.step(
            self.epoch, entry["validation_loss"], float(standard_error)
        )
        self._end_gate_epoch(warming_up)
        # Nothing is pruned before every sample was visited once.
        pruning = not warming_up and not gates.any_unvisited()
        last = self.epoch + 1 == self.epochs
        ratio = self.keep_ratio if last else controller.ratio_now if pruning else 1.0
        drawn = None
        if ratio < 1:
            drawn = draw(self._constants, gates, [*self.history, entry], self.seed, final=last)
        selection.select(gates, ratio, controller.slope_now, drawn)
        self.epoch += 1
        selection.explore_pruned(gates, self.epoch)
        entry["seconds"] = time.perf_counter() - self._started
        self._started, self._evaluated = time.perf_counter(), 0
        self.history.append(entry)
        return entry

    def _note_best(self, validation_loss: float | None, standard_error: float) -> None:
        """Remember the selection of this epoch if it is at the ratio wanted and among the best."""
        at_target = self.selection.kept_count == keep_count(self.keep_ratio, self.num_samples)
        # What an epoch reads is not drawn as what is kept is.
        if (
            self._constants.sampling is not None
            or not at_target
            or self.epoch < self.warmup_epochs
            or validation_loss is None
        ):
            return
        kept = self.selection.kept
        if not math.isfinite(validation_loss) or (kept & ~self.gates.readable()).any():
            return
        self._best = choose_best(self._best, validation_loss, standard_error, self.epoch, kept)

    def _end_gate_epoch(self, warming_up: bool) -> None:
        gates = self.gates
        mean_loss = gates.training_loss()
        if self._normalize and mean_loss:
            gates.set_real("loss_scale", mean_loss)
            self._use_running_scale(False)
        gates.drift()
        gates.end_epoch()
        if warming_up and self.epoch + 1 == self.warmup_epochs:
            gates.set_integer("resting", 0)

    def result(self) -> PruneResult:
        """The outcome.

        Raises:
            RuntimeError: the run has not ended.
        """
        if not self.finished:
            raise RuntimeError(
                f"the run has {self.epochs - self.epoch} of {self.epochs} epochs to go; call "
                "step() at the end of each"
            )
        mask, selected_epoch = self.selection.kept, None
        if self._best is not None:
            selected_epoch, mask = self._best.epoch, self._best.mask
        indices = masks.indices(mask)
        # Held back to the end: no epoch has trained at the ratio wanted.
        target = keep_count(self.keep_ratio, self.num_samples)
        at_target = any(e["phase"] == "prune" and e["kept"] == target for e in self.history)
        source = self._source
        targets = None if source is None else source.targets
        return PruneResult(
            indices=indices,
            gate_logits=to_cpu(preferences(self._constants, self.gates, self.history)),
            keep_ratio=self.keep_ratio,
            fingerprint=self.fingerprint,
            config=dict(self._settings),
            dataset={"num_samples": self.num_samples} if source is None else source.about(),
            history=[dict(entry) for entry in self.history],
            selected_epoch=selected_epoch,
            forced=not at_target,
            sample_losses=to_cpu(self.gates.last_loss),
            unreadable=self.unreadable,
            not_finite=sorted(self._not_finite),
            targets=None if targets is None else torch.from_numpy(targets),
            source=source,
            saved=self._saved(indices.numpy()),
            versions={
                "adapruner": version_of("adapruner") or "not installed",
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )

    def _saved(self, indices: np.ndarray) -> dict[str, int | float]:
        read = sum(entry["samples_read"] + entry["samples_evaluated"] for entry in self.history)
        full = self.epochs * self.num_samples
        seconds = sum(entry["seconds"] for entry in self.history)
        saved = {
            "samples": self.num_samples - len(indices),
            "samples_read": read,
            "samples_read_full": full,
            "seconds": seconds,
            "seconds_full": seconds / max(read, 1) * full,
        }
        if self._source is not None and (sizes := self._source.sizes) is not None:
            saved["bytes"] = int(sizes.sum() - sizes[indices].sum())
        return saved

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from the start of the current epoch: tensors and plain values."""
        return {
            "settings": dict(self._settings),
            "fingerprint": self.fingerprint,
            "segments": self.selection.digest(),
            "epoch": self.epoch,
            "history": [dict(entry) for entry in self.history],
            "controller": self.controller.state_dict(),
            "gates": {name: tensor.clone() for name, tensor in self.gates.state_dict().items()},
            "kept": self.selection.kept.clone(),
            "read": self.selection.read.clone(),
            "best": None if self._best is None else self._best._asdict(),
            "unreadable": [list(item) for item in self._unreadable.items()],
            "not_finite": list(self._not_finite),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            DatasetMismatchError: it is of another dataset, where both are known.
            ValueError: it is from a run of other settings or another number of samples; or it is no
                such state.
        """
        if missing := [name for name in _STATE if name not in state]:
            raise ValueError(f"this is no state of a Pruner: it lacks {', '.join(missing)}")
        theirs = state["fingerprint"]
        if theirs and self.fingerprint and theirs != self.fingerprint:
            raise DatasetMismatchError(
                f"the state belongs to another dataset: it was made for fingerprint {theirs}, the "
                f"loader of this pruner is for {self.fingerprint}"
            )
        for name, value in self._settings.items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"the state is from a run with {name}={state['settings'].get(name)!r}; "
                    f"this one has {name}={value!r}"
                )
        if state["segments"] != self.selection.digest():
            raise ValueError("the state is from a run with other labels or other samples held out")
        self.gates.load_state_dict(state["gates"])
        self._use_running_scale(bool(self.gates.integer("scale_running")))
        self.epoch = state["epoch"]
        self.history = [dict(entry) for entry in state["history"]]
        self.controller.load_state_dict(state["controller"])
        self.selection.kept = state["kept"].clone()
        self.selection.read = state["read"].clone()
        self._best = None if state["best"] is None else Best(**state["best"])
        self._unreadable = {index: reason for index, reason in state["unreadable"]}
        self._not_finite = list(state["not_finite"])
        self._started = time.perf_counter()
