"""The DALI loader: decoding and augmentation in native threads, or on the GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapruner._util.extras import require
from adapruner.data.dali.decoder import Decoder
from adapruner.data.dali.graphs import (
    CropGraph,
    CustomGraph,
    Graph,
    UserGraph,
    WholeGraph,
    WindowGraph,
    ZoomGraph,
)
from adapruner.data.sources.base import Source
from adapruner.data.sources.find import as_source
from adapruner.data.sources.map_style import origin
from adapruner.data.unreadable import Failures, Unreadable, no_sample_readable
from adapruner.pruning.distributed import Ranks
from adapruner.pruning.order import batches, share
from adapruner.pruning.sampler import EpochSource, PrunedBatchSampler
from adapruner.vision.augmentation import Zoom
from adapruner.vision.transforms import MEAN, STD, ImageTransform, to_tensor


def why_not_dali(source: Source) -> str | None:
    """The reason why the DALI loader cannot read ``source``, or None if it can."""
    reason = _why_not_samples(source) or _why_not_transform(source)
    if reason is None:
        try:
            require("nvidia.dali", extra="dali")
        except ImportError as error:
            reason = str(error)
    return reason


class DaliLoader:
    """Yields ``(inputs, targets, ids)`` for the samples that the current epoch reads.

    The ids and their order are those of :meth:`adapruner.Pruner.loader`, and so is the handling of
    unreadable samples. The loader reads from disk only the samples that the epoch reads. It asks
    for the selection when an epoch starts, so a new selection takes effect at once. Windows and
    mirroring are drawn from (seed, epoch, index) and passed to DALI, so the batch of a sample does
    not change its augmentation.

    Args:
        data: an image folder, shards, or arrays of uint8 images with their classes, in any form
            that :func:`adapruner.data.as_source` takes. A transform must be one of
            :mod:`adapruner.vision`. DALI applies it.
        pruner: decides which samples each epoch reads.
        batch_size: samples in a batch.
        transform: a transform for ``data``, if ``data`` has none.
        graph: a function of two DALI nodes that replaces the transform. The first node is the
            encoded images (uint8, one dimension) or the stored arrays. The second is 16 random
            numbers for each sample (float32, in [0, 1)), functions of (seed, epoch, index). It
            returns the node of the images, which must have one shape.
        num_threads: threads of DALI. None means one for each CPU of the process.
        device: the device that decodes and augments, "cpu" or a CUDA device.
        drop_last: leave out a last batch that is not full.
        block_size: as in :meth:`adapruner.Pruner.loader`.
        on_error: "skip" or "raise".

    Raises:
        ImportError: DALI is not installed.
        TypeError: DALI cannot read the samples. The message says why.
        ValueError: an argument is out of range, or arguments exclude each other.

    Example:
        >>> from adapruner import Pruner
        >>> from adapruner.vision import training_transform
        >>> def loader(folder, pruner):
        ...     return DaliLoader(folder, pruner, 256, transform=training_transform(224))
    """

    def __init__(
        self,
        data: Any,
        pruner: EpochSource,
        batch_size: int = 128,
        *,
        transform: ImageTransform | None = None,
        graph: UserGraph | None = None,
        num_threads: int | None = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        block_size: int | None = None,
        on_error: str = "skip",
    ) -> None:
        if graph is not None and transform is not None:
            raise ValueError("expected a graph or a transform; found both")
        self.source = source = as_source(data, transform=transform)
        self.sampler = PrunedBatchSampler(pruner, batch_size, drop_last, block_size=block_size)
        self.batch_size = self.sampler.batch_size
        self.drop_last = drop_last
        self._pruner = pruner
        self._failures = Failures(pruner, len(source), on_error)
        self._decoder = _decoder(source, graph, self.batch_size, pruner.seed, num_threads, device)
        pruner.note_samples(source)

    def __len__(self) -> int:
        """Number of batches in the current epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self.sampler.begin()
        epoch = self._pruner.epoch
        keys = ((epoch, ids.numpy()) for ids in self.sampler.batches())
        for images, ids, unreadable in self._decoder.run(keys):
            self._failures.note(unreadable, len(ids))
            self.sampler.deliver()
            if images is not None:
                yield images, _targets(self.source, ids), ids
            elif not self.sampler.ranks.alone:
                images, other = self._stand_in()
                yield images, _targets(self.source, other), ids

    def _stand_in(self) -> tuple[Tensor, Tensor]:
        """The image and the id of the first sample of the epoch that can be read."""
        epoch = self._pruner.epoch
        for index in self.sampler.order():
            for images, ids, _ in self._decoder.run([(epoch, np.array([index]))]):
                if images is not None:
                    return images, ids
        raise no_sample_readable()

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch: batches delivered."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next iteration go on at a saved position.

        Load the state of the pruner from the same moment too.

        Raises:
            ValueError: the saved loader had other settings.
        """
        self.sampler.load_state_dict(state)


class DaliEvaluation:
    """Yields (batch, ids, unreadable samples) for ``indices``, in order, equal in each epoch.

    Each rank gets its share of each batch of W·``batch_size`` samples. The batch is None where no
    sample of the share can be read.

    Args:
        source: images, with a transform of :mod:`adapruner.vision`.
        indices: dataset indices, int64.
        batch_size: samples in a batch of one rank.
        ranks: the ranks that share the samples.
        seed: seed of the augmentation, if the transform is random.
        num_threads: threads of DALI. None means one for each CPU of the process.
        device: the device that decodes and augments.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        batch_size: int,
        *,
        ranks: Ranks,
        seed: int,
        num_threads: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._source = source
        whole = batches(indices, batch_size * ranks.size)
        self._batches = [share(batch, ranks.rank, ranks.size) for batch in whole]
        self._decoder = _decoder(source, None, batch_size, seed, num_threads, device)

    def __iter__(self) -> Iterator[tuple[Any, Tensor, list[Unreadable]]]:
        for images, ids, unreadable in self._decoder.run((0, ids) for ids in self._batches):
            batch = None if images is None else (images, _targets(self._source, ids))
            yield batch, ids, unreadable


