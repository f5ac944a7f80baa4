"""The loss of the best constant prediction, which a model reaches that knows only the targets."""

from __future__ import annotations

import math
from collections.abc import Callable
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


class _Noted(NamedTuple):
    """A batch: the dataset indices of its samples, and their targets."""

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
    """

    def __init__(self, num_samples: int, ranks: Ranks) -> None:
        self.value: float | None = None
        self.doubt: str | None = None
        self._ranks = ranks
        # A small dataset is noted whole, because the last batches of an epoch have other sizes.
        enough = num_samples if num_samples < 2 * ENOUGH_SAMPLES else ENOUGH_SAMPLES
        self._most = -(-enough // ranks.size)
        self._closed = False
        self._loss: SampleLoss | None = None
        self._shape = torch.Size()  # of the outputs of a sample
        self._noted: list[_Noted] = []

    def note(self, loss: SampleLoss, shape: torch.Size, targets: Any, ids: Tensor) -> None:
        """Note the targets of a batch. The host does not wait for the device.

        Args:
            loss: function of (outputs, targets) that returns ℓ ``[B]``.
            shape: of the outputs. Only ``[B]`` and ``[B, C]`` are noted.
            targets: of the batch. Only tensors are noted.
            ids: dataset indices of the samples, ``[B]``.
        """
        if self._closed or len(shape) not in (1, 2) or not isinstance(targets, Tensor):
            return
        if len(targets) != len(ids) or sum(len(batch.ids) for batch in self._noted) >= self._most:
            return
        if self._noted and _form(targets) != _form(self._noted[0].targets):
            return
        self._loss, self._shape = loss, shape[1:]
        # A loop may use the memory again.
        self._noted.append(_Noted(ids.to(targets.device, copy=True), targets.detach().clone()))

    def state(self) -> dict[str, Tensor] | None:
        """What all ranks have noted, if more is to come. All ranks must call it.

        Keys: ``ids``, int64 ``[n]``, and ``targets``, ``[n, ...]``, on the CPU.
        """
        found = None if self._closed else self._gathered()
        if found is None:
            return None
        if len(found.ids) >= self._most * self._ranks.size:
            self.close()  # nothing more would be noted
            return None
        order = found.ids.argsort()
        return {"ids": found.ids[order].cpu(), "targets": found.targets[order].cpu()}

    def resume(self, noted: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`. Each rank takes its part."""
        part = slice(self._ranks.rank, None, self._ranks.size)
        self._noted = [_Noted(noted["ids"][part].clone(), noted["targets"][part].clone())]

    def close(self) -> None:
        """Find the loss. Later batches do not change it. All ranks must call it."""
        if self._closed:
            return
        found = self._gathered()
        if found is None:
            return
        if self._loss is not None:
            targets = found.targets[found.ids.argsort()]
            try:
                self.value = _least_mean(self._loss, self._shape, targets)
            except Exception as error:  # of the user's function, which never saw a constant
                self.doubt = f"{type(error).__name__}: {error}"
        known = [v for v in self._ranks.exchange("constant loss", self.value) if v is not None]
        self.take(known[0] if known else None)

    def take(self, value: float | None) -> None:
        """Take a loss that is known already."""
        self.value, self._closed, self._loss, self._noted = value, True, None, []

    def limited(self, mean_loss: float) -> float:
        """The unit of losses for a mean loss of the first epoch."""
        if self.value is None or mean_loss <= _MARGIN * self.value:
            return mean_loss
        return self.value

    def _gathered(self) -> _Noted | None:
        """What all ranks have noted, or None if that is nothing."""
        own, form = None, None
        if self._noted:
            device = self._noted[-1].ids.device  # those of a state are on the CPU
            each = zip(*self._noted, strict=True)
            own = _Noted(*(torch.cat([part.to(device) for part in parts]) for parts in each))
            form = _form(own.targets)
        count = 0 if own is None else len(own.ids)
        notes = self._ranks.exchange("targets of a constant loss", [form, count])
        forms = [form for form, _ in notes if form is not None]
        if not forms or any(form != forms[0] for form in forms):
            return None
        dtype, *row = forms[0]
        if own is None:
            empty = torch.zeros(0, *row, dtype=getattr(torch, dtype), device="cpu")
            own = _Noted(torch.zeros(0, dtype=torch.int64, device="cpu"), empty)
        counts = [count for _, count in notes]
        ids = self._ranks.gather(own.ids, counts)
        size = own.targets.element_size() * math.prod(row)
        # As bytes, because not every backend takes every dtype.
        data = own.targets.reshape(-1).view(torch.uint8)
        data = self._ranks.gather(data, [count * size for count in counts])
        return _Noted(ids, data.view(own.targets.dtype).reshape(len(ids), *row))


def _form(targets: Tensor) -> list[Any]:
    """The dtype, and the shape of the targets of a sample."""
    return [str(targets.dtype).removeprefix("torch."), *targets.shape[1:]]


def _least_mean(loss: SampleLoss, shape: torch.Size, targets: Tensor) -> float | None:
    """The smallest mean loss of a constant that L-BFGS finds, from 0, without outliers.

    Samples whose loss is NaN do not count.
    """
    constant = torch.zeros(shape, device=targets.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=_MOST_STEPS, line_search_fn="strong_wolfe")
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

    with torch.enable_grad(), torch.autocast(constant.device.type, enabled=False):
        optimizer.step(mean_loss)
    if not math.isfinite(least) or least <= 0:
        return None
    return mean_without_outliers(losses_then, least)


def cross_entropy_of(
    weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> SampleLoss:
    """The cross entropy of each sample, for logits ``[B, C]`` and any targets ``[B]``.

    It is NaN where the target is ignored, or no class.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        counted = (targets >= 0) & (targets < logits.shape[1]) & (targets != ignore_index)
        losses = functional.cross_entropy(
            logits,
            torch.where(counted, targets, 0).long(),
            weight=None if weight is None else weight.to(logits),
            label_smoothing=label_smoothing,
            reduction="none",
        )
        return torch.where(counted, losses, torch.nan)

    return loss
