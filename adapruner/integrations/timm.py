"""timm's loaders with a pruner, and losses of samples with soft targets (mixup, cutmix)."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from adapruner._util.extras import require
from adapruner.data.loaders.user_loader import pruned_loader
from adapruner.pruning.pruner import Pruner


def pruned_timm_loader(loader: Any, pruner: Pruner) -> PrunedTimmLoader:
    """A loader of ``timm.data.create_loader`` that reads what a pruner chooses, with ids.

    It keeps the augmentations, the workers, the prefetching, random erasing, and mixup in the
    collate function. Batches are ``(inputs, targets, ids)``. With mixup or cutmix a mixed image
    counts for the sample of its own place in the batch.

    Args:
        loader: a training loader of ``create_loader``, with or without ``use_prefetcher``.
        pruner: a pruner of the samples of its dataset.

    Raises:
        DatasetMismatchError: the dataset has another length than the pruner.
        TypeError: ``loader`` is of another kind, or its dataset is an ``IterableDataset``.
        ValueError: the loader makes several images of a sample (``num_aug_splits``).
    """
    return PrunedTimmLoader(loader, pruner)


class PrunedTimmLoader:
    """Yields ``(inputs, targets, ids)``; see :func:`pruned_timm_loader`.

    Attributes:
        loader: the DataLoader behind it. Its ``batch_sampler`` is a
            :class:`adapruner.PrunedBatchSampler`.
    """

    def __init__(self, loader: Any, pruner: Pruner) -> None:
        prefetch = require("timm.data.loader", extra="vision").PrefetchLoader
        own = loader.loader if isinstance(loader, prefetch) else loader
        self.loader: DataLoader[Any] = pruned_loader(own, pruner)
        self._ids: deque[Tensor] = deque()
        self._batches: Any = _WithoutIds(self.loader, self._ids)
        if isinstance(loader, prefetch):
            self._prefetched = copy.copy(loader)
            self._prefetched.loader = self._batches
            self._batches = self._prefetched

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self._ids.clear()
        for inputs, targets in self._batches:
            ids = self._ids.popleft()
            if len(inputs) != len(ids):
                raise ValueError(
                    "expected one image of each sample; found "
                    f"{len(inputs)} images of {len(ids)} samples. Create the loader without "
                    "num_aug_splits"
                )
            yield inputs, targets, ids


class _WithoutIds:
    """Batches of (inputs, targets), as timm's prefetching expects them. The ids go to a queue."""

    def __init__(self, loader: DataLoader[Any], ids: deque[Tensor]) -> None:
        self._loader, self._ids = loader, ids

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets, ids in self._loader:
            self._ids.append(ids)
            yield inputs, targets


def soft_target_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each sample with soft targets, for :meth:`adapruner.Pruner.weigh`.

    Its mean is ``timm.loss.SoftTargetCrossEntropy``. Mixup, cutmix and label smoothing give soft
    targets.

    Args:
        logits: ``[B, C]``.
        targets: shares of each class, ``[B, C]``, whose rows sum to 1.

    Returns:
        ℓ ``[B]``, with its graph.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> soft_target_losses(torch.zeros(2, 4), torch.full((2, 4), 0.25))
        tensor([1.3863, 1.3863])
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            "logits and targets must have one shape, [B, C]; found "
            f"{list(logits.shape)} and {list(targets.shape)}"
        )
    return -(targets * F.log_softmax(logits, 1)).sum(1)
