"""timm's loaders with a pruner, and losses of samples with soft targets (mixup, cutmix)."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from adapruner._util.extras import require
from adapruner.data.loaders.user_loader import pruned_loader
from adapruner.pruning.pruner import Pruner
from adapruner.pruning.sampler import Deliveries


def pruned_timm_loader(loader: Any, pruner: Pruner) -> PrunedTimmLoader:
    """A loader of ``timm.data.create_loader`` that reads what a pruner chooses, with ids.

    It keeps the augmentations, the workers, the prefetching, random erasing, and mixup in the
    collate function. Batches are ``(inputs, targets, ids)``. With mixup or cutmix a mixed image
    counts for the sample of its own place in the batch.

    ``state_dict()`` and ``load_state_dict()`` resume in the middle of an epoch, with the same
    samples in the same batches. The augmentation of these batches differs from that of a run
    without a stop. timm draws crops and colours, and mixup in the collate function, from the
    generators of the reading processes. These end with the processes. It draws random erasing from
    the generators of the main process, which may be a batch ahead.

    Args:
        loader: a training loader of ``create_loader``, with or without ``use_prefetcher``.
        pruner: a pruner of the samples of its dataset.

    Raises:
        DatasetMismatchError: the dataset has another length than the pruner.
        TypeError: ``loader`` is of another kind, or its dataset is an ``IterableDataset``.
        ValueError: the loader makes several images of a sample (``num_aug_splits``), or never ends
            an epoch (``use_multi_epochs_loader``).
    """
    return PrunedTimmLoader(loader, pruner)


class PrunedTimmLoader:
    """Yields ``(inputs, targets, ids)``; see :func:`pruned_timm_loader`.

    Attributes:
        loader: the DataLoader behind it. Its ``batch_sampler`` is a
            :class:`adapruner.PrunedBatchSampler`.
    """

    def __init__(self, loader: Any, pruner: Pruner) -> None:
        loaders = require("timm.data.loader", extra="vision")
        prefetch = loaders.PrefetchLoader
        own = loader.loader if isinstance(loader, prefetch) else loader
        if isinstance(own, loaders.MultiEpochsDataLoader):
            raise ValueError(
                "expected a loader whose epochs end; found a MultiEpochsDataLoader. Create the "
                "loader without use_multi_epochs_loader; persistent_workers keeps the workers too"
            )
        self.loader: DataLoader[Any] = pruned_loader(own, pruner)
        self._collate_fn = own.collate_fn
        batch_sampler: Any = self.loader.batch_sampler
        self._deliveries = Deliveries(batch_sampler)
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
        self._deliveries.begin()
        for inputs, targets in self._batches:
            ids = self._ids.popleft()
            if len(inputs) != len(ids):
                raise ValueError(
                    "expected one image of each sample; found "
                    f"{len(inputs)} images of {len(ids)} samples. Create the loader without "
                    'num_aug_splits, and FastCollateMixup without mode="half"'
                )
            self._deliveries.deliver()
            yield inputs, targets, ids

    @property
    def mixup_enabled(self) -> bool:
        """Whether ``FastCollateMixup`` mixes, as at timm's own loader. It can be set."""
        return bool(getattr(self._collate_fn, "mixup_enabled", False))

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        if hasattr(self._collate_fn, "mixup_enabled"):
            self._collate_fn.mixup_enabled = enabled

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch: batches that the caller got, without those read ahead."""
        return self._deliveries.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next iteration continue at a saved position; see :func:`pruned_timm_loader`.

        Load the state of the pruner from the same moment too.

        Raises:
            ValueError: the saved loader had other settings.
        """
        self._deliveries.load_state_dict(state)


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
