"""The gates of a run: one logit and one age per sample, and a small shared state."""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from adapruner import ops
from adapruner.ops import _C
from adapruner.pruning import bitmask
from adapruner.pruning.constant import ConstantLoss
from adapruner.pruning.objective import Objective
from adapruner.pruning.outliers import mean_without_outliers
from adapruner.pruning.record import Record

_SLOTS: dict[str, int] = _C.state_slots


class Gates:
    """Gate logits m, ages and state on one device. The native operators step them.

    Args:
        num_samples: N.
        keep_ratio: r, the keep ratio of the run, in (0, 1].
        objective: the constants of the objective.
        device: device of the gates; torch's default device where None.
        track_losses: keep the last loss and the record of every sample (14 more bytes a sample).
            Gates then also step in epochs that do not visit them. Without it, a later visit stands
            for those epochs.
        normalize_loss: divide losses by the loss scale in the pressure. The scale is the running
            mean loss in the first epoch, and the mean loss of the previous epoch in later epochs.
            An objective that is ``by_first_loss`` has the mean loss of the first epoch in all later
            epochs, whatever this is.

    Attributes:
        logits: m, float32 ``[N]``; 1 at the start, −inf for an excluded sample.
        age: epochs since the last visit, uint8 ``[N]``; 255 before the first.
        state: the state tensor, int64; ``csrc/math/state.h`` names its slots.
        last_loss: float32 ``[N]``, NaN where no loss was seen; None without ``track_losses``.
        record: visits, losses and predicted classes; None without ``track_losses``.
        evaluated: visits in this epoch that do not count in the training loss.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        objective: Objective,
        device: torch.device | str | None = None,
        track_losses: bool = False,
        normalize_loss: bool = False,
    ) -> None:
        self.logits = torch.ones(num_samples, dtype=torch.float32, device=device)
        self.age = torch.full((num_samples,), ops.NEVER_VISITED, dtype=torch.uint8, device=device)
        self.last_loss = (
            torch.full((num_samples,), float("nan"), dtype=torch.float32, device=device)
            if track_losses
            else None
        )
        self.record = Record(num_samples, device) if track_losses else None
        self.evaluated = 0
        self.state = torch.zeros(_C.state_size, dtype=torch.int64, device=device)
        self.set_real("keep_ratio", keep_ratio)
        self.set_real("balance", objective.balance)
        self.set_real("balance_gain", objective.balance_gain)
        self.set_real("easy_weight", objective.easy_weight)
        self.set_real("pressure_cap", objective.pressure_cap)
        self.set_real("step_size", objective.step_size)
        self.set_real("loss_scale", 1.0)
        # With drift, a gate has already stepped in the epochs between two visits.
        self.set_integer("age_cap", 1 if track_losses else objective.age_cap)
        self.set_integer("population", num_samples)
        self.set_integer("plain", int(not objective.weighs))
        self.set_slope(objective.slope[0])
        self._rescales = normalize_loss and not objective.by_first_loss
        self._use_running_scale(normalize_loss or objective.by_first_loss)

    @property
    def _reals(self) -> Tensor:
        # Made anew each time: a copy or a pickle of a stored view would have memory of its own.
        return self.state.view(torch.float64)

    def integer(self, slot: str) -> int:
        """An integer slot of the state."""
        return int(self.state[_SLOTS[slot]])

    def real(self, slot: str) -> float:
        """A real slot of the state."""
        return float(self._reals[_SLOTS[slot]])

    def slots(self, first: str, last: str) -> Tensor:
        """Integer slots ``first`` to ``last`` of the state, as a view on the device."""
        return self.state[_SLOTS[first] : _SLOTS[last] + 1]

    def set_integer(self, slot: str, value: int) -> None:
        """Set an integer slot of the state."""
        self.state[_SLOTS[slot]] = value

    def set_real(self, slot: str, value: float) -> None:
        """Set a real slot of the state."""
        self._reals[_SLOTS[slot]] = value

    @property
    def mean_gate(self) -> float:
        """s̄, the mean gate over all samples that are not excluded."""
        return self.integer("gate_sum") / ops.GATE_SUM_ONE / max(self.integer("population"), 1)

    @property
    def open_share(self) -> float:
        """ρ, the share of samples with m > 0 among those that are not excluded."""
        return self.integer("open_count") / max(self.integer("population"), 1)

    def set_slope(self, slope: float) -> None:
        """Set the slope k, and compute the sums again in a pass over m."""
        self.use_sums(slope, ops.topk_mask(self.logits, 0, slope).sums)

    def use_sums(self, slope: float, sums: Tensor) -> None:
        """Set the slope k, with the sums of a top-k at this slope."""
        self.set_real("slope", slope)
        self.state[_SLOTS["gate_sum"]] = sums[0]
        self.state[_SLOTS["open_count"]] = sums[1]

    def visit(self, ids: Tensor, losses: ops.MaskedLoss) -> None:
        """Step the gates of a batch."""
        ops.gate_update(
            self.logits,
            self.age,
            self.state,
            self.last_loss,
            ids,
            losses.pressure,
            losses.sample_loss,
        )
        if self.record is not None:
            mean = self._reals[_SLOTS["loss_sum"]] / self.state[_SLOTS["loss_count"]]
            self.record.note_losses(ids, losses, mean)

    def learn(self, ids: Tensor, losses: ops.MaskedLoss, predicted: Tensor | None = None) -> None:
        """Step the gates of a training batch.

        Args:
            ids: ``[B]``.
            losses: losses of the batch.
            predicted: predicted classes, int32 ``[B]``, where known.
        """
        if self._scale_is_running:
            ops.first_loss_scale(losses.pressure, self.state, losses.sample_loss)
        self.visit(ids, losses)
        self._note_classes(ids, predicted)

    def observe(self, ids: Tensor, losses: ops.MaskedLoss, predicted: Tensor | None = None) -> None:
        """Step the gates of an evaluated batch, which does not count in the training loss."""
        sums = self.slots("loss_sum", "loss_count")
        of_training = sums.clone()
        self.visit(ids, losses)
        sums.copy_(of_training)
        self.evaluated += len(ids)
        self._note_classes(ids, predicted)

    def _note_classes(self, ids: Tensor, predicted: Tensor | None) -> None:
        if self.record is not None and predicted is not None:
            self.record.note_classes(ids, predicted)

    def _use_running_scale(self, running: bool) -> None:
        # Kept on the host too, so that no step reads it from the device.
        self._scale_is_running = running
        self.set_integer("scale_running", int(running))

    def exclude(self, indices: Tensor) -> None:
        """Close the gates of samples (int64) for good. Excluded samples may be given again."""
        indices = indices.to(self.logits.device)
        closed = indices[self.logits[indices] != -torch.inf].unique()
        if closed.numel():
            # The part of these samples in the sums.
            gone = ops.topk_mask(self.logits[closed], 0, self.real("slope")).sums
            self.logits[closed] = -torch.inf
            self.set_integer("population", self.integer("population") - closed.numel())
            self.set_integer("gate_sum", self.integer("gate_sum") - int(gone[0]))
            self.set_integer("open_count", self.integer("open_count") - int(gone[1]))

    @property
    def all_readable(self) -> bool:
        """Whether no sample was excluded."""
        return self.integer("population") == len(self.logits)

    def readable(self) -> Tensor:
        """The samples that are not excluded, as a bit mask."""
        if self.all_readable:
            return bitmask.full(len(self.logits))
        return bitmask.pack_pieces(
            len(self.logits),
            lambda begin, end: (self.logits[begin:end] != -torch.inf).cpu().numpy(),
        )

    def check_errors(self) -> None:
        """Raise for a bad value that a GPU has found in a batch since the last check.

        Kernels of the CPU raise at once. Kernels of a GPU cannot raise: they skip bad values and
        note the first one in the state. The check reads a few bytes from the device and waits for
        it.

        Raises:
            IndexError: an id is not a dataset index, or a target is neither a class nor
                ``ignore_index``.
            ValueError: a given loss is negative.
        """
        noted = self.slots("error_kind", "error_latch")
        kind, place, value, _ = noted.tolist()
        if kind == 0:
            return
        noted.zero_()
        late = " on the GPU in an earlier batch"
        if kind == _C.error_kinds["id"]:
            expected = f"a dataset index in [0, {len(self.logits)})"
            raise IndexError(f"ids[{place}] must be {expected}; found {value}{late}")
        if kind == _C.error_kinds["target"]:
            expected = "a class that the logits have, or ignore_index"
            raise IndexError(f"target.flatten()[{place}] must be {expected}; found {value}{late}")
        (loss,) = struct.unpack("d", struct.pack("q", value))
        raise ValueError(f"sample_loss[{place}] must be at least 0; found {loss}{late}")

    def end_epoch(self, constant: ConstantLoss | None = None) -> None:
        """End an epoch: set the loss scale, step unvisited gates, age samples, reset loss sums.

        A top-k must follow. It updates the sums over all gates.

        Args:
            constant: limits a loss scale that stays, where given.
        """
        mean_loss = self.training_loss()
        if mean_loss and (self._rescales or self._scale_is_running):
            if not self._rescales:
                if self.last_loss is not None:
                    mean_loss = mean_without_outliers(self.last_loss, mean_loss)
                if constant is not None:
                    mean_loss = constant.limited(mean_loss)
            self.set_real("loss_scale", mean_loss)
            self._use_running_scale(False)
        if self.last_loss is not None:
            ops.gate_drift(self.logits, self.age, self.state, self.last_loss)
        for ages in self.age.split(bitmask.PIECE):
            ages += (ages < ops.OLDEST).view(torch.uint8)  # a view, since a cast is slower
        self.set_real("loss_sum", 0.0)
        self.set_integer("loss_count", 0)
        self.set_integer("not_finite_count", 0)
        self.evaluated = 0

    def training_loss(self) -> float | None:
        """Mean of the finite losses since the start of the epoch, or None without one."""
        count = self.integer("loss_count")
        return self.real("loss_sum") / count if count else None

    def not_finite(self) -> list[int]:
        """Ids whose loss was not finite in this epoch. The state holds only the first of them."""
        count = min(self.integer("not_finite_count"), _C.not_finite_capacity)
        start = _SLOTS["not_finite_ids"]
        return sorted(set(self.state[start : start + count].tolist()))

    def visits(self) -> int:
        """Number of losses since the start of the epoch. A sample may count several times.

        A sample whose targets are all ignored has no loss.
        """
        return self.integer("loss_count") + self.integer("not_finite_count")

    def seen(self) -> Tensor:
        """The samples that had a loss since the start of the run, as a bit mask.

        Without ``track_losses``, losses of the warm-up do not count.
        """

        def flags(begin: int, end: int) -> np.ndarray:
            seen = self.age[begin:end] != ops.NEVER_VISITED
            if self.last_loss is not None:
                seen |= ~self.last_loss[begin:end].isnan()
            return seen.cpu().numpy()

        return bitmask.pack_pieces(len(self.logits), flags)

    def any_unvisited(self, but: int = 0) -> bool:
        """Whether more than ``but`` samples, not counting excluded ones, were never visited."""
        count = 0
        for ages, logits in zip(
            self.age.split(bitmask.PIECE), self.logits.split(bitmask.PIECE), strict=True
        ):
            if ages.max() < ops.NEVER_VISITED:
                continue
            count += int(((ages == ops.NEVER_VISITED) & (logits != -torch.inf)).sum())
            if count > but:
                return True
        return False

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of the gates, not copied."""
        tensors = {"gate_logits": self.logits, "age": self.age, "state": self.state}
        if self.last_loss is not None:
            tensors["last_loss"] = self.last_loss
        if self.record is not None:
            tensors |= self.record.state_dict()
        return tensors

    def check_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Raise unless ``tensors`` can be loaded.

        Raises:
            ValueError: a tensor is missing or has another shape, or a count is impossible.
        """
        for name, tensor in self.state_dict().items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                found = list(tensors[name].shape) if name in tensors else "nothing"
                raise ValueError(
                    f"{name} of the state must have shape {list(tensor.shape)}; found {found}"
                )
        closed = int((tensors["gate_logits"] == -torch.inf).sum())
        population = int(tensors["state"][_SLOTS["population"]])
        if population != len(self.logits) - closed:
            raise ValueError(
                f"population of the state must be {len(self.logits) - closed}, the number of "
                f"samples that are not excluded; found {population}"
            )
        count = int(tensors["state"][_SLOTS["not_finite_count"]])
        if count < 0:
            raise ValueError(f"not_finite_count of the state must be at least 0; found {count}")

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Copy ``tensors`` in. After an error nothing has changed.

        Raises:
            ValueError: as :meth:`check_state_dict`.
        """
        self.check_state_dict(tensors)
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])
        self._use_running_scale(bool(self.integer("scale_running")))


def is_visit() -> bool:
    """Whether a forward pass counts as a visit: with gradients enabled, and once for each batch.

    Activation checkpointing repeats a forward pass, which does not count again. The repetition runs
    within a backward pass. Reentrant checkpointing is the exception: its first forward pass runs
    without gradients, so its repetition is the pass that counts.
    """
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return True
    node = torch._C._current_autograd_node()
    return node is not None and "CheckpointFunction" in node.name()
