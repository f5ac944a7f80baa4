"""Pruner and fast_prune on a GPU, compared with the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import blobs, convolutional, digits, drive, frozen
from torch import Tensor, nn

from adapruner import Pruner, PruneResult, fast_prune
from adapruner.pruning import bitmask
from adapruner.training import losses

pytestmark = pytest.mark.cuda
N, B = 200, 16


def same_state(one: Pruner, other: Pruner) -> bool:
    """Whether the gates of both have the same bits."""
    pairs = zip(one.gates.state_dict().values(), other.gates.state_dict().values(), strict=True)
    return all(torch.equal(a.cpu().nan_to_num(), b.cpu().nan_to_num()) for a, b in pairs)


def batch(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and ids, on the GPU."""
    random = torch.Generator().manual_seed(number)
    ids = torch.randint(0, N, (B,), generator=random)
    logits = torch.randn(B, 7, generator=random) * 3
    return logits.cuda().requires_grad_(), (ids % 7).cuda(), ids.cuda()


# --- the same as on the CPU


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": np.arange(N) % 3},
        {"held_out": np.arange(0, N, 9)},
        {"labels": np.arange(N) % 3, "held_out": np.arange(0, N, 9), "normalize_loss": True},
        {"track_losses": False, "method": "published", "warmup_epochs": 0},
    ],
    ids=["plain", "classes", "held out", "all", "published"],
)
@pytest.mark.parametrize("unreadable", [(), (3, 70, 71)], ids=["all readable", "unreadable"])
def test_given_losses_lead_to_the_same_bits(
    options: dict[str, Any], unreadable: tuple[int, ...]
) -> None:
    losses = frozen(N)
    pruners = [Pruner(N, 0.4, 8, device=device, **options) for device in ("cpu", "cuda")]
    kept = []
    for pruner in pruners:
        pruner.exclude([(index, "gone") for index in unreadable])
        device = pruner.gates.logits.device
        kept.append(drive(pruner, lambda epoch, device=device: losses(epoch).to(device)))
    assert all(np.array_equal(a, b) for a, b in zip(*kept, strict=True))
    assert same_state(*pruners)
    here, there = (pruner.result() for pruner in pruners)
    assert torch.equal(here.indices, there.indices)
    assert {there.indices.device.type, there.gate_logits.device.type} == {"cpu"}
    assert torch.equal(here.gate_logits, there.gate_logits)
    for one, other in zip(here.history, there.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_batches_are_on_the_gpu_in_the_same_order() -> None:
    here, there = (Pruner(N, epochs=2, device=device) for device in ("cpu", "cuda"))
    for one, other in zip(here.batches(7), there.batches(7), strict=True):
        assert other.is_cuda
        assert torch.equal(one, other.cpu())


def test_a_state_goes_from_one_device_to_the_other() -> None:
    losses = frozen(N)(0)
    there, here = (Pruner(N, 0.5, 4, normalize_loss=True, device=d) for d in ("cuda", "cpu"))
    for ids in there.batches(20):
        there.weigh(losses.cuda()[ids], ids)
    there.step()
    here.load_state_dict(there.state_dict())
    assert same_state(there, here)
    again = Pruner(N, 0.5, 4, normalize_loss=True, device="cuda")
    again.load_state_dict(here.state_dict())
    for pruner in (there, here, again):
        for ids in pruner.batches(20):
            pruner.weigh(losses.to(ids.device)[ids], ids)
        pruner.step()
    assert same_state(there, here)
    assert same_state(there, again)


@pytest.mark.parametrize("kind", ["rare labels", "far numbers"])
def test_the_unit_of_losses_is_that_of_the_cpu(kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    targets = (torch.rand(N, 5, generator=generator) < 0.05).float()
    if kind == "far numbers":
        targets = 30 + torch.randn(N, generator=generator)
    loss = losses.multi_label if kind == "rare labels" else losses.squared_error
    units = []
    for device in ("cpu", "cuda"):
        pruner, there = Pruner(N, 0.4, 8, device=device), targets.to(device)
        for ids in pruner.batches(B):
            outputs = torch.zeros_like(there[ids], requires_grad=True)
            pruner.custom_loss(loss, outputs, there[ids], ids).backward()
        entry = pruner.step()
        units.append(pruner.gates.real("loss_scale"))
        assert units[-1] < entry["training_loss"] / 2
    assert units[0] == pytest.approx(units[1], rel=1e-3)


def test_floors_of_classes_are_those_of_the_cpu() -> None:
    labels, given = torch.arange(N) ** 3 // (N**3 // 5), frozen(N)
    kept = []
    for device in ("cpu", "cuda"):
        pruner = Pruner(N, 0.2, 8, device=device, labels=labels, balance="floor")
        drive(pruner, lambda epoch, device=device: given(epoch).to(device))
        kept.append(pruner.result().indices)
    assert torch.equal(*kept)


def test_alike_neighbours_are_those_of_the_cpu() -> None:
    size = 2000
    given = frozen(size // 20)(0).repeat_interleave(20)
    given = given * (1 + 0.2 * torch.rand(size, generator=torch.Generator().manual_seed(1)))
    results = []
    for device in ("cpu", "cuda"):
        pruner = Pruner(size, 0.4, 12, device=device)
        with pytest.warns(match="neighbours in the dataset"):
            drive(pruner, lambda epoch, device=device: given.to(device))
        results.append(pruner.result())
    assert torch.equal(results[0].indices, results[1].indices)
    assert results[0].config["balance"] == results[1].config["balance"] == "neighbours"


# --- ways to run a step


def test_a_step_in_a_graph() -> None:
    graphed, plain = (Pruner(N, 0.5, 2, warmup_epochs=0, device="cuda") for _ in range(2))
    logits, target, ids = batch(0)
    weight = torch.ones(7, device="cuda", requires_grad=True)

    def step(pruner: Pruner, logits: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        weight.grad = None
        loss = pruner.loss(logits * weight, target, ids)
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(graphed, logits.detach(), target, ids)
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        step(plain, logits.detach(), target, ids)
    static = [logits.detach().clone(), target.clone(), ids.clone()]
    graph = torch.cuda.CUDAGraph()
    weight.grad = None
    with torch.cuda.graph(graph):
        loss = step(graphed, *static)
    gradient = weight.grad
    for number in range(1, 6):
        new = batch(number)
        for held, value in zip(static, new, strict=True):
            held.copy_(value.detach())
        graph.replay()
        expected = step(plain, new[0].detach(), *new[1:])
        assert torch.equal(loss, expected)
        assert weight.grad is not None
        assert torch.equal(gradient, weight.grad)
        assert same_state(graphed, plain)
    static[2][5] = N + 7
    graph.replay()
    with pytest.raises(IndexError, match=rf"ids\[5\] must .*; found {N + 7} on"):
        graphed.step()


def test_a_stream_of_its_own() -> None:
    streamed, plain = (Pruner(N, 0.5, 2, warmup_epochs=0, device="cuda") for _ in range(2))
    side = torch.cuda.Stream()
    for number in range(10):
        logits, target, ids = batch(number)
        expected = plain.loss(logits, target, ids)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(1_000_000)  # a kernel on another stream would run too early
            scaled = logits * 2
            found = streamed.loss(scaled / 2, target, ids)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(found, expected)
    assert same_state(streamed, plain)


def test_a_compiled_step() -> None:
    compiled, plain = (Pruner(N, 0.5, 2, warmup_epochs=0, device="cuda") for _ in range(2))
    step = torch.compile(compiled.loss, fullgraph=True)
    for number in range(4):
        logits, target, ids = batch(number)
        gradients = []
        for of in (step, plain.loss):
            loss = of(logits * 1.0, target, ids)
            gradients.append((loss, *torch.autograd.grad(loss, logits)))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert same_state(compiled, plain)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_a_gpu_that_is_not_the_current_one() -> None:
    losses = frozen(N)(0)
    pruners = [Pruner(N, 0.5, 3, device=device) for device in ("cuda:0", "cuda:1")]
    for pruner in pruners:
        drive(pruner, lambda epoch, d=pruner.gates.logits.device: losses.to(d))
    assert same_state(*pruners)


# --- whole runs


def test_fast_prune_follows_the_model_to_the_gpu(tmp_path: Path) -> None:
    x, y = blobs(N)
    model = nn.Linear(5, 3).cuda()
    result = fast_prune(model, (x, y), 0.5, epochs=6, num_workers=1, progress=False)
    assert next(model.parameters()).is_cuda
    assert len(result.indices) == N // 2
    assert result.sample_losses is not None
    assert not result.sample_losses.is_cuda
    result.save(tmp_path / "kept.safetensors")
    again = PruneResult.load(tmp_path / "kept.safetensors")
    assert torch.equal(again.indices, result.indices)


def test_digits() -> None:
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = convolutional(dropout=0.1)
    result = fast_prune(model, (x, y), 0.5, epochs=8, device="cuda", progress=False)
    assert len(result.indices) == (len(x) + 1) // 2
    assert not result.forced
    losses = [entry["training_loss"] for entry in result.history]
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        found = model.eval()(x.cuda()).argmax(1).cpu()
    assert (found == y).double().mean() > 0.95


def test_resumes_where_it_was(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop_at(model: nn.Module, calls: int) -> nn.Module:
        left = [calls]

        def count(*_: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped

        model.register_forward_pre_hook(count)
        return model

    def run(model: nn.Module) -> PruneResult:
        data = blobs(N)
        return fast_prune(
            model, data, 0.5, epochs=5, checkpoint_dir=tmp_path, device="cuda", progress=False
        )

    def fresh() -> nn.Module:
        model = nn.Linear(5, 3)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    with pytest.raises(Stopped):
        run(stop_at(fresh(), 5))
    resumed = run(fresh())
    for path in tmp_path.iterdir():
        path.unlink()
    whole = run(fresh())
    assert len(resumed.history) == 5
    overlap = len(np.intersect1d(resumed.indices.numpy(), whole.indices.numpy()))
    assert overlap == len(whole.indices)


def test_a_bad_label_stops_the_run() -> None:
    x, y = blobs(N)
    y[77] = 3
    with pytest.raises(IndexError, match=r"must be a class .*; found 3"):
        fast_prune(nn.Linear(5, 3), (x, y), 0.5, epochs=3, device="cuda", progress=False)


def test_masks_of_a_run_are_on_the_cpu() -> None:
    pruner = Pruner(N, 0.5, 4, device="cuda")
    drive(pruner, lambda epoch: frozen(N)(epoch).cuda())
    assert not pruner.selection.kept.is_cuda
    assert bitmask.count(pruner.selection.kept) == N // 2
