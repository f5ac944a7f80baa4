"""The model of many ranks: how it is wrapped, and its state as one process would have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from adapruner._util.tensors import shard_of
from adapruner.pruning.distributed import Ranks


def core_of(model: nn.Module) -> nn.Module:
    """The model without the wrappers of ``torch.compile`` and DDP."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, DistributedDataParallel) else model


def shared_model(model: nn.Module, ranks: Ranks, device: torch.device) -> tuple[nn.Module, str]:
    """The model that averages its gradients over the ranks, and the name of its way to do so.

    Args:
        model: a plain model, or one that is wrapped in DDP or sharded by ``fully_shard``.
        ranks: the ranks. A process alone needs no wrapper.
        device: the device of the model.

    Raises:
        TypeError: the model is wrapped in the first version of FSDP.
    """
    if ranks.alone:
        return model, "none"
    # Imported here, because a process alone does not need it and it takes a second.
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, FullyShardedDataParallel):
        raise TypeError(
            "model must be plain, wrapped in DistributedDataParallel or sharded by fully_shard; "
            "found FullyShardedDataParallel"
        )
    if isinstance(inner, FSDPModule):
        return model, "FSDP2"
    if isinstance(inner, DistributedDataParallel):
        return model, "DDP"
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, process_group=ranks.group), "DDP"


def leads(model: nn.Module, ranks: Ranks) -> bool:
    """Whether this process writes files and shows the progress, for all ranks.

    Of processes that share a model, by tensor parallelism for example, only the first one does.
    """
    meshes = {p.device_mesh for p in model.parameters() if hasattr(p, "device_mesh")}
    return ranks.first and not any(any(mesh.get_coordinate() or ()) for mesh in meshes)


def load_whole(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state of whole tensors, of which each rank takes its shard."""
    like = model.state_dict()
    model.load_state_dict({name: _shard(t, like.get(name)) for name, t in state.items()})


def load_whole_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser with whole tensors, of which each rank takes its shard."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {name: _shard(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _shard(value: Any, like: Any) -> Any:
    """The shard of a whole tensor, where ``like`` is a shard (a DTensor) of the same shape."""
    if not hasattr(like, "placements") or getattr(value, "shape", None) != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gradients_are_finite(optimizer: Optimizer) -> Tensor:
    """Whether all gradients are finite, a bool scalar on the device. The same on all ranks.

    The gradients are averaged already. Ranks that hold shards of them exchange one number.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    own = [shard_of(g) for g in gradients]
    dense = [(g.coalesce().values() if g.is_sparse else g) for g in own]
    # The norm by the largest value does not overflow, and passes NaN on. Shards may be empty.
    largest = torch.nn.utils.get_total_norm([g for g in dense if g.numel()], norm_type=torch.inf)
    broken = ~largest.isfinite()
    for mesh in dict.fromkeys(g.device_mesh for g in gradients if hasattr(g, "device_mesh")):
        broken = _on_any_rank(broken, mesh)
    return ~broken


def _on_any_rank(flag: Tensor, mesh: Any) -> Tensor:
    """Whether ``flag`` is True on any rank of a device mesh, a bool scalar."""
    from torch.distributed.tensor import DTensor, Partial

    own = flag.float().to(mesh.device_type)
    return DTensor.from_local(own, mesh, [Partial("max")] * mesh.ndim).full_tensor() > 0
