"""The loss of the best constant prediction, which a model reaches that knows only the targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from adapruner.pruning.distributed import Ranks
from adapruner.pruning.outliers import mean_without_outliers

SampleLoss: TypeAlias = Callable[[Any, Any], Tensor]

# Samples of all ranks whose targets tell the loss of a constant, and steps to find it.
ENOUGH_SAMPLES = 1024
_MOST_STEPS = 50
# That many targets tell the loss of a constant to within about a tenth.
_MARGIN = 1.1


class Noted(NamedTuple):
    """Samples: their dataset indices, int64 ``[n]``, and their targets, ``[n, ...]``."""

    ids: Tensor
    targets: Tensor


class ConstantLoss:
    """Notes the first targets of a run, and finds the constant with the smallest mean loss.

    It is found from the targets of all ranks in the order of their samples, so it does not depend
    on the number of ranks.

    Args:
        num_samples: N.
        ranks: the ranks of the run.

    Attributes:
        value: the mean loss; None before :meth:`close`, or where it is not known.
        doubt: why it is not known, or None.
        closed: whether the value is final, None included.
        used: the samples that it was found from, by index, without ignored targets. None before,
            for a value that was taken, and on a rank that noted none itself.
        shared: what all ranks had noted when they last called :meth:`share`, while more was to
            come. ``ids``, int64 ``[n]``, and ``targets``, ``[n, ...]``, on the CPU; ``so_far``, the
            mean loss for these targets; ``seen``, the samples that were noted or left out.
    """

    def __init__(self, num_samples: int, ranks: Ranks) -> None:
        self.value: float | None = None
        self.doubt: str | None = None
        self.used: Noted | None = None
        self._ranks = ranks
        # A small dataset is noted whole, because the last batches of an epoch have other sizes.
        enough = num_samples if num_samples < 2 * ENOUGH_SAMPLES else ENOUGH_SAMPLES
        self._most = -(-enough // ranks.size)
        self.closed = False
        self._loss: SampleLoss | None = None
        self._shape = torch.Size()  # of the outputs of a sample
        self._dtype = torch.float32
        self._noted: list[Noted] = []
        # Samples that were noted or left out: of this rank, and of all when they last exchanged. So
        # all ranks stop after the same batch.
        self._seen = self._seen_by_all = 0
        # The mean loss for so many targets, when they were shared.
        self._so_far: float | None = None
        self._so_many = 0
        self.shared: dict[str, Any] | None = None

    def note(
        self,
        loss: SampleLoss,
        shape: torch.Size,
        targets: Any,
        ids: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Note the targets of a batch. The host does not wait for the device.

        Args:
            loss: function of (outputs, targets) that returns ℓ ``[B]``.
            shape: of the outputs. Only ``[B]`` and ``[B, C]`` are noted.
            targets: of the batch. Only tensors are noted.
            ids: dataset indices of the samples, ``[B]``.
            dtype: of the outputs.
        """
        if self.closed or len(shape) not in (1, 2) or not isinstance(targets, Tensor):
            return
        if not targets.dim() or len(targets) != len(ids) or self._seen >= self._most:
            return
        if self._noted and _form(targets) != _form(self._noted[0].targets):
            return
        self._loss, self._shape = loss, shape[1:]
        self._dtype = torch.promote_types(dtype, torch.float32)
        # A loop may use the memory again.
        self._noted.append(Noted(ids.to(targets.device, copy=True), targets.detach().clone()))
        self._seen += len(ids)

    def leave_out(self, indices: Sequence[int]) -> None:
        """Count samples that cannot be read, in place of their targets.

        They count as half of the samples at most, since a list that is known before the run is no
        part of the first batches.
        """
        if self._seen < self._most:
            noted = {index for batch in self._noted for index in batch.ids.tolist()}
            left_out = self._seen - sum(len(batch.ids) for batch in self._noted)
            new = len(set(indices) - noted)
            self._seen += min(new, max(self._most // 2 - left_out, 0))

    def share(self) -> None:
        """Gather what all ranks have noted, if more is to come, as ``shared``. All must call it."""
        self.shared = None
        found = None if self.closed else self._gathered()
        if found is None:
            return
        if self._seen_by_all >= self._most * self._ranks.size:
            self.close()  # nothing more would be noted
            return
        self._so_far, self._so_many = self._agreed(self._found(found.targets)), len(found.ids)
        self.shared = {
            "ids": found.ids.cpu(),
            "targets": found.targets.cpu(),
            "so_far": self._so_far,
            "seen": self._seen_by_all,
        }

    def resume(self, shared: dict[str, Any]) -> None:
        """Go on from what was ``shared``. Each rank takes its part."""
        part = slice(self._ranks.rank, None, self._ranks.size)
        self._noted = [Noted(shared["ids"][part].clone(), shared["targets"][part].clone())]
        self._so_far, self._so_many = shared.get("so_far"), len(shared["ids"])
        self._seen = -(-shared.get("seen", self._so_many) // self._ranks.size)
        self.shared = shared

    def close(self) -> None:
        """Find the loss. Later batches do not change it. All ranks must call it."""
        if self.closed:
            return
        found = self._gathered()
        if found is None:
            return
        self.used = self._counted(found)
        self.take(self._agreed(self._found(found.targets)))

    def take(self, value: float | None) -> None:
        """Take a loss that is known already."""
        self.value, self.closed, self._loss, self._noted = value, True, None, []
        self.shared = None

    def _found(self, targets: Tensor) -> float | None:
        """The mean loss for these targets. Known if :meth:`share` saw no fewer."""
        if self._loss is None or len(targets) == self._so_many:
            return self._so_far
        self.doubt = None
        try:
            return _least_mean(self._loss, self._shape, targets, self._dtype)
        except Exception as error:  # of the user's function, which never saw a constant
            self.doubt = f"{type(error).__name__}: {error}"
            return None

    def _counted(self, found: Noted) -> Noted | None:
        """Those whose targets are not ignored; None if this rank has noted no loss that tells."""
        if not isinstance(self._loss, CrossEntropy):
            return None if self._loss is None else found
        counted = self._loss.counted(found.targets, self._shape[0])
        return Noted(found.ids[counted], found.targets[counted])

    def _agreed(self, value: float | None) -> float | None:
        """The value of the first rank that has one. A rank without a share has noted nothing."""
        known = [v for v in self._ranks.exchange("constant loss", value) if v is not None]
        return known[0] if known else None

    def limited(self, mean_loss: float) -> float:
        """The unit of losses for a mean loss of the first epoch."""
        if self.value is None or mean_loss <= _MARGIN * self.value:
            return mean_loss
        return self.value

    def _gathered(self) -> Noted | None:
        """What all ranks have noted, by index, or None if that is nothing."""
        own, form = None, None
        if self._noted:
            device = self._noted[-1].ids.device  # those of a state are on the CPU
            each = zip(*self._noted, strict=True)
            own = Noted(*(torch.cat([part.to(device) for part in parts]) for parts in each))
            form = _form(own.targets)
        count = 0 if own is None else len(own.ids)
        notes = self._ranks.exchange("targets of a constant loss", [form, count, self._seen])
        self._seen_by_all = sum(seen for _, _, seen in notes)
        forms = [form for form, _, _ in notes if form is not None]
        if not forms or any(form != forms[0] for form in forms):
            return None
        dtype, *row = forms[0]
        if own is None:
            empty = torch.zeros(0, *row, dtype=getattr(torch, dtype), device="cpu")
            own = Noted(torch.zeros(0, dtype=torch.int64, device="cpu"), empty)
        counts = [count for _, count, _ in notes]
        ids = self._ranks.gather(own.ids, counts)
        size = own.targets.element_size() * math.prod(row)
        # As bytes, because not every backend takes every dtype.
        data = own.targets.reshape(-1).view(torch.uint8)
        data = self._ranks.gather(data, [count * size for count in counts])
        order = ids.argsort()
        return Noted(ids[order], data.view(own.targets.dtype).reshape(len(ids), *row)[order])


def _form(targets: Tensor) -> list[Any]:
    """The dtype, and the shape of the targets of a sample."""
    return [str(targets.dtype).removeprefix("torch."), *targets.shape[1:]]


def _least_mean(
    loss: SampleLoss, shape: torch.Size, targets: Tensor, dtype: torch.dtype
) -> float | None:
    """The smallest mean loss of a constant, without outliers.

    That of a cross entropy is known; else it is the one that L-BFGS finds, from 0. Samples whose
    loss is NaN do not count.
    """
    if isinstance(loss, CrossEntropy):
        losses = loss.of_best_constant(targets, shape[0])
        least = losses.mean().item() if len(losses) else 0.0
        return mean_without_outliers(losses, least) if 0 < least < math.inf else None
    constant = torch.zeros(shape, dtype=dtype, device=targets.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [constant],
        max_iter=_MOST_STEPS,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    least, losses_then = math.inf, torch.zeros(0)

    def mean_loss() -> Tensor:
        nonlocal least, losses_then
        # A copy for each sample, because a loss may work in place.
        losses = loss(constant.expand(len(targets), *shape).clone(), targets)
        losses = losses[~losses.isnan()]
        mean = losses.mean()
        # Not by backward(): a loss may have parameters of its own, which must get no gradient.
        (constant.grad,) = torch.autograd.grad(mean, constant)
        if mean.item() < least:
            least, losses_then = mean.item(), losses.detach()
        return mean

    with torch.enable_grad(), torch.autocast(targets.device.type, enabled=False):
        optimizer.step(mean_loss)
    if not math.isfinite(least) or least <= 0:
        return None
    return mean_without_outliers(losses_then, least)


@dataclass(frozen=True)
class CrossEntropy:
    """The cross entropy of each sample, for logits ``[B, C]`` and any targets ``[B]``.

    It is NaN where the target is ignored, or no class.

    Attributes:
        weight: of the classes, ``[C]``, or None.
        ignore_index, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
    """

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        counted = self.counted(targets, logits.shape[1])
        losses = functional.cross_entropy(
            logits,
            torch.where(counted, targets, 0).long(),
            weight=None if self.weight is None else self.weight.to(logits),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return torch.where(counted, losses, torch.nan)

    def of_best_constant(self, targets: Tensor, classes: int) -> Tensor:
        """The losses of the counted targets if logits are the best constant, float64 ``[n]``.

        The mean loss is Σ −a_c·log p_c over the classes, with a_c = (1 − α)·w_c·f_c + α·w_c/C, the
        frequencies f_c, the weights w_c and the smoothing α. It is smallest for p_c = a_c / Σa.
        """
        counted = targets[self.counted(targets, classes)].long()
        frequencies = counted.bincount(minlength=classes).double() / max(len(counted), 1)
        weight = torch.ones_like(frequencies) if self.weight is None else self.weight.double()
        weight = weight.detach().to(targets.device)
        part, smooth = 1 - self.label_smoothing, self.label_smoothing / classes
        shares = part * weight * frequencies + smooth * weight
        surprise = -(shares / shares.sum()).log()
        evenly = smooth * weight[weight > 0] @ surprise[weight > 0] if smooth else 0.0
        return part * weight[counted] * surprise[counted].nan_to_num(posinf=0.0) + evenly

    def counted(self, targets: Tensor, classes: int) -> Tensor:
        """Bools ``[n]``: the targets that are classes, and not ignored."""
        return (targets >= 0) & (targets < classes) & (targets != self.ignore_index)
