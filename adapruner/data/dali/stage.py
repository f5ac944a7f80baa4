"""A DALI pipeline as a queue of batches, which outlives a batch that it cannot do."""

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

# A pipeline ends by waiting for its threads, and these do not come along into a process that is
# forked. One that is garbage by then is to be collected in the process that made it, nowhere else.
os.register_at_fork(after_in_child=gc.freeze)


class BatchError(RuntimeError):
    """DALI cannot do a batch; it does not say which of its samples is to blame."""


class Stage:
    """A DALI pipeline with a queue of batches in it, done in order and in the background.

    An error in one batch invalidates a DALI pipeline. A stage then builds the pipeline anew and
    gives it the batches that were waiting: only the one with the error is lost.

    Args:
        define: makes the nodes of the pipeline's outputs, in the context of a pipeline.
        batch_size: most samples in a batch.
        num_threads: of the pipeline.
        device_id: of the GPU; None computes on the CPU.
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
        # A pipeline is part of a reference cycle: its threads would stay until that is collected.
        if pipeline := getattr(self, "_pipeline", None):
            pipeline.__del__()

    def push(self, feeds: Feeds) -> None:
        """Start on a batch: the value of each input of the pipeline, by name."""
        self._waiting.append(feeds)
        self._feed(feeds)

    def pop(self) -> tuple[Any, ...]:
        """The outputs for the batch pushed first, as soon as they are there.

        Their memory is theirs for as long as they live.

        Raises:
            BatchError: it cannot be done; the ones pushed after it are still coming.
        """
        try:
            outputs: tuple[Any, ...] = tuple(self._pipeline.share_outputs(_stream(self._device_id)))
            self._pipeline.release_outputs()
        except Exception as error:  # RuntimeError, and others, by what an operator ran into
            self._waiting.popleft()
            self._pipeline.__del__()
            self._pipeline = self._build()
            for feeds in self._waiting:
                self._feed(feeds)
            raise BatchError(_essence(str(error))) from error
        self._waiting.popleft()
        return outputs

    def do(self, feeds: Feeds) -> tuple[Any, ...]:
        """The outputs for a batch, where none is under way.

        Raises:
            BatchError: it cannot be done.
        """
        self.push(feeds)
        return self.pop()

    def try_each(self, samples: Iterable[Feeds]) -> list[tuple[Any, ...] | BatchError]:
        """The outputs for each of some batches of one sample, or the error."""
        done: list[tuple[Any, ...] | BatchError] = []
        for feeds in samples:
            try:
                done.append(self.do(feeds))
            except BatchError as error:
                done.append(error)
        return done

    def _build(self) -> Any:
        pipelines = require("nvidia.dali.pipeline", extra="dali")
        # A depth of 1 is what DALI itself would ask for ahead; here batches are pushed ahead.
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
    """DALI's list of some samples: to have it made by ``feed_input`` takes four times as long."""
    tensors = require("nvidia.dali.tensors", extra="dali")
    one = tensors.TensorCPU
    return tensors.TensorListCPU([s if isinstance(s, one) else one(s) for s in samples])


def _stream(device_id: int | None) -> Any:
    return None if device_id is None else torch.cuda.current_stream(device_id)


def _essence(message: str) -> str:
    """What a DALI error says, without where in the pipeline's definition the operator stands."""
    lines = [line.strip() for line in message.partition("encountered:")[2].splitlines()]
    told = [line for line in lines if line and not line.startswith(("C++", "Current pipeline"))]
    return told[0] if told else " ".join(message.split())
