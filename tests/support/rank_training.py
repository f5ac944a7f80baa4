"""What the ranks of a test of fast_prune do. One process does the same with a group of None."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from adapruner import Pruner, fast_prune, vision
from adapruner._util.tensors import whole
from adapruner.data import as_source
from adapruner.training import trainer
from support.rank_cases import Dataset, plain
from support.training_data import convolutional, digits


def network(batch_norm: bool = False) -> nn.Module:
    """The same weights in each process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(16) if batch_norm else nn.Identity()
        return nn.Sequential(nn.Linear(5, 16), middle, nn.ReLU(), nn.Linear(16, 3))


def fast(group: Any, data: Any, model: nn.Module | None = None, **settings: Any) -> Any:
    """What fast_prune gives, on the ranks or in one process with their batches together.

    Returns:
        The kept indices, the history without seconds, unreadable samples, weights, config.
    """
    world = 1 if group is None else group.size()
    settings = {"keep_ratio": 0.5, "epochs": 4, "global_batch": 32, "progress": False} | settings
    settings["batch_size"] = settings.pop("global_batch") // world
    model = network() if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = fast_prune(model, data, process_group=group, loader="torch", **settings)
    weights = {name: whole(value).cpu() for name, value in model.state_dict().items()}
    return {
        "indices": result.indices.tolist(),
        "scores": result.gate_logits,
        "history": plain(result.history),
        "unreadable": result.unreadable,
        "weights": weights,
        "config": result.config,
        "reads": getattr(data, "reads", None),
    }


def failing(group: Any, rank: int, what: str, folder: str, **settings: Any) -> Any:
    """A run in which one rank fails."""
    own = dist.get_rank() == rank
    errors: dict[int, BaseException] = {}
    labels: dict[int, int] = {}
    if own and what == "label":
        labels = dict.fromkeys(range(100), 7)
    if own and what == "sample":
        errors = {index: OSError("torn file") for index in range(100)}
    if own and what == "interrupt":
        errors = {index: KeyboardInterrupt() for index in range(100)}
    data = Dataset(200, errors, labels)
    with contextlib.ExitStack() as stack:
        if own and what == "disk":
            full = mock.Mock(side_effect=OSError(28, "No space left on device"))
            stack.enter_context(mock.patch.object(trainer, "save_checkpoint", full))
        return fast(
            group,
            data,
            on_error="raise",
            checkpoint_dir=folder,
            fingerprint="points",
            **settings,
        )


def held_digits(
    group: Any, way: str, folder: str | None, device: str = "cpu", **settings: Any
) -> Any:
    """A run on digits with a model that is wrapped in one way, and its accuracy."""
    x, y = digits()
    torch.manual_seed(0)
    model: Any = convolutional().to(device)
    if way == "FSDP2":
        mesh = DeviceMesh.from_group(group, device)
        for layer in (model[0], model[4]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif way == "DDP of the caller":
        model = nn.parallel.DistributedDataParallel(model, process_group=group)
    settings = {"epochs": 6, "global_batch": 64, "compile": way == "compiled DDP"} | settings
    found = fast(group, (x[:1200], y[:1200]), model, checkpoint_dir=folder, **settings)
    model.eval()
    with torch.no_grad():
        right = model(x[1200:].to(device)).argmax(1).cpu() == y[1200:]
    return found | {"accuracy": right.float().mean().item()}


def accumulated(group: Any) -> list[Tensor]:
    """The weights of a loop that steps after two batches, with DDP's no_sync."""
    data = Dataset(200)
    pruner = Pruner(200, 0.5, 3, process_group=group)
    model: Any = network().double()
    world = 1 if group is None else group.size()
    if group is not None:
        model = nn.parallel.DistributedDataParallel(model, process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = pruner.loader(data, 48 // world)
    while not pruner.finished:
        for number, (inputs, targets, ids) in enumerate(loader, 1):
            steps = number % 2 == 0 or number == len(loader)
            waits = group is not None and not steps
            with model.no_sync() if waits else contextlib.nullcontext():
                pruner.loss(model(inputs.double()), targets, ids).backward()
            if steps:
                optimizer.step()
                optimizer.zero_grad()
        pruner.step()
    return [p.detach() for p in model.parameters()]


def small(group: Any, errors: dict[int, BaseException], **settings: Any) -> Any:
    """A run on few or on partly unreadable samples."""
    return fast(group, Dataset(settings.pop("count"), errors), **settings)


def not_finite(group: Any, sharded: bool = False) -> Any:
    """A run with samples that have NaN in their input."""
    data, model = Dataset(200), network()
    data.x[[7, 90]] = torch.nan
    if sharded:
        fully_shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
    return fast(group, data, model)


def remote(group: Any, address: str, **settings: Any) -> tuple[int, int | None]:
    """The bytes that a run on shards in an object store has read, and those of this rank."""
    source = as_source(address, transform=vision.to_tensor)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8 * 6 * 3, 3))
    result = fast_prune(
        model, source, 0.5, 4, batch_size=4, progress=False, process_group=group, **settings
    )
    return result.saved["bytes_read"], source.bytes_read


def with_checkpoints(group: Any, folder: str, optimizer: Any = None, sharded: bool = False) -> Any:
    """A run with a checkpoint after each epoch."""
    data, model = Dataset(300), network(True)
    if sharded:
        fully_shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
    return fast(group, data, model, checkpoint_dir=folder, optimizer=optimizer)


def tensor_parallel(group: Any, folder: str, optimizer: Any) -> Any:
    """The same on four ranks, of which two read the same samples and share each layer."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = network()
    plan = {"0": ColwiseParallel(), "3": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    fully_shard(model, mesh=mesh["data"])
    own = mesh.get_group("data")
    return fast(own, Dataset(300), model, checkpoint_dir=folder, optimizer=optimizer)


class StopsAfter:
    """The default optimiser, which is interrupted or killed after some steps."""

    def __init__(self, steps: int, kills: bool = False) -> None:
        self.left, self.kills = steps, kills

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)

        def count(*arguments: Any) -> None:
            self.left -= 1
            if self.left == 0 and self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.left == 0:
                raise KeyboardInterrupt

        optimizer.register_step_pre_hook(count)
        return optimizer


def main(folder: str) -> None:
    """A process under torchrun. Rank 0 is killed in the third epoch of its first life."""
    dist.init_process_group("gloo")
    first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    dies = first_life and dist.get_rank() == 0
    with_checkpoints(dist.group.WORLD, folder, StopsAfter(24 if dies else -1, kills=True))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
