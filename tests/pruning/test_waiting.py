"""A step reads no value from the device, so the host never waits, and a graph can capture it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adapruner import Pruner
from adapruner.pruning.gates import Gates
from adapruner.pruning.methods import find_method
from adapruner.training.evaluation import sample_cross_entropy
from adapruner.training.trainer import Trainer

aten = torch.ops.aten
WAIT = {  # operators that need values on the host, to return them or for the shape of a result
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
}
CALLS: dict[str, Callable[[Pruner, Tensor, Tensor], Any]] = {
    "loss": lambda pruner, x, ids: pruner.loss(x, ids % 5, ids),
    "overwriting": lambda pruner, x, ids: pruner.loss(x * 2, ids % 5, ids, overwrite_logits=True),
    "linear_loss": lambda pruner, x, ids: pruner.linear_loss(x, torch.ones(9, 5), ids % 9, ids),
    "weigh": lambda pruner, x, ids: pruner.weigh(x.square().sum(1), ids),
    "observe": lambda pruner, x, ids: pruner.observe(x.detach().square().sum(1), ids),
}


class Waits(TorchDispatchMode):
    """Records the called operators that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        by_flags = func.overloadpacket is aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func.overloadpacket in WAIT or by_flags:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_what_is_counted() -> None:
    pruner = Pruner(40, epochs=2)
    with Waits() as waits:
        pruner.gates.integer("population")
        _ = pruner.gates.logits[pruner.gates.logits > 0]
    assert len(waits.found) == 2


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_reads_nothing_back(name: str, normalize: bool, device: str) -> None:
    pruner = Pruner(40, epochs=2, warmup_epochs=0, normalize_loss=normalize)
    x, ids = torch.ones(8, 5, requires_grad=True), torch.arange(8)
    before = pruner.gates.logits.clone()
    with Waits() as waits:
        for _ in range(2):
            CALLS[name](pruner, x, ids)
    assert waits.found == []
    assert (pruner.gates.logits[:8] != before[:8]).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_by_shape_alone_everything_is_on_the_gpu(name: str, normalize: bool) -> None:
    # Fake tensors of a GPU, which need no GPU. Reading a value, or mixing devices, is an error.
    pruner = Pruner(40, epochs=2)
    with FakeTensorMode(), torch.device("cuda"):
        pruner.gates = Gates(40, 0.5, find_method("sampled"), "cuda", True, normalize)
        x, ids = torch.ones(8, 5, requires_grad=True), torch.arange(8)
        for batch in (ids, ids.cpu() if name in ("weigh", "observe") else ids):
            loss = CALLS[name](pruner, x, batch)
            assert loss is None or loss.is_cuda
        assert all(tensor.is_cuda for tensor in pruner.gates.state_dict().values())


def epoch_of_fast_prune(fused: bool, device: str, seen: Callable[[int], None]) -> None:
    """An epoch of the loop of fast_prune. ``seen`` is called for each batch."""
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), device="cpu")
    y = torch.arange(40, device="cpu") % 3

    class Batches:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for number, ids in enumerate(torch.arange(40, device="cpu").split(8)):
                batch = (x[ids], y[ids], ids)
                pinned = tuple(t.pin_memory() if device == "cuda" else t for t in batch)
                seen(number)
                yield pinned
            seen(5)

    pruner = Pruner(40, epochs=2, warmup_epochs=0, device=device)
    trainer = Trainer(
        nn.Linear(5, 3).to(device),
        pruner,
        loss=None,
        learning_rate=None,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, fused=fused),
        precision="fp32",
        compile=False,
        progress=False,
        on_error="skip",
    )
    before = pruner.gates.logits.clone()
    trainer.train(Batches())
    assert (pruner.gates.logits != before).all()


@pytest.mark.parametrize("fused", [True, False])
def test_fast_prune_queues_its_steps(fused: bool) -> None:
    counts = []
    with Waits() as waits:
        epoch_of_fast_prune(fused, "cpu", lambda number: counts.append(len(waits.found)))
    # A backward pass on the CPU reads the upstream gradient; on a GPU it does not.
    waited = [after - before - 1 for before, after in pairwise(counts)]
    # The host decides about the first step, and about each step if the optimiser is not fused.
    assert waited == ([1, 0, 0, 0, 0] if fused else [1] * 5)


@pytest.mark.cuda
def test_fast_prune_queues_its_steps_on_a_gpu() -> None:
    def seen(number: int) -> None:
        # The first step has setup work.
        torch.cuda.set_sync_debug_mode("error" if 1 <= number < 5 else "default")

    try:
        epoch_of_fast_prune(True, "cuda", seen)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_losses_of_an_evaluation_read_nothing_back() -> None:
    logits, target = torch.randn(8, 5, 3), torch.randint(0, 5, (8, 3))
    with Waits() as waits:
        sample_cross_entropy(logits, target)
    assert waits.found == []


@pytest.mark.cuda
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_whole_step_does_not_wait(name: str, normalize: bool) -> None:
    with torch.device("cuda"):
        pruner = Pruner(40, epochs=2, warmup_epochs=0, normalize_loss=normalize)
        x, ids = torch.ones(8, 5, requires_grad=True), torch.arange(8)
        here = torch.arange(8, device="cpu")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in (ids, here if name in ("weigh", "observe") else ids):
                loss = CALLS[name](pruner, x, batch)
                if loss is not None:
                    loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (pruner.gates.logits[:8] != 1).all()
