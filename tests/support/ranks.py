"""Processes of a torch.distributed run on this machine, which run cases for a test.

The processes are forked from a server that has imported torch already, because the import takes
longer than the cases.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

SECONDS = 120  # longer than any case takes, on a busy machine
TESTS = Path(__file__).resolve().parents[1]


@dataclass
class Failed:
    """An error of a rank."""

    kind: str
    message: str
    trace: str


class Pool:
    """Some processes with a process group.

    Args:
        size: number of processes.
        start: whether the processes initialise torch.distributed.
        backend: of the process group. With NCCL, each process has a GPU of its own.
    """

    def __init__(self, size: int, start: bool = True, backend: str = "gloo") -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["support.rank_training"])
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self.processes = []
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), before]))
        try:
            for rank in range(size):
                ours, theirs = context.Pipe()
                store = os.path.join(self._folder.name, "store") if start else None
                process = context.Process(target=_serve, args=(theirs, store, rank, size, backend))
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self.processes.append(process)
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    def begin(self, case: Callable[..., Any], world: int, *arguments: Any, **settings: Any) -> None:
        """Start ``case(group, *arguments, **settings)`` on the first ``world`` processes."""
        self._begun = self._pipes[:world]
        for pipe in self._begun:
            pipe.send_bytes(pickle.dumps((case, world, arguments, settings)))

    def begin_each(self, case: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
        """Start ``case`` with other arguments on each process, and without a group."""
        self._begun = self._pipes
        for pipe, own in zip(self._pipes, arguments, strict=True):
            pipe.send_bytes(pickle.dumps((case, 0, own, {})))

    def results(self) -> list[Any]:
        """The results of the ranks; :class:`Failed` for an error, None for a killed process."""
        found: dict[Connection, Any] = {}
        while len(found) < len(self._begun):
            ready = wait([pipe for pipe in self._begun if pipe not in found], timeout=SECONDS)
            assert ready, f"ranks hang: {[i for i, p in enumerate(self._begun) if p not in found]}"
            for pipe in ready:
                try:
                    found[pipe] = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    found[pipe] = None
        return [found[pipe] for pipe in self._begun]

    def run(
        self, case: Callable[..., Any], world: int, *arguments: Any, **settings: Any
    ) -> list[Any]:
        """The results of a case that no rank may fail in."""
        self.begin(case, world, *arguments, **settings)
        results = self.results()
        for rank, result in enumerate(results):
            assert not isinstance(result, Failed), f"rank {rank}: {result.trace}"
            assert result is not None, f"rank {rank} was killed"
        return results

    def kill(self, rank: int) -> None:
        os.kill(self.processes[rank].pid, signal.SIGKILL)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # a process ends when it cannot receive
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, store: str | None, rank: int, size: int, backend: str) -> None:
    torch.set_num_threads(1)
    # Workers of a DataLoader would be children of the server, and outlive this process.
    multiprocessing.set_start_method("fork", force=True)
    if "nccl" in backend:
        torch.cuda.set_device(rank)
    groups: dict[int, Any] = {}
    if store is not None:
        dist.init_process_group(
            backend,
            store=dist.FileStore(store, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=SECONDS),
        )
        groups = {world: dist.new_group(range(world)) for world in range(1, size + 1)}
    while True:
        try:
            case, world, arguments, settings = pickle.loads(pipe.recv_bytes())
        except EOFError:
            break
        try:
            group = (groups[world],) if world else ()
            result = case(*group, *arguments, **settings)
        except BaseException as error:
            result = Failed(type(error).__name__, str(error), traceback.format_exc())
        pipe.send_bytes(pickle.dumps(result))  # a Pipe's own pickles share files for tensors
        if isinstance(result, Failed):
            break  # as a program does that nobody catches the error of
    os._exit(0)  # the group may be broken, and gloo then aborts an orderly exit
