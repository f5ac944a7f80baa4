"""The second half of the DALI loader: stored images become an augmented batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapruner.data.dali.finish import Wait
from adapruner.data.dali.graphs import Encoded, Graph, Images, Pixels
from adapruner.data.dali.reader import Batch, FileReader, PixelReader, Reader
from adapruner.data.dali.stage import BatchError, Stage
from adapruner.data.sources.base import Source
from adapruner.data.unreadable import Unreadable
from adapruner.vision.augmentation import uniforms

# Batches started ahead in each step, besides the current one.
AHEAD = 3

_Item = TypeVar("_Item")
_Begun = TypeVar("_Begun")
_Ended = TypeVar("_Ended")
# A batch with the outputs of its pipeline, and a batch with the function that waits for images.
_Decoded: TypeAlias = tuple[Batch, tuple[Any, ...] | None]
_Finishing: TypeAlias = tuple[Batch, Wait | None]


class Done(NamedTuple):
    """A finished batch. ``images`` is None if no sample of the batch can be read."""

    images: Tensor | None
    ids: Tensor
    unreadable: list[Unreadable]


@dataclass
class _Pipelines:
    """The pipelines of one run.

    Attributes:
        reader: the first half of the loader.
        stages: the second half, with one pipeline for each set of inputs.
    """

    reader: Reader
    stages: dict[frozenset[str], Stage] = field(default_factory=dict)


class Decoder:
    """Reads, decodes and augments batches in DALI's threads, a few batches ahead.

    A first pipeline reads the sizes of encoded images. The window to decode depends on the size,
    and an image with too many pixels is not decoded.

    Args:
        source: the samples: encoded images, or uint8 arrays.
        graph: makes a batch from stored images.
        batch_size: the largest number of samples in a batch.
        seed: seed of the augmentation.
        num_threads: threads of DALI.
        device_id: the GPU. None computes on the CPU.
    """

    def __init__(
        self,
        source: Source,
        graph: Graph,
        batch_size: int,
        *,
        seed: int,
        num_threads: int,
        device_id: int | None = None,
    ) -> None:
        self._graph, self._seed = graph, seed
        self._batch_size, self._num_threads = batch_size, num_threads
        self._device_id = device_id
        self._make_reader: Callable[[], Reader]
        self._make_images: Callable[[str], Images]
        if source.pixel_axes is not None:
            self._make_reader = partial(PixelReader, source)
            self._make_images = partial(Pixels, source.pixel_axes)
        else:
            self._make_reader = partial(FileReader, source, batch_size, num_threads)
            self._make_images = Encoded
        self._idle: _Pipelines | None = None

    def run(self, batches: Iterable[tuple[int, npt.NDArray[np.int64]]]) -> Iterator[Done]:
        """Yield a batch for each (epoch, dataset indices), in order."""
        # If a run is interrupted, its pipelines and the batches inside are dropped.
        pipelines = self._idle or _Pipelines(self._make_reader())
        self._idle = None
        new = (Batch(epoch, ids) for epoch, ids in batches)
        read = _ahead(new, pipelines.reader.start, pipelines.reader.finish)
        decoded = _ahead(read, partial(self._start, pipelines), partial(self._pop, pipelines))
        yield from _ahead(decoded, self._finish, _wait)
        self._idle = pipelines

    def _start(self, pipelines: _Pipelines, batch: Batch) -> Batch:
        if not len(batch.ids):
            return batch
        self._draw(batch)
        kind = frozenset(batch.feeds)
        if kind not in pipelines.stages:
            pipelines.stages[kind] = self._new_stage(kind, self._batch_size)
        pipelines.stages[kind].push({**batch.feeds, "stored": batch.stored})
        return batch

    def _draw(self, batch: Batch) -> None:
        drawn = uniforms(self._seed, batch.epoch, batch.ids, self._graph.draws)
        batch.feeds = self._graph.inputs(batch.shapes, drawn)

    def _pop(self, pipelines: _Pipelines, batch: Batch) -> _Decoded:
        if not len(batch.ids):
            return batch, None
        try:
            return batch, pipelines.stages[frozenset(batch.feeds)].pop()
        except BatchError:
            return batch, self._one_by_one(pipelines.reader, batch)

    def _finish(self, decoded: _Decoded) -> _Finishing:
        batch, outputs = decoded
        return batch, None if outputs is None else self._graph.finish(outputs)

    def _new_stage(self, kind: frozenset[str], batch_size: int) -> Stage:
        device = "cpu" if self._device_id is None else "mixed"

        def define() -> tuple[Any, ...]:
            return self._graph.define(self._make_images(device), kind)

        return Stage(define, batch_size, self._num_threads, self._device_id)

    def _one_by_one(self, reader: Reader, batch: Batch) -> tuple[Any, ...] | None:
        """The outputs of a batch that failed, without the samples that cannot be read.

        The samples that DALI failed on are tried once more as the reader reads them without DALI.
        """
        reader.read_again(batch, list(self._errors(batch)))
        if len(batch.ids):
            self._draw(batch)  # an image can have another size now
            indices, errors = batch.ids.tolist(), self._errors(batch)
            batch.leave_out({at: reader.reason(indices[at], e) for at, e in errors.items()})
        if not len(batch.ids):
            return None
        again = self._new_stage(frozenset(batch.feeds), self._batch_size)
        return again.do({**batch.feeds, "stored": batch.stored})

    def _errors(self, batch: Batch) -> dict[int, BatchError]:
        """The places of the samples that fail alone, with their errors."""
        tried = self._new_stage(frozenset(batch.feeds), 1).try_each(
            {
                "stored": [batch.stored[at]],
                **{name: values[at : at + 1] for name, values in batch.feeds.items()},
            }
            for at in range(len(batch.ids))
        )
        return {at: found for at, found in enumerate(tried) if isinstance(found, BatchError)}


def _ahead(
    items: Iterable[_Item], start: Callable[[_Item], _Begun], finish: Callable[[_Begun], _Ended]
) -> Iterator[_Ended]:
    """Yield ``finish(start(item))`` for each item, with ``AHEAD`` further items started."""
    started: deque[_Begun] = deque()
    for item in items:
        started.append(start(item))
        if len(started) > AHEAD:
            yield finish(started.popleft())
    while started:
        yield finish(started.popleft())


def _wait(finishing: _Finishing) -> Done:
    batch, images = finishing
    return Done(images and images(), torch.from_numpy(batch.ids), batch.unreadable)
