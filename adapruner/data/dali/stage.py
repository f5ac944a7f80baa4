"""A DALI pipeline as a queue of batches. It goes on after a batch that fails."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch

from adapruner._util.extras import require

Feeds: TypeAlias = Mapping[str, Any]
Define: TypeAlias = Callable[[], tuple[Any, ...]]

# A pipeline waits for its threads when it is deleted. A forked process does not have the threads,
# so it must never collect a pipeline that is garbage already. Freezing in the child would be too
# late: hooks of other packages run there earlier and can start a collection.
os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)


class BatchError(RuntimeError):
    """DALI failed on a batch. It does not say which sample is the cause."""


class Stage:
    """A DALI pipeline with a queue of batches. It works in order and in the background.

    An error in one batch invalidates a DALI pipeline. The stage then builds a new pipeline and
    queues the waiting batches again, so only the batch with the error is lost.

    Args:
        define: makes the output nodes of the pipeline. It is called in the pipeline's context.
        batch_size: the largest number of samples in a batch.
        num_threads: threads of the pipeline.
        device_id: the GPU. None computes on the CPU.
    """

    def __init__(
        self, define: Define, batch_size: int, num_threads: int, device_id: int | None
    ) -> None:
        self._define = define
        self._batch_size, self._num_threads = batch_size, num_threads
        self._device_id = device_id
        self._waiting: deque[Feeds] = deque()
        self._pipeline = self._build()

    def __del__(self) -> None:
        # A pipeline is part of a reference cycle, so its threads would stay until a collection.
        if pipeline := getattr(self, "_pipeline", None):
            pipeline.__del__()

    def push(self, feeds: Feeds) -> None:
        """Start a batch. ``feeds`` has the value of each input of the pipeline."""
        self._waiting.append(feeds)
        self._feed(feeds)

    def pop(self) -> tuple[Any, ...]:
        """Wait for the outputs of the oldest batch.

        Their memory is not reused while they live.

        Raises:
            BatchError: DALI failed on the batch. Later batches are not lost.
        """
        try:
            outputs: tuple[Any, ...] = tuple(self._pipeline.share_outputs(_stream(self._device_id)))
            self._pipeline.release_outputs()
        except Exception as error:  # the type depends on the operator
            self._waiting.popleft()
            self._pipeline.__del__()
            self._pipeline = self._build()
            for feeds in self._waiting:
                self._feed(feeds)
            raise BatchError(_essence(str(error))) from error
        self._waiting.popleft()
        return outputs

    def do(self, feeds: Feeds) -> tuple[Any, ...]:
        """The outputs of a batch. The queue must be empty.

        Raises:
            BatchError: DALI failed on the batch.
        """
        self.push(feeds)
        return self.pop()

    def try_each(self, samples: Iterable[Feeds]) -> list[tuple[Any, ...] | BatchError]:
        """The outputs of each batch of one sample, or its error."""
        done: list[tuple[Any, ...] | BatchError] = []
        for feeds in samples:
            try:
                done.append(self.do(feeds))
            except BatchError as error:
                done.append(error)
        return done

    def _build(self) -> Any:
        pipelines = require("nvidia.dali.pipeline", extra="dali")
        # The depth is 1, because batches are pushed ahead here and not prefetched by DALI.
        pipeline = pipelines.Pipeline(
            self._batch_size,
            self._num_threads,
            self._device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipeline:
            pipeline.set_outputs(*self._define())
        pipeline.build()
        return pipeline

    def _feed(self, feeds: Feeds) -> None:
        for name, value in feeds.items():
            self._pipeline.feed_input(name, _listed(value) if isinstance(value, list) else value)
        self._pipeline.schedule_run()


def _listed(samples: list[Any]) -> Any:
    """The samples as a DALI list. ``feed_input`` would take four times as long to make it."""
    tensors = require("nvidia.dali.tensors", extra="dali")
    one = tensors.TensorCPU
    return tensors.TensorListCPU([s if isinstance(s, one) else one(s) for s in samples])


def _stream(device_id: int | None) -> Any:
    return None if device_id is None else torch.cuda.current_stream(device_id)


def _essence(message: str) -> str:
    """The message of a DALI error without the place in the definition of the pipeline."""
    lines = [line.strip() for line in message.partition("encountered:")[2].splitlines()]
    told = [line for line in lines if line and not line.startswith(("C++", "Current pipeline"))]
    return told[0] if told else " ".join(message.split())
