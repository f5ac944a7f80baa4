"""The gates of a run: one logit per sample, its age, and the small state they share."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from adapruner import masks, ops
from adapruner.methods import Method
from adapruner.ops import _C

_SLOTS: dict[str, int] = _C.state_slots


class Gates:
    """Gate logits m, ages and state, on one device, stepped by the native operators.

    Args:
        num_samples: N.
        keep_ratio: r, the ratio wanted, in (0, 1].
        method: the constants of the objective.
        device: where the gates live; torch's default device where None.
        track_losses: whether to keep the last loss of every sample (4 more bytes a sample), by
            which gates step in epochs that do not visit them; without it, a later visit stands for
            those epochs.

    Attributes:
        logits: m, float32 ``[N]``; 1 at the start; −inf for a sample that is excluded.
        age: epochs since the last visit, uint8 ``[N]``; 255 before the first.
        state: int64, laid out by ``csrc/math/state.h``.
        last_loss: float32 ``[N]``, NaN where no loss was seen, or None.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        method: Method,
        device: torch.device | str | None = None,
        track_losses: bool = False,
    ) -> None:
        self.logits = torch.ones(num_samples, dtype=torch.float32, device=device)
        self.age = torch.full((num_samples,), ops.NEVER_VISITED, dtype=torch.uint8, device=device)
        self.last_loss = (
            torch.full((num_samples,), float("nan"), device=device) if track_losses else None
        )
        self.state = torch.zeros(_C.state_size, dtype=torch.int64, device=device)
        self._reals = self.state.view(torch.float64)  # the same memory
        self.set_real("keep_ratio", keep_ratio)
        self.set_real("balance", method.balance)
        self.set_real("balance_gain", method.balance_gain)
        self.set_real("easy_weight", method.easy_weight)
        self.set_real("pressure_cap", method.pressure_cap)
        self.set_real("step_size", method.step_size)
        self.set_real("loss_scale", 1.0)
        # Gates that drift have taken the steps of the epochs between two visits.
        self.set_integer("age_cap", 1 if track_losses else method.age_cap)
        self.set_integer("population", num_samples)
        self.set_integer("plain", int(not method.weighs))
        self.set_slope(method.slope[0])

    def integer(self, slot: str) -> int:
        """An integer slot of the state."""
        return int(self.state[_SLOTS[slot]])

    def real(self, slot: str) -> float:
        """A real slot of the state."""
        return float(self._reals[_SLOTS[slot]])

    def slots(self, first: str, last: str) -> Tensor:
        """Integer slots of the state from one to another, as a view: nothing is read back."""
        return self.state[_SLOTS[first] : _SLOTS[last] + 1]

    def set_integer(self, slot: str, value: int) -> None:
        self.state[_SLOTS[slot]] = value

    def set_real(self, slot: str, value: float) -> None:
        self._reals[_SLOTS[slot]] = value

    @property
    def mean_gate(self) -> float:
        """s̄, the mean gate over all samples that can be read."""
        return self.integer("gate_sum") / ops.GATE_SUM_ONE / max(self.integer("population"), 1)

    @property
    def open_share(self) -> float:
        """ρ, the share of samples with m > 0."""
        return self.integer("open_count") / max(self.integer("population"), 1)

    def set_slope(self, slope: float) -> None:
        """Set k and bring the sums to it, by a pass over m."""
        self.use_sums(slope, ops.topk_mask(self.logits, 0, slope).sums)

    def use_sums(self, slope: float, sums: Tensor) -> None:
        """Set k, with the sums that a top-k at this slope has just found."""
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

    def exclude(self, indices: Tensor) -> None:
        """Take samples (int64) out of the running: their gates close for good. Twice is once."""
        indices = indices.to(self.logits.device)
        closed = indices[self.logits[indices] != -torch.inf].unique()
        if closed.numel():
            # The share of the sums that these few had.
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
        """The samples that were not excluded, as a bit mask."""
        if self.all_readable:
            return masks.full(len(self.logits))
        return masks.pack_pieces(
            len(self.logits),
            lambda begin, end: (self.logits[begin:end] != -torch.inf).cpu().numpy(),
        )

    def check_errors(self) -> None:
        """Raise for what kernels of a GPU have found wrong with a batch since the last check.

        They cannot raise themselves, so they note the first offender of the first such batch; it
        and others like it took no part in their batches. Reads a few bytes from the device, and
        waits for it. Kernels of the CPU raise at once.

        Raises:
            IndexError: an id is no dataset index, or a target neither a class nor ``ignore_index``.
            ValueError: a given loss is negative.
        """
        noted = self.slots("error_kind", "error_latch")
        kind, place, value, _ = noted.tolist()
        if kind == 0:
            return
        noted.zero_()
        late = " (found on the GPU in an earlier batch)"
        if kind == _C.error_kinds["id"]:
            expected = f"expected a dataset index in [0, {len(self.logits)})"
            raise IndexError(f"ids[{place}] is {value}; {expected}{late}")
        if kind == _C.error_kinds["target"]:
            expected = "expected a class that the logits have, or ignore_index"
            raise IndexError(f"target.flatten()[{place}] is {value}; {expected}{late}")
        (loss,) = struct.unpack("d", struct.pack("q", value))
        raise ValueError(f"sample_loss[{place}] is {loss}; expected a loss of at least 0{late}")

    def drift(self) -> None:
        """Step the gates that the epoch did not visit, if their last losses are known.

        A top-k must follow: the sums are not kept up.
        """
        if self.last_loss is not None:
            ops.gate_drift(self.logits, self.age, self.state, self.last_loss)

    def end_epoch(self) -> None:
        """Let every visited sample grow an epoch older and start new sums of losses."""
        for ages in self.age.split(masks.PIECE):
            ages += (ages < ops.OLDEST).view(torch.uint8)  # no cast: sums of one type are fast
        self.set_real("loss_sum", 0.0)
        self.set_integer("loss_count", 0)
        self.set_integer("not_finite_count", 0)

    def training_loss(self) -> float | None:
        """Mean of the finite losses since the start of the epoch; None where there was none."""
        count = self.integer("loss_count")
        return self.real("loss_sum") / count if count else None

    def not_finite(self) -> list[int]:
        """Ids whose loss was not finite in this epoch: the first ones, as many as are noted."""
        count = min(self.integer("not_finite_count"), _C.not_finite_capacity)
        start = _SLOTS["not_finite_ids"]
        return sorted(set(self.state[start : start + count].tolist()))

    def any_unvisited(self) -> bool:
        """Whether a sample that can be read has never been visited."""
        for ages, logits in zip(
            self.age.split(masks.PIECE), self.logits.split(masks.PIECE), strict=True
        ):
            if ages.max() < ops.NEVER_VISITED:
                continue
            if ((ages == ops.NEVER_VISITED) & (logits != -torch.inf)).any():
                return True
        return False

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {"gate_logits": self.logits, "age": self.age, "state": self.state}
        if self.last_loss is not None:
            tensors["last_loss"] = self.last_loss
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take ``tensors`` in, all of them or none.

        Raises:
            ValueError: they are of other gates; the message says how.
        """
        own = self.state_dict()
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                found = list(tensors[name].shape) if name in tensors else "nothing"
                raise ValueError(
                    f"the state to load has {found} for {name}; expected shape {list(tensor.shape)}"
                )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
