"""The course of a run: gates, selections and schedule from epoch to epoch, saved and restored."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapruner._util.checks import check_same_dataset, checked_real, checked_whole
from adapruner._version import __version__
from adapruner.errors import PruningWarning
from adapruner.ops.device import check_device
from adapruner.pruning import bitmask, doubts
from adapruner.pruning.arguments import (
    check_balance,
    check_held_out,
    check_labels,
    checked_unreadable,
    checked_warmup,
)
from adapruner.pruning.constant import ConstantLoss
from adapruner.pruning.distributed import Ranks
from adapruner.pruning.gates import Gates
from adapruner.pruning.history import entry_of
from adapruner.pruning.methods import DEFAULT_METHOD, current_name, find_method
from adapruner.pruning.quotas import class_numbers
from adapruner.pruning.restored import check_parts, check_settings, check_state
from adapruner.pruning.sampler import Samples
from adapruner.pruning.schedule import Best, Controller, choose_best
from adapruner.pruning.selection import Selection, check_keep_ratio, keep_count
from adapruner.pruning.visits import Direct, Ended, Event, LeftOut, Visits


class Run:
    """The state of a run, and the samples that each epoch reads.

    :class:`adapruner.Pruner`, which adds the losses of a training loop, documents the arguments.
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
        balance: str = "class",
        held_out: Any | None = None,
        explore: float = 0.02,
        normalize_loss: bool = False,
        track_losses: bool = True,
        device: torch.device | str | None = None,
        process_group: Any | None = None,
    ) -> None:
        num_samples = checked_whole("num_samples", num_samples, 1)
        epochs = checked_whole("epochs", epochs, 1)
        seed = checked_whole("seed", seed, 0)
        keep_ratio = check_keep_ratio(keep_ratio, num_samples)
        warmup_epochs = checked_warmup(warmup_epochs, epochs)
        explore = checked_real("explore", explore, "a share in [0, 1]")
        if not 0 <= explore <= 1:
            raise ValueError(f"explore must be a share in [0, 1]; found {explore}")
        normalize_loss, track_losses = bool(normalize_loss), bool(track_losses)
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
        check_balance(balance, labels is not None, self.method.has_floors)
        self.selection = Selection(
            num_samples,
            keep_ratio,
            seed=seed,
            labels=None if labels is None else check_labels("labels", labels, num_samples),
            balance=balance,
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
            "balance": None if labels is None else balance,
            "held_out": self.selection.held_out_count,
            "explore": explore,
            "normalize_loss": normalize_loss,
            "track_losses": track_losses,
        }
        self.ranks = Ranks(process_group)
        self.visits: Visits = _visits_of(self.ranks)
        # The weight of each sample of an uneven share in this epoch: see note_share.
        self._share_weights: dict[int, float] = {}
        self.constant = ConstantLoss(num_samples, self.ranks)
        self.best: Best | None = None
        self.unreadable_reasons: dict[int, str] = {}
        self.not_finite: list[int] = []
        self.fingerprint = ""
        self.samples: Samples | None = None
        # Bytes that all ranks had fetched from an object store when the last epoch ended.
        self.bytes_read: int | None = None
        self.warnings: dict[str, str] = {}  # those of the run, by name
        self._told: set[str] = set()  # those that were shown
        self.may_drop = 0
        self._started = time.perf_counter()
        same = {
            "version": __version__,
            "num_samples": num_samples,
            **self.settings,
            "labels_and_held_out_samples": self.selection.digest(),
        }
        self.ranks.meet("Pruner", None, **same)
        self.warn("epochs", doubts.few_epochs(epochs, keep_ratio))

    def warn(self, name: str, text: str | None, stacklevel: int = 3) -> None:
        """Warn with ``text``, once for each ``name``. All results keep the text. None is silent."""
        if text is not None and name not in self.warnings:
            self.warnings[name] = text
            self.tell(text, stacklevel + 1)

    def tell(self, text: str, stacklevel: int = 3) -> None:
        """Warn with ``text``, once for each text. Of many ranks, rank 0 warns."""
        if self.ranks.first and text not in self._told:
            warnings.warn(text, PruningWarning, stacklevel=stacklevel)
        self._told.add(text)

    def reads(self) -> np.ndarray:
        """Bools ``[N]``: the samples that the current epoch trains on. Each call makes a copy."""
        return bitmask.unpack(self.selection.read, self.num_samples)

    def read_mask(self) -> Tensor:
        """:meth:`reads` as bits, uint8 ``[ceil(N / 8)]``: sample i is bit i % 8 of byte i / 8."""
        return self.selection.read

    @property
    def target_count(self) -> int:
        """K, the number of samples to keep in the end; all readable ones if there are fewer."""
        wanted = keep_count(self.keep_ratio, self.num_samples)
        return min(wanted, self.gates.integer("population"))

    def planned_reads(self) -> list[int]:
        """Number of samples that each epoch of the run trains on.

        Epochs that have ended count what they read. Later epochs count the plan, which changes if
        the controller pauses or samples turn out to be unreadable.
        """
        ended = [entry["samples_read"] for entry in self.history]
        if self.finished:
            return ended
        ratios = self.controller.planned_ratios(self.epoch)
        later = [self.selection.count_reads(ratio) for ratio in ratios]
        return [*ended, bitmask.count(self.selection.read), *later]

    def note_samples(self, samples: Samples) -> None:
        """Take note of the dataset, of N samples. Each loader made for this pruner calls this.

        A later dataset may hold the same samples in another form, so another fingerprint is only
        warned of. All ranks must call it.

        Raises:
            ValueError: ranks have different datasets.
            DatasetMismatchError: the dataset has another length than N, or it is not the dataset of
                the state that was loaded before.
        """
        check_same_dataset("this pruner", "number of samples", self.num_samples, len(samples))
        fingerprint = samples.fingerprint()
        self.ranks.meet("loader", fingerprint=fingerprint)
        if self.fingerprint and self.samples is None:  # of a loaded state
            check_same_dataset("the state", "fingerprint", self.fingerprint, fingerprint)
        if self.samples is not None and fingerprint != self.fingerprint:
            self.warn("datasets", doubts.OTHER_DATASET)
            return
        self.fingerprint, self.samples = fingerprint, samples
        unknown = self.selection.balance is None
        if unknown and samples.targets is not None and self.method.has_floors:
            self.selection.learn_classes(torch.from_numpy(class_numbers(samples.targets)))
        for name, text in samples.doubts.items():
            self.warn(name, text)

    def note_share(self, ids: Tensor, weight: float) -> None:
        """Note a rank's share of a batch. Ranks can have different numbers of its samples.

        Args:
            ids: the share, int64.
            weight: W·b/Σb, the factor that makes the mean over ranks of their mean losses the mean
                over the batch. 0 for a sample that stands in for an empty share.
        """
        if weight != 1:
            self._share_weights.update(dict.fromkeys(ids.tolist(), weight))
        elif self._share_weights:  # of other batches in the same epoch
            for index in ids.tolist():
                self._share_weights.pop(index, None)

    @property
    def unreadable(self) -> list[tuple[int, str]]:
        """(index, reason) of the unreadable samples, by index."""
        return sorted(self.unreadable_reasons.items())

    def exclude(self, unreadable: Sequence[tuple[int, str]]) -> None:
        """Note (index, reason) of unreadable samples. They are never kept.

        Other ranks learn of them when the ranks meet next. :meth:`state_dict` is a meeting only if
        the epoch has had a loss, so call :meth:`synchronize` on all ranks before it. After the end
        of the run nothing is noted.

        Raises:
            IndexError: an index is not a dataset index.
            TypeError: an item is no pair of a whole number and a reason.
        """
        left_out = checked_unreadable(unreadable, self.num_samples)
        self._take(LeftOut(left_out))
        if self.epoch == 0:
            self.constant.leave_out([index for index, _ in left_out])

    def _take(self, event: Event) -> None:
        for now in self.visits.take(event):
            self._act(now)

    def _act(self, event: Event) -> None:
        if isinstance(event, LeftOut):
            self._exclude(event.unreadable)
        elif event.evaluated:
            self.gates.observe(event.ids, event.losses, event.predicted)
        else:
            self.gates.learn(event.ids, event.losses, event.predicted)

    def _exclude(self, unreadable: Sequence[tuple[int, str]]) -> None:
        for index, reason in unreadable:
            self.unreadable_reasons.setdefault(index, reason)
        indices = torch.tensor([index for index, _ in unreadable], dtype=torch.int64, device="cpu")
        self.gates.exclude(indices)
        if self.best is not None and bitmask.holds_any(self.best.mask, indices):
            self.best = None

    @property
    def balance(self) -> str | None:
        """What gives the classes or parts of the dataset their shares, if the run ended now.

        "class", "floor" or None: see :class:`adapruner.pruning.selection.Selection`. "neighbours":
        each sample is compared with its neighbours in the dataset, instead of floors.
        """
        return self._balance_after(self.history)

    def _balance_after(self, history: Sequence[dict[str, Any]]) -> str | None:
        given = self.selection.balance
        if given != "class" and self.method.by_neighbours(history):
            return "neighbours"
        return given

    @property
    def finished(self) -> bool:
        """Whether every epoch has been stepped."""
        return self.epoch >= self.epochs

    def step(
        self, validation_loss: float | None = None, standard_error: float = 0.0
    ) -> dict[str, Any]:
        """End the epoch and select the samples of the next epoch. All ranks must call it.

        Args:
            validation_loss: mean loss on held-out data, the same on all ranks. Where given, the
                schedule pauses when the loss falls behind its best. A method that chooses the best
                selection uses the loss.
            standard_error: standard error of ``validation_loss``.

        Returns:
            The epoch's entry of the history.

        Raises:
            RuntimeError: the run has ended already.
            IndexError: a GPU has found an id or a target out of range in a batch of this epoch.
            ValueError: ranks have different held-out losses or numbers of batches, or two ranks
                have visited the same sample.
            RankError: another rank has failed.
        """
        if self.finished:
            raise RuntimeError(f"this run has ended after {self.epochs} epochs")
        loss = None if validation_loss is None else float(validation_loss)
        self.warn("validation_loss", doubts.not_finite_validation(self.epoch, loss))
        with self._mode():
            self._meet("step", validation_loss=loss, standard_error=float(standard_error))
            self.visits.forget()
            self._share_weights.clear()
            if self.epoch == 0:
                self.constant.close()
                self.warn("constant", doubts.no_constant(self.constant.doubt))
                named = None if self.samples is None else self.samples.targets
                self.warn("classes", doubts.other_targets(named, self.constant.used))
            if self.epoch in (0, self.warmup_epochs):
                self.warn("ids", doubts.ids_like_positions(self.gates))
            entry = self._end_epoch(loss, standard_error, last=self.epoch + 1 == self.epochs)
            self.warn("reads", doubts.unread_samples(entry, self.may_drop))
            if entry["phase"] == "prune" and not self._observed(entry):
                self.warn("held_out", doubts.unobserved_samples(self.selection.held_out_count))
            if self.finished:
                self.visits = Ended(self.ranks)
        return entry

    def _end_epoch(self, loss: float | None, standard_error: float, last: bool) -> dict[str, Any]:
        gates, selection, controller = self.gates, self.selection, self.controller
        warming_up = self.epoch < self.warmup_epochs
        entry = entry_of(self.epoch, warming_up, gates, selection, loss)
        self.not_finite += [i for i in gates.not_finite() if i not in self.not_finite]
        read, held_out = bitmask.count(selection.read), selection.held_out_count
        losses = gates.integer("loss_count")
        again = doubts.repeated_visits(self.epoch, losses, read, gates.evaluated, held_out)
        self.warn("visits", again, stacklevel=4)
        if not warming_up and loss is not None:
            self._note_best(loss, float(standard_error))
        entry["decision"] = controller.step(self.epoch, loss, float(standard_error))
        gates.end_epoch(self.constant)
        if not warming_up:
            entry |= self.method.figures(gates, [*self.history, entry], selection.labels)
        if warming_up and self.epoch + 1 == self.warmup_epochs:
            gates.set_integer("resting", 0)
        # Pruning starts after every sample was visited once, but for those of dropped batches.
        unobserved = 0 if self._observed(entry) else selection.held_out_count
        pruning = not warming_up and not gates.any_unvisited(self.may_drop + unobserved)
        ratio = self.keep_ratio if last else controller.ratio_now if pruning else 1.0
        self._select(ratio, [*self.history, entry], last)
        self.epoch += 1
        selection.explore_pruned(gates, self.epoch)
        seconds = time.perf_counter() - self._started
        fetched = None if self.samples is None else self.samples.bytes_read
        notes = self.ranks.exchange("step", (seconds, fetched))
        entry["seconds"] = max(seconds for seconds, _ in notes)
        counts = [fetched for _, fetched in notes]
        self.bytes_read = None if None in counts else sum(counts)
        self._started = time.perf_counter()
        self.history.append(entry)
        return entry

    def _observed(self, entry: dict[str, Any]) -> bool:
        """Whether an evaluation gave losses, in the epoch of ``entry`` or before."""
        return any(each["samples_evaluated"] for each in [entry, *self.history])

    def ended_early(self) -> Run:
        """A copy of this run that ends now, with the selection by what it has learned so far.

        All ranks must call it.

        Raises:
            RuntimeError: no gate has stepped yet.
        """
        self.synchronize()
        seen = self.gates.visits() > 0
        pruned = [entry["phase"] == "prune" for entry in self.history]
        if not any(pruned) and not (seen and self.epoch >= self.warmup_epochs):
            raise RuntimeError(
                f"nothing was learned yet: gates step after the warm-up of {self.warmup_epochs} "
                f"epochs; found {self.epoch} epochs ended"
            )
        ended = copy.copy(self)
        ended.gates, ended.controller = copy.deepcopy((self.gates, self.controller))
        ended.selection = copy.copy(self.selection)  # its masks are replaced, never changed
        ended.history, ended.not_finite = list(self.history), list(self.not_finite)
        if self.epoch == 0:
            ended.constant = copy.copy(self.constant)
            with self._mode():
                ended.constant.close()
        if seen:  # the part of this epoch counts as one
            ended._end_epoch(None, 0.0, last=True)
        else:
            ended._select(self.keep_ratio, self.history, last=True)
        return ended

    def _select(self, ratio: float, history: Sequence[dict[str, Any]], last: bool) -> None:
        """Select the samples of the next epoch, or of the result, after ``history``."""
        keys = None
        if ratio < 1:
            keys = self.method.keys(self.gates, history, self.seed, final=last)
        floors = last and self._balance_after(history) != "neighbours"
        self.selection.select(self.gates, ratio, self.controller.slope_now, keys, floors)

    def synchronize(self) -> None:
        """Bring the gates up to date with the visits of all ranks. All ranks must call it.

        :meth:`step` and :meth:`state_dict` do it too. A process alone is up to date after each
        batch. It raises what :meth:`step` raises.
        """
        self._meet("synchronize")

    def _meet(self, call: str, **same: Any) -> None:
        same, waiting = {"epoch": self.epoch, **same}, self.visits.waiting
        with self._mode():
            for event in self.visits.meet(call, self.gates, self.selection.read, **same):
                self._act(event)
            if self.epoch == 0 and waiting and call != "step":  # which closes it
                self.constant.share()

    def _mode(self) -> torch.inference_mode:
        """The mode in which the gates were made. In another one they could not be changed later."""
        return torch.inference_mode(self.gates.logits.is_inference())

    def _note_best(self, validation_loss: float, standard_error: float) -> None:
        """Remember the selection of this epoch if it is at r and among the best."""
        kept = self.selection.kept
        if not self.method.chooses_best or not math.isfinite(validation_loss):
            return
        if self.selection.kept_count != self.target_count:
            return
        if (kept & ~self.gates.readable()).any():
            return
        self.best = choose_best(self.best, validation_loss, standard_error, self.epoch, kept)

    def state_dict(self) -> dict[str, Any]:
        """The state of the run: tensors and plain values, the same on all ranks.

        In the middle of an epoch, all ranks must call it. A state can be loaded by another number
        of ranks.
        """
        if self.visits.waiting:
            self._meet("state_dict")
        if self.epoch == 0 and self.ranks.alone:
            with self._mode():
                self.constant.share()
        return {
            "settings": dict(self.settings),
            "constants": repr(self.method),
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
            "constant_loss": self.constant.value,
            "constant_closed": self.constant.closed,
            "constant_doubt": self.constant.doubt,
            "targets_of_constant": self.constant.shared,
            "evaluated": self.gates.evaluated,
            "warnings": dict(self.warnings),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`.

        Warns:
            PruningWarning: the state is of a version whose method had other constants.

        Raises:
            DatasetMismatchError: the state is of another dataset, where both are known.
            ValueError: the state is of a run with other settings or another number of samples, or
                it is not a state of a Pruner.
        """
        check_parts(state)
        theirs = state["fingerprint"]
        if theirs and self.fingerprint:
            check_same_dataset("the state", "fingerprint", theirs, self.fingerprint)
        try:
            check_settings(state["settings"], self.settings)
            if state["segments"] != self.selection.digest():
                raise ValueError(
                    "the state is of a run with other labels or other held-out samples"
                )
            self.gates.check_state_dict(state["gates"])
            check_state(state, self.num_samples, self.keep_ratio, self.epochs, self.method.slope)
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                "expected the state of a Pruner; found one with a part of another type: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.gates.load_state_dict(state["gates"])
        self.gates.evaluated = state.get("evaluated", 0)
        self._share_weights.clear()
        self.fingerprint = self.fingerprint or theirs
        self.epoch = state["epoch"]
        self.visits = Ended(self.ranks) if self.finished else _visits_of(self.ranks)
        self.history = [dict(entry) for entry in state["history"]]
        self.controller.load_state_dict(state["controller"])
        self.selection.kept = state["kept"].clone()
        self.selection.read = state["read"].clone()
        self.best = None if state["best"] is None else Best(**state["best"])
        self.unreadable_reasons = {index: reason for index, reason in state["unreadable"]}
        self.not_finite = list(state["not_finite"])
        self.warnings = {**state.get("warnings", {}), **self.warnings}
        self.warn("constants", doubts.other_constants(state.get("constants"), self.method))
        self.constant = ConstantLoss(self.num_samples, self.ranks)
        if state.get("constant_closed") or state.get("constant_loss") is not None:
            self.constant.take(state.get("constant_loss"))
            self.constant.doubt = state.get("constant_doubt")
        elif state.get("targets_of_constant") is not None:
            self.constant.resume(state["targets_of_constant"])
        self._started = time.perf_counter()


def _visits_of(ranks: Ranks) -> Visits:
    if ranks.alone:
        return Direct(ranks)
    # Imported here, because it loads the compiler of torch, which a process alone may not need.
    from adapruner.pruning.recorded import Recorded

    return Recorded(ranks)
