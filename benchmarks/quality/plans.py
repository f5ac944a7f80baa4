"""Plans that choose anew for every epoch: adapruner and the dynamic methods of the field."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

import adapruner
from adapruner.pruning.selection import keep_count

from .networks import Network
from .trainer import Plan


class Adapruner(Plan):
    """A run of ``adapruner.Pruner``, in a loop of one's own: no held-out data."""

    def __init__(
        self,
        count: int,
        ratio: float,
        epochs: int,
        method: str,
        seed: int,
        device: torch.device,
        labels: Tensor | None = None,
        balance: str = "class",
    ) -> None:
        self.pruner = adapruner.Pruner(
            count,
            ratio,
            epochs,
            method=method,
            seed=seed,
            device=device,
            labels=labels,
            balance=balance,
        )

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        return torch.from_numpy(self.pruner.reads())

    def loss(self, logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        return self.pruner.loss(logits, targets, ids)

    def end(self, epoch: int) -> None:
        self.pruner.step()


class RandomEachEpoch(Plan):
    """A new random part in every epoch."""

    def __init__(self, count: int, ratio: float, seed: int) -> None:
        super().__init__(torch.zeros(count, dtype=torch.bool))
        self._kept = keep_count(ratio, count)
        self._generator = torch.Generator().manual_seed(5000 + seed)

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        order = torch.randperm(len(self.reads), generator=self._generator)
        reads = torch.zeros_like(self.reads)
        reads[order[: self._kept]] = True
        return reads


class _ByLastLoss(Plan):
    """Notes the last loss of every sample; all are 3 at the start, as the authors have it.

    Losses and weights lie on the device, so that no step waits for it; an epoch begins with one
    look at them.
    """

    def __init__(self, count: int, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(torch.ones(count, dtype=torch.bool))
        self.last_loss = torch.full((count,), 3.0, device=device)
        self.weights = torch.ones(count, device=device)
        self.generator = torch.Generator().manual_seed(6000 + seed)

    def loss(self, logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, targets, reduction="none")
        self.last_loss[ids] = losses.detach()
        return (losses * self.weights[ids]).mean()


class InfoBatch(_ByLastLoss):
    """Of the samples whose loss is below the mean a random share is left out, and the others of
    them weigh more for it; everything is read towards the end (Qin et al., ICLR 2024).

    ``until`` is the share of the run after which everything is read. Where not ``weighs``, all
    samples weigh 1.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        device: torch.device | str = "cpu",
        pruned: float = 0.5,
        until: float = 0.875,
        weighs: bool = True,
    ) -> None:
        super().__init__(count, seed, device)
        self._pruned, self._until, self._weighs = pruned, until, weighs

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        reads = torch.ones_like(self.reads)
        self.weights.fill_(1.0)
        if done >= self._until:
            return reads
        losses = self.last_loss.cpu()
        easy = (losses < losses.mean()).nonzero().flatten()
        order = torch.randperm(len(easy), generator=self.generator)
        kept = int((1 - self._pruned) * len(easy))
        reads[easy[order[kept:]]] = False
        if self._weighs:
            self.weights[easy[order[:kept]].to(self.weights.device)] = 1 / (1 - self._pruned)
        return reads


class OrderDP(_ByLastLoss):
    """Of a random pool the samples with the largest losses (Jin et al., ICLR 2026).

    ``top`` is the share of the pool that is read: 0.85, as the authors' code has it. The pool is as
    large as the keep ratio then needs. The authors' code weighs all samples alike.
    """

    def __init__(
        self,
        count: int,
        ratio: float,
        seed: int,
        device: torch.device | str = "cpu",
        top: float = 0.85,
    ) -> None:
        super().__init__(count, seed, device)
        self._kept = keep_count(ratio, count)
        self._pool = min(count, round(self._kept / top))

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        pool = torch.randperm(len(self.reads), generator=self.generator)[: self._pool]
        largest = self.last_loss.cpu()[pool].topk(self._kept).indices
        reads = torch.zeros_like(self.reads)
        reads[pool[largest]] = True
        return reads


class RePB(_ByLastLoss):
    """Losses are compared within a window of batches, that is at nearly one state of the model. A
    random share of the samples below their window's mean is left out of the next epoch. A sample
    weighs the number of epochs over the number of those that read it (Zhou et al., ICLR 2026).

    Made after the paper's abstract, because its code was not found. The window of 8 batches is a
    guess, the share is InfoBatch's.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        device: torch.device | str = "cpu",
        pruned: float = 0.5,
        window: int = 8,
    ) -> None:
        super().__init__(count, seed, device)
        self._pruned, self._window = pruned, window
        self._visits = torch.zeros(count)
        self._batches: list[Tensor] = []
        self._easy = torch.zeros(count, dtype=torch.bool)

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        self._judge_window()
        easy = self._easy.nonzero().flatten()
        order = torch.randperm(len(easy), generator=self.generator)
        reads = torch.ones_like(self.reads)
        reads[easy[order[int((1 - self._pruned) * len(easy)) :]]] = False
        self._visits += reads
        self.weights[:] = ((epoch + 1) / self._visits.clamp(min=1)).to(self.weights.device)
        return reads

    def loss(self, logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        self._batches.append(ids)
        loss = super().loss(logits, targets, ids)
        if len(self._batches) == self._window:
            self._judge_window()
        return loss

    def _judge_window(self) -> None:
        if self._batches:
            ids = torch.cat(self._batches)
            losses = self.last_loss[ids]
            self._easy[ids.cpu()] = (losses < losses.mean()).cpu()
            self._batches = []


class SeTa(_ByLastLoss):
    """A random share first; the rest in groups by k-means over the loss, of which a window is read
    that slides from easy to hard, and begins anew; random shares towards the end (Zhou et al.,
    CVPR 2025)."""

    def __init__(
        self,
        count: int,
        seed: int,
        device: torch.device | str = "cpu",
        pruned: float = 0.1,
        groups: int = 5,
        window: float = 0.9,
        until: float = 0.875,
    ) -> None:
        super().__init__(count, seed, device)
        self._pruned, self._groups, self._until = pruned, groups, until
        self._size = round(groups * window)

    def begin(self, epoch: int, done: float, model: Network) -> Tensor:
        count = len(self.reads)
        part = torch.randperm(count, generator=self.generator)[: int((1 - self._pruned) * count)]
        if epoch > 0 and done < self._until:
            group = groups_by_loss(self.last_loss.cpu()[part], self._groups)
            start = epoch % (self._groups - self._size + 1)
            part = part[(group >= start) & (group < start + self._size)]
        reads = torch.zeros_like(self.reads)
        reads[part] = True
        return reads


def groups_by_loss(losses: Tensor, groups: int) -> Tensor:
    """k-means in one dimension; group 0 has the smallest losses. int64 ``[N]``."""
    from sklearn.cluster import KMeans

    if losses.min() == losses.max():
        return torch.arange(len(losses)) * groups // len(losses)
    means = KMeans(groups, n_init=1, random_state=0).fit(losses[:, None].numpy())
    rank = means.cluster_centers_[:, 0].argsort().argsort()
    return torch.from_numpy(rank[means.labels_])
