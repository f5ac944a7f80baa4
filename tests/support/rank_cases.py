"""What the ranks of a test do. One process does the same with a process group of None."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from adapruner import PrunedBatchSampler, PrunedSampler, Pruner, with_ids
from adapruner._util.tensors import whole
from adapruner.pruning import bitmask
from adapruner.pruning.order import batches, share
from adapruner.training.losses import multi_label, squared_error
from adapruner.vision import evaluation_transform
from support.training_data import blobs

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
        return str(state.dtype), tuple(state.shape), state.cpu().numpy().tobytes()
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
    losses = losses.to(pruner.gates.logits.device)
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


def memory(group: Any, count: int, batch_size: int) -> tuple[int, int, int]:
    """Bytes of the gates and of the records of an epoch, and the visits of this rank."""
    pruner = Pruner(count, process_group=group)
    visits = 0
    for ids in pruner.batches(batch_size):
        pruner.weigh(torch.rand(len(ids), requires_grad=True), ids)
        visits += len(ids)
    tensors = [pruner.gates.logits, pruner.gates.age, pruner.gates.last_loss]
    tensors += pruner.gates.record.state_dict().values()
    recorded: Any = pruner.visits
    pieces = [*recorded._ids.pieces(), *recorded._losses.pieces(), *recorded._classes.pieces()]
    gates, records = (sum(t.nbytes for t in each) for each in (tensors, pieces))
    return gates, records, visits


# --- the losses of a batch


def table(num_samples: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits and targets of all samples. The first three samples have ignored rows only."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(num_samples, *shape, generator=generator)
    target = torch.randint(0, shape[0], (num_samples, *shape[1:]), generator=generator)
    if len(shape) > 1:
        target[:, ::3] = -100
        target[:3] = -100
    return logits, target


def by_logits(group: Any, settings: dict[str, Any], shape: tuple[int, ...], size: int) -> Any:
    """The states of a run that gives logits to ``loss``."""
    world = 1 if group is None else group.size()
    logits, target = table(203, shape)
    pruner = Pruner(203, process_group=group, **settings)
    states = []
    while not pruner.finished:
        for ids in pruner.batches(size // world):
            pruner.loss(logits[ids].requires_grad_(), target[ids], ids)
        pruner.step()
        states.append(plain(pruner.state_dict()))
    return states


def unit_of_ranks(group: Any, classes: int | None) -> tuple[float, float]:
    """The unit of losses after an epoch of labels that are seldom true, or of far numbers, and
    their mean loss."""
    world = 1 if group is None else group.size()
    generator = torch.Generator().manual_seed(2)
    targets = 9 + torch.randn(151, generator=generator)
    if classes is not None:
        targets = torch.rand(151, classes, generator=generator) < 0.05
    pruner = Pruner(151, 0.5, 3, process_group=group)
    for ids in pruner.batches(12 // world):
        outputs = torch.zeros(targets[ids].shape, requires_grad=True)
        if classes is None:
            pruner.custom_loss(squared_error, outputs, targets[ids], ids)
        else:
            pruner.custom_loss(multi_label, outputs, targets[ids], ids)
    entry = pruner.step()
    return pruner.gates.real("loss_scale"), entry["training_loss"]


def unit_with_unreadable(group: Any, bad: list[int]) -> float:
    """The unit of losses after an epoch of far numbers, in which some samples cannot be read."""
    world = 1 if group is None else group.size()
    count = 3000
    noise = torch.randn(count, generator=torch.Generator().manual_seed(2))
    targets = 9 + noise * (1 + torch.arange(count) / count)
    pruner = Pruner(count, 0.5, 3, process_group=group)
    for ids in pruner.batches(128 // world):
        left_out = sorted(set(ids.tolist()) & set(bad))
        pruner.exclude([(index, "torn") for index in left_out])
        own = torch.tensor([i for i in ids.tolist() if i not in left_out], dtype=torch.int64)
        outputs = torch.zeros(len(own), requires_grad=True)
        pruner.custom_loss(squared_error, outputs, targets[own], own)
    pruner.step()
    return pruner.gates.real("loss_scale")


def share_weights(group: Any, count: int, first: int, size: int) -> list[tuple[int, float]]:
    """Samples and factor of each batch, after other batches of the same epoch."""
    world = group.size()
    pruner = Pruner(count, 0.5, 3, process_group=group)
    list(pruner.batches(first // world))
    return [(len(ids), pruner.share_weight(ids)) for ids in pruner.batches(size // world)]


def states_in_a_row(group: Any) -> tuple[Any, Any]:
    """What the state has of targets: after a few batches, and again after a result and a load."""
    targets = 9 + torch.randn(151, generator=torch.Generator().manual_seed(2))
    pruner = Pruner(151, 0.5, 3, warmup_epochs=0, process_group=group)
    for ids in islice(pruner.batches(6), 5):
        outputs = torch.zeros(len(ids), requires_grad=True)
        pruner.custom_loss(squared_error, outputs, targets[ids], ids)
    pruner.result()
    first = pruner.state_dict()
    pruner.load_state_dict(first)
    pruner.synchronize()
    return first["targets_of_constant"], pruner.state_dict()["targets_of_constant"]


def gradients(group: Any, count: int, size: int, way: str) -> list[Tensor]:
    """The gradients of each batch of an epoch, averaged over the ranks as DDP does."""
    world = 1 if group is None else group.size()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (count,), generator=generator)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    pruner = Pruner(count, 1.0, 3, warmup_epochs=0, method="published", process_group=group)
    found = []
    for ids in pruner.batches(size // world):
        if way == "linear_loss":
            loss = pruner.linear_loss(x[ids], weight, y[ids], ids)
        elif way == "loss":
            loss = pruner.loss(x[ids] @ weight.T, y[ids], ids)
        elif way == "equal weights":
            options = {"weight": torch.full((3,), 0.5).double(), "weighted_mean": True}
            loss = pruner.loss(x[ids] @ weight.T, y[ids], ids, **options)
        else:
            rows = nn.functional.cross_entropy(x[ids] @ weight.T, y[ids], reduction="none")
            loss = pruner.weigh(rows, ids)
            if way == "added":
                loss = loss + pruner.share_weight(ids) * (x[ids] @ weight.T).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        if group is not None:
            dist.all_reduce(gradient, group=group)
        found.append(gradient / world)
    return found


class WithHead(nn.Module):
    """A layer and a head. The forward gives the inputs of the head, and its logits."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Linear(4, 6, dtype=torch.float64)
            self.head = nn.Linear(6, 5, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).tanh()
        return hidden, self.head(hidden)