def _why_not_samples(source: Source) -> str | None:
    if not source.has_encoded and source.pixel_axes is None:
        return f"samples of kind {source.kind!r} are neither image files nor uint8 images"
    mode = getattr(origin(source), "mode", "RGB")
    return None if mode == "RGB" else f"DALI decodes only to RGB, and mode is {mode!r}"


def _why_not_transform(source: Source) -> str | None:
    if isinstance(source.transform, ImageTransform):
        return None
    if source.transform in (None, to_tensor):
        idle = "arrays without a transform leave DALI nothing to do"
        return None if source.pixel_axes is None else idle
    found = type(source.transform).__name__
    return f"DALI can apply only transforms of adapruner.vision; found a {found}"


def _decoder(
    source: Source,
    graph: UserGraph | None,
    batch_size: int,
    seed: int,
    num_threads: int | None,
    device: torch.device | str,
) -> Decoder:
    require("nvidia.dali", extra="dali")
    reason = _why_not_samples(source)
    if graph is None:
        reason = reason or _why_not_transform(source)
    elif source.transform is not None:
        reason = "a graph replaces the transform, and the source has a transform"
    if reason is not None:
        raise TypeError(f"the DALI loader cannot read these samples: {reason}")
    device = torch.device(device)
    threads = num_threads or len(os.sched_getaffinity(0))
    return Decoder(
        source,
        _graph(source, device, threads) if graph is None else CustomGraph(graph),
        batch_size,
        seed=seed,
        num_threads=threads,
        device_id=None if device.type == "cpu" else device.index or 0,
    )


def _graph(source: Source, device: torch.device, num_threads: int) -> Graph:
    if not isinstance(source.transform, ImageTransform):
        return WholeGraph()
    augmentation = source.transform.augmentation
    if isinstance(augmentation, Zoom):
        if device.type == "cpu":
            return WindowGraph(augmentation, MEAN, STD, num_threads)
        return ZoomGraph(augmentation, MEAN, STD)
    return CropGraph(augmentation, MEAN, STD)


def _targets(source: Source, ids: Tensor) -> Tensor:
    assert source.targets is not None
    return torch.from_numpy(source.targets)[ids]
