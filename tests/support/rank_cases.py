"""What the ranks of a test do. One process does the same with a process group of None."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from adapruner import Pruner
from adapruner.pruning.order import batches, share

# Collectives of torch.distributed that send tensors.
COLLECTIVES = (
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all"),
    *("all_to_all_single", "broadcast", "broadcast_object_list", "gather", "gather_object"),
    *("reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter", "send", "recv"),
    *("isend", "irecv", "barrier", "scatter_object_list"),
)


def plain(state: Any) -> Any:
    """A nested state as bytes and plain values that can be compared; without seconds."""
    if isinstance(state, Tensor):
        return str(state.dtype), tuple(state.shape), state.numpy().tobytes()
    if isinstance(state, Mapping):
        return {key: plain(value) for key, value in state.items() if key != "seconds"}
    if isinstance(state, (list, tuple)):
        return [plain(value) for value in state]
    return repr(state) if isinstance(state, float) else state


def losses_of(case: dict[str, Any], epoch: int) -> Tensor:
    """Losses of all samples in an epoch: with ties, and with infinities and NaN if asked for."""
    generator = torch.Generator().manual_seed(1000 * case["seed"] + epoch)
    drawn = torch.rand(case["num_samples"], generator=generator) * 4
    losses = (drawn * 4).round() / 4 if case["ties"] else drawn
    for index in case["infinite"]:
        losses[index] = torch.inf if epoch % 2 else torch.nan
    return losses


def visit(pruner: Pruner, case: dict[str, Any], batch_size: int) -> None:
    """An epoch of visits. Bad samples are excluded where they are met."""
    losses, bad = losses_of(case, pruner.epoch), set(case["bad"])
    drop_last, block_size = case["drop_last"], case["block_size"]
    for ids in pruner.batches(batch_size, drop_last, block_size):
        found = [index for index in ids.tolist() if index in bad]
        if found and pruner.epoch >= case["bad_from"]:
            pruner.exclude([(index, f"bad {index} \udc80é") for index in found])
            ids = torch.tensor([index for index in ids.tolist() if index not in bad])
            ids = ids.to(torch.int64)
        pruner.weigh(losses[ids].requires_grad_(), ids)
    if case["held_out"] is not None:
        ranks = pruner.ranks
        for batch in batches(np.array(case["held_out"]), batch_size * ranks.size):
            ids = torch.from_numpy(share(batch, ranks.rank, ranks.size))
            pruner.observe(losses[ids], ids)


def pruner_of(group: Any, case: dict[str, Any]) -> Pruner:
    return Pruner(case["num_samples"], process_group=group, **case["settings"])


def prune(group: Any, case: dict[str, Any], batch_size: int) -> Any:
    """A run on given losses: its state after each epoch, and its kept set; or its error."""
    try:
        pruner = pruner_of(group, case)
        states = []
        while not pruner.finished:
            visit(pruner, case, batch_size)
            pruner.step(1 / (1 + pruner.epoch), 0.01)
            states.append(plain(pruner.state_dict()))
        return states, plain(vars(pruner.result()) | {"saved": None})
    except ValueError as error:
        return type(error).__name__, str(error)


def prune_all(group: Any, cases: list[dict[str, Any]]) -> list[Any]:
    world = 1 if group is None else group.size()
    return [prune(group, case, case["global_batch"] // world) for case in cases]


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the bytes that this process hands to each collective."""
    sent: dict[str, int] = {}

    def wrapped(name: str, original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            # The tensor to send comes after the place for the gathered ones.
            own = arguments[1] if name == "all_gather" else arguments[0]
            sent[name] = sent.get(name, 0) + own.numel() * own.element_size()
            return original(*arguments, **named)

        return call

    with contextlib.ExitStack() as stack:
        for name in COLLECTIVES:
            original = getattr(dist, name)
            stack.enter_context(mock.patch.object(dist, name, wrapped(name, original)))
        yield sent


def traffic(group: Any, case: dict[str, Any], batch_size: int) -> list[dict[str, int]]:
    """Bytes sent in the visits, in the step and by result() of each epoch, and its visits."""
    pruner = pruner_of(group, case)
    found = []
    while not pruner.finished:
        losses, visits = losses_of(case, pruner.epoch), 0
        shares = list(pruner.batches(batch_size))
        with counted() as in_steps:
            for ids in shares:
                pruner.weigh(losses[ids].requires_grad_(), ids)
                visits += len(ids)
        with counted() as at_end:
            pruner.step()
        found.append(
            {"visits": visits, "steps": sum(in_steps.values()), "end": sum(at_end.values())}
        )
    return found