def with_head(group: Any, way: str, fused: bool = True) -> dict[str, Tensor]:
    """The gradients of a batch of 8 samples, by the loss of a head that ranks may share."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model = WithHead()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 5, (8,), generator=generator)
    world = 1 if group is None else group.size()
    pruner = Pruner(8, 1.0, 3, warmup_epochs=0, process_group=group)
    runs: nn.Module = model
    if way.startswith("FSDP2"):
        mesh = DeviceMesh.from_group(group, "cpu")
        if way == "FSDP2, head apart":
            fully_shard(model.head, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif way.startswith("FSDP1"):
        settings = {
            "process_group": group,
            "use_orig_params": way == "FSDP1, own parameters",
            "device_id": torch.device("cpu"),
        }
        model.head = FullyShardedDataParallel(model.head, **settings)
        runs = FullyShardedDataParallel(model, **settings)
    for ids in pruner.batches(8 // world):
        hidden, logits = runs(x[ids])
        if way == "DTensor":
            from torch.distributed.tensor import distribute_tensor

            logits = distribute_tensor(logits.detach(), DeviceMesh.from_group(group, "cpu"))
        if fused:
            head = model.head
            loss = pruner.linear_loss(hidden, head.weight, y[ids], ids, linear_bias=head.bias)
        else:
            loss = pruner.loss(logits, y[ids], ids)
        loss.backward()
    return {name: whole(value.grad).clone() for name, value in model.named_parameters()}


# --- loaders and states


class Dataset(torch.utils.data.Dataset[Any]):
    """Points in five dimensions. Counts the reads of this process.

    Args:
        num_samples: N.
        errors: for some samples, the error that reading them raises.
        labels: for some samples, a label in place of their own.
    """

    def __init__(
        self,
        num_samples: int,
        errors: dict[int, BaseException] | None = None,
        labels: dict[int, int] | None = None,
    ) -> None:
        self.x, y = blobs(num_samples)
        self.targets = [(labels or {}).get(i, int(y[i])) for i in range(num_samples)]
        self.errors = errors or {}
        self.reads = np.zeros(num_samples, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        if index in self.errors:
            raise self.errors[index]
        return self.x[index], self.targets[index]


def read(group: Any, data: Any, kind: str, settings: dict[str, Any]) -> list[Any]:
    """For each epoch, the ids of each batch of this rank and the reads of each sample."""
    count = len(data) if isinstance(data, Dataset) else len(data[0])
    pruner = Pruner(count, 0.4, 4, process_group=group)
    losses = torch.rand(count, generator=torch.Generator().manual_seed(1)) * 3
    if kind == "dali":
        from adapruner.data.dali.loader import DaliLoader

        transform = evaluation_transform(16)
        loader: Any = DaliLoader(data, pruner, transform=transform, num_threads=1, **settings)
    elif kind == "own":
        sampler = PrunedBatchSampler(pruner, **settings)
        loader = torch.utils.data.DataLoader(with_ids(data), batch_sampler=sampler)
    else:
        loader = pruner.loader(data, num_workers=int(kind == "workers"), **settings)
    found = []
    while not pruner.finished:
        expected = list(pruner.batches(settings["batch_size"], block_size=settings["block_size"]))
        before = data.reads.copy() if isinstance(data, Dataset) else 0
        batches = []
        for inputs, targets, ids in loader:
            assert len(inputs) == len(targets) == len(ids)
            batches.append(ids.tolist())
            pruner.weigh(losses[ids].requires_grad_(), ids)
        assert batches == [ids.tolist() for ids in expected]
        reads = data.reads - before if isinstance(data, Dataset) else 0
        found.append((batches, bitmask.indices(pruner.read_mask()).tolist(), reads))
        pruner.step()
    return found


def begin(group: Any, count: int, size: int, batches: int) -> Any:
    """The states of pruner and loader after some batches of the second epoch."""
    pruner, loader = _with_loader(group, count, size)
    _epoch(pruner, loader)
    pruner.step()
    _epoch(pruner, loader, batches)
    return pruner.state_dict(), loader.state_dict()


def go_on(group: Any, count: int, size: int, state: Any) -> Any:
    """The end of a run that begins at the states of pruner and loader; None is the start."""
    pruner, loader = _with_loader(group, count, size)
    if state is not None:
        pruner.load_state_dict(state[0])
        loader.load_state_dict(state[1])
    while not pruner.finished:
        _epoch(pruner, loader)
        pruner.step()
    return plain(pruner.state_dict())


def _with_loader(group: Any, count: int, size: int) -> Any:
    world = 1 if group is None else group.size()
    pruner = Pruner(count, 0.4, 5, method="published", warmup_epochs=0, process_group=group)
    return pruner, pruner.loader(Dataset(count), size // world)


def _epoch(pruner: Pruner, loader: Any, most: int | None = None) -> None:
    losses = torch.rand(pruner.num_samples, generator=torch.Generator().manual_seed(1)) * 3
    for _, _, ids in itertools.islice(loader, most):
        pruner.weigh(losses[ids].requires_grad_(), ids)


# --- what is refused


def refused(group: Any, what: str) -> None:
    """Ranks that do not do the same."""
    rank = dist.get_rank()
    count, settings, data = 40, {"seed": 0}, Dataset(40)
    if what == "seed":
        settings = {"seed": rank}
    elif what == "keep_ratio":
        settings = {"keep_ratio": 0.5 + rank / 10}
    elif what == "num_samples":
        count += rank
    elif what == "labels":
        settings = {"labels": [int(i == rank) for i in range(40)]}
    pruner = Pruner(count, process_group=group, **settings)
    if what == "fingerprint":
        data.x[0] += rank
        pruner.loader((data.x, torch.tensor(data.targets)), 4)
    elif what == "batch_size":
        pruner.batches(4 + rank)
    elif what == "single samples":
        PrunedSampler(pruner)
    ids = torch.arange(4) + 4 * rank
    losses = torch.ones(4, requires_grad=True)
    if what == "same sample":
        ids[2] = 30
    pruner.weigh(losses, ids)
    if what == "calls" and rank == 1:
        pruner.weigh(losses, ids + 8)
    if what == "order of calls":
        (pruner.observe if rank else pruner.weigh)(losses, ids + 8)
        (pruner.weigh if rank else pruner.observe)(losses, ids + 16)
    if what == "other call" and rank == 1:
        pruner.state_dict()
    if what == "destroyed":
        dist.destroy_process_group()
    pruner.step(rank / 10 if what == "validation_loss" else None)


def made_too_early(store: str, rank: int) -> None:
    """A pruner that is made before the process group."""
    pruner = Pruner(40)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    pruner.step()
