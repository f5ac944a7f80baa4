"""The ranks of a run: the processes that train one model together, and what they exchange."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from adapruner.errors import RankError

# Key of the first error of a rank, in the store of the process group.
_ERROR = "adapruner/error"


class Ranks:
    """The ranks of a run. Every rank has the same gates and selects the same samples.

    A process alone is rank 0 of 1 and exchanges nothing.

    Args:
        process_group: the ranks that see different samples, a data-parallel group. Where None, all
            processes of ``torch.distributed`` if it is initialised, else this process alone.

    Attributes:
        rank: the number of this process in the group.
        size: W, the number of ranks.

    Raises:
        TypeError: ``process_group`` is not a process group.
        ValueError: this process is not in the group.
    """

    def __init__(self, process_group: Any | None = None) -> None:
        self._chosen = process_group is not None
        self.group: Any = None
        self.rank, self.size = 0, 1
        if process_group is None and _is_initialized():
            process_group = dist.group.WORLD
        if process_group is None:
            return
        if process_group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("process_group must hold this process; found a group without it")
        if not isinstance(process_group, dist.ProcessGroup):
            raise TypeError(
                "process_group must be a torch.distributed process group, "
                f'mesh.get_group("dp") for example; found {type(process_group).__name__}'
            )
        if process_group.size() > 1:
            self.group = process_group
            self.rank, self.size = process_group.rank(), process_group.size()

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self  # it never changes, and a process group cannot be copied

    @property
    def alone(self) -> bool:
        """Whether this process is the only rank."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process is rank 0, which writes files and shows the progress."""
        return self.rank == 0

    # --- what the ranks exchange

    def meet(self, call: str, error: BaseException | None = None, **same: Any) -> None:
        """Wait for all ranks, and raise on all of them if one has failed.

        Args:
            call: the call in which ranks meet, as a message names it.
            error: the error of this rank, or None.
            same: values that must be the same on all ranks.

        Raises:
            RankError: another rank has failed, or is in another call.
            ValueError: a value is not the same on all ranks.
            RuntimeError: this process is alone, because its pruner was made too early.
        """
        self.exchange(call, None, error, **same)

    def exchange(
        self, call: str, note: Any, error: BaseException | None = None, **same: Any
    ) -> list[Any]:
        """:meth:`meet`, and the notes of all ranks. A note is a value that JSON can hold."""
        if self.alone:
            self._check_still_alone()
            if error is not None:
                raise error
            return [note]
        if not _is_initialized():
            raise RuntimeError("the process group of this run was destroyed before the run ended")
        told = None if error is None else describe(error)
        content = {"call": call, "error": told, "same": same, "note": note}
        found = [json.loads(text) for text in self._gather_text(json.dumps(content))]
        for rank, other in enumerate(found):
            if other["error"] is not None:
                raise error or RankError(f"rank {rank} failed: {other['error']}")
        for rank, other in enumerate(found):
            if other["call"] != call:
                raise RankError(
                    f"all ranks must make the same calls; found {call} on rank {self.rank} and "
                    f"{other['call']} on rank {rank}"
                )
        for name in same:
            for rank, other in enumerate(found):
                one, value = found[0]["same"][name], other["same"][name]
                if repr(one) != repr(value):
                    raise ValueError(
                        f"all ranks must have the same {name.replace('_', ' ')}; found "
                        f"{reprlib.repr(one)} on rank 0 and {reprlib.repr(value)} on rank {rank}"
                    )
        return [other["note"] for other in found]

    def gather(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """The tensors of all ranks, of one dimension each, one after another.

        Args:
            own: the tensor of this rank, ``[counts[rank]]``.
            counts: the length on each rank.

        Returns:
            ``[sum(counts)]``, on the device of ``own``.
        """
        longest = max(counts)
        if self.alone or longest == 0:
            return own
        device = self._device_for(own)
        mine = torch.zeros(longest, dtype=own.dtype, device=device)
        mine[: len(own)] = own
        every = [torch.empty_like(mine) for _ in counts]
        with self._reachable():
            dist.all_gather(every, mine, group=self.group)
        parts = [one[:count] for one, count in zip(every, counts, strict=True)]
        return torch.cat(parts).to(own.device)

    def gather_calls(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensors of all calls of all ranks: call by call, and in a call rank by rank.

        Args:
            parts: a tensor of one dimension for each call of this rank. All ranks have as many.
        """
        own = torch.cat(list(parts))
        if self.alone:
            return own
        sizes = torch.tensor([len(part) for part in parts], dtype=torch.int64, device="cpu")
        lengths = self.gather(sizes, [len(parts)] * self.size).view(self.size, -1)
        every = self.gather(own, lengths.sum(1).tolist())
        return every[call_by_call(lengths).to(own.device)]

    def on_first(self, call: str, do: Callable[[], None]) -> None:
        """Let rank 0 do something for all. Its error is raised on all ranks."""
        error = None
        if self.first:
            try:
                do()
            except Exception as found:
                error = found
        self.meet(call, error)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` with the values that they have on rank 0."""
        if self.alone:
            return
        for tensor in tensors:
            device = self._device_for(tensor)
            sent = tensor.to(device)
            with self._reachable():
                dist.broadcast(sent, group=self.group, group_src=0)
            if sent is not tensor:
                tensor.copy_(sent)

    def _gather_text(self, own: str) -> list[str]:
        data = torch.from_numpy(np.frombuffer(own.encode(), np.uint8).copy())
        length = torch.tensor([len(data)], dtype=torch.int64, device="cpu")
        counts = self.gather(length, [1] * self.size).tolist()
        every = self.gather(data, counts)
        return [part.numpy().tobytes().decode() for part in every.split(counts)]

    def _device_for(self, tensor: Tensor) -> torch.device:
        """The device on which the backend of the group takes a tensor."""
        backends = str(dist.get_backend_config(self.group))
        if "cpu:" in backends and not (tensor.is_cuda and "cuda:nccl" in backends):
            return torch.device("cpu")
        return tensor.device if tensor.is_cuda else torch.device("cuda")

    # --- ranks that fail

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Tell the other ranks of an error in the block, and name the error of another rank.

        A rank that waits for a rank that has failed gets an error of the connection. It is raised
        as a :class:`RankError` that names the error of the other rank. All ranks must enter the
        block.
        """
        if self.alone:
            yield
            return
        store = self.group.get_group_store()
        self.on_first("start", lambda: store.delete_key(_ERROR))  # that of an earlier block
        try:
            yield
        except RankError:
            raise
        except BaseException as error:
            first = _first_error(store, f"rank {self.rank} failed: {describe(error)}")
            of_connection = type(error) is RuntimeError or isinstance(error, dist.DistError)
            if first is None or not of_connection:
                raise
            raise RankError(first) from error

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(f"another rank cannot be reached: {error}") from error

    def _check_still_alone(self) -> None:
        if not self._chosen and _is_initialized() and dist.get_world_size() > 1:
            raise RuntimeError(
                f"expected a pruner that was made after torch.distributed was initialised; found "
                f"one that was made before, so that each of the {dist.get_world_size()} ranks "
                "would select by its own losses"
            )


def call_by_call(lengths: Tensor) -> Tensor:
    """The order that takes samples call by call, and in a call rank by rank.

    Args:
        lengths: int64 ``[W, calls]``, the samples of each rank in each call. They lie rank by rank.

    >>> call_by_call(torch.tensor([[2, 1], [1, 1]]))
    tensor([0, 1, 3, 2, 4])
    """
    starts = (lengths.flatten().cumsum(0) - lengths.flatten()).view_as(lengths).T.flatten()
    lengths = lengths.T.flatten()
    shift = (starts - lengths.cumsum(0) + lengths).repeat_interleave(lengths)
    return shift + torch.arange(len(shift), device="cpu")


def describe(error: BaseException) -> str:
    """The type and the message of an error."""
    return f"{type(error).__name__}: {error}"


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _first_error(store: Any, own: str) -> str | None:
    """Note an error of this rank, and return the error that another rank has noted before."""
    try:
        first = store.compare_set(_ERROR, "", own).decode()
    except RuntimeError:  # the store ended with the rank that held it
        return None
    return None if first == own else first
