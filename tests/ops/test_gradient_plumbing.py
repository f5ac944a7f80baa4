"""Losses and gates of a Pruner in the ways that training loops use autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adapruner import Pruner
from adapruner.ops import reference
from adapruner.ops.reference import ReferenceGates

N, BATCH, CLASSES = 60, 20, 5
LOSSES = ("loss", "overwriting", "weigh")


@dataclass
class Training:
    """A small model, its data, and a pruner in the middle of a run."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    pruner: Pruner
    optimizer: torch.optim.Optimizer

    def batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        ids = torch.randperm(N, generator=torch.Generator().manual_seed(3))
        return [(self.inputs[i], self.targets[i], i) for i in ids.split(BATCH)]

    def loss(self, kind: str, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """The loss of a batch, by one of :data:`LOSSES`."""
        logits = self.model(x)
        if kind == "weigh":
            sample_loss = functional.cross_entropy(logits, y, reduction="none")
            return self.pruner.weigh(sample_loss, ids)
        return self.pruner.loss(logits, y, ids, overwrite_logits=kind == "overwriting")

    def gradients(self) -> Tensor:
        """The gradients of all parameters, as one vector."""
        found = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(found)

    def state(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.pruner.gates.state_dict().items()}

    @property
    def visits(self) -> int:
        """Number of losses that the gates have seen since the start of the epoch."""
        return self.pruner.gates.integer("loss_count")


def training(slope: float = 5.0, **settings: Any) -> Training:
    """The same training each time. The slope is steep, so gate steps change the weights clearly."""
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.5)
    settings = {"keep_ratio": 0.5, "epochs": 6, "warmup_epochs": 0, "track_losses": True} | settings
    pruner = Pruner(N, method="published", **settings)
    pruner.gates.logits.copy_(torch.randn(N, generator=random) * 0.3)
    pruner.gates.set_slope(slope)
    return Training(
        model,
        torch.randn(N, 8, generator=random),
        torch.randint(0, CLASSES, (N,), generator=random),
        pruner,
        torch.optim.SGD(model.parameters(), lr=0.1),
    )


def same_gates(found: Training, expected: Training) -> None:
    for name, tensor in expected.state().items():
        assert torch.equal(found.state()[name].nan_to_num(), tensor.nan_to_num()), name


def reference_of(run: Training) -> ReferenceGates:
    gates = run.pruner.gates
    return ReferenceGates(
        gates.logits.clone(),
        run.pruner.keep_ratio,
        gates.real("slope"),
        easy_weight=gates.real("easy_weight"),
        pressure_cap=gates.real("pressure_cap"),
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_a_plain_step(kind: str) -> None:
    run = training()
    expected = reference_of(run)
    for x, y, ids in run.batches():
        run.optimizer.zero_grad()
        logits = run.model(x).detach().double().requires_grad_()
        loss, _, pressure = reference.masked_cross_entropy(expected, logits, y, ids)
        (gradient,) = torch.autograd.grad(loss, logits)
        found = run.loss(kind, x, y, ids)
        found.backward()
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
        bias = run.model[2].bias.grad  # type: ignore[index]
        assert torch.allclose(bias.double(), gradient.sum(0), atol=1e-6)
        expected.update(ids.tolist(), pressure.tolist())
        assert torch.allclose(run.pruner.gates.logits.double(), expected.m, atol=1e-5)
    assert run.visits == N


@pytest.mark.parametrize("kind", LOSSES)
def test_autocast(kind: str) -> None:
    run = training()
    x, y, ids = run.batches()[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = run.model(x)
        assert logits.dtype == torch.bfloat16
        expected = reference_of(run)
        _, _, pressure = reference.masked_cross_entropy(expected, logits.detach(), y, ids)
        loss = run.loss(kind, x, y, ids)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in run.model.parameters())
    expected.update(ids.tolist(), pressure.tolist())
    assert torch.allclose(run.pruner.gates.logits.double(), expected.m, atol=1e-4)
    plain = training()
    plain.loss(kind, x, y, ids).backward()
    assert torch.allclose(run.gradients(), plain.gradients(), atol=0.01)
    assert run.visits == BATCH


@pytest.mark.parametrize("kind", LOSSES)
def test_grad_scaler_with_skipped_steps(kind: str) -> None:
    run, plain = training(), training()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)
    x, y, ids = run.batches()[0]
    before = [p.clone() for p in run.model.parameters()]
    for skipped in (True, False):
        run.optimizer.zero_grad()
        plain.optimizer.zero_grad()
        # A thousand times the first scale is too much for float32.
        scaler.scale(1000 * run.loss(kind, x, y, ids)).backward()
        (1000 * plain.loss(kind, x, y, ids)).backward()
        scaler.unscale_(run.optimizer)
        scaler.step(run.optimizer)
        scaler.update()
        moved = [not torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True)]
        assert any(moved) is not skipped
        assert run.gradients().isfinite().all() == (not skipped)
    assert torch.allclose(run.gradients(), plain.gradients(), rtol=1e-5, atol=1e-7)
    same_gates(run, plain)  # gates step although the optimiser skips a step
    assert run.visits == 2 * BATCH


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_accumulation(kind: str) -> None:
    run, apart = training(), training()
    total = torch.zeros(len(torch.cat([p.flatten() for p in run.model.parameters()])))
    for x, y, ids in run.batches():
        (run.loss(kind, x, y, ids) / 3).backward()
        apart.optimizer.zero_grad()
        apart.loss("loss", x, y, ids).backward()
        total += apart.gradients() / 3
    assert torch.allclose(run.gradients(), total, rtol=1e-4, atol=1e-7)
    assert torch.allclose(run.pruner.gates.logits, apart.pruner.gates.logits, atol=1e-6)
    assert run.visits == N


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_summed_before_one_backward_pass(kind: str) -> None:
    run, apart = training(), training()
    total = torch.zeros(())
    for x, y, ids in run.batches():
        total = total + run.loss(kind, x, y, ids)
        apart.loss("loss", x, y, ids).backward()
    total.backward()
    assert torch.allclose(run.gradients(), apart.gradients(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(kind: str, reentrant: bool) -> None:
    run, plain = training(), training()
    for x, y, ids in run.batches():
        x = x.clone().requires_grad_()  # reentrant checkpointing needs it
        for each in (run, plain):
            each.optimizer.zero_grad()
        loss = checkpoint(run.loss, kind, x, y, ids, use_reentrant=reentrant)
        loss.backward()
        expected = plain.loss(kind, x, y, ids)
        expected.backward()
        assert torch.equal(loss, expected)
        # The loss uses the gates from before the step, also if the forward pass was repeated.
        assert torch.allclose(run.gradients(), plain.gradients(), rtol=1e-5, atol=1e-7)
        run.optimizer.step()
        plain.model.load_state_dict(run.model.state_dict())
    same_gates(run, plain)
    assert run.visits == N


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_model_before_the_loss(reentrant: bool) -> None:
    run, plain = training(), training()
    x, y, ids = run.batches()[0]
    x.requires_grad_()
    logits = checkpoint(run.model, x, use_reentrant=reentrant)
    run.pruner.loss(logits, y, ids, overwrite_logits=True).backward()
    plain.loss("loss", x, y, ids).backward()
    assert torch.allclose(run.gradients(), plain.gradients(), rtol=1e-5, atol=1e-7)
    same_gates(run, plain)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_nested_checkpoints(outer: bool, inner: bool) -> None:
    run, plain = training(), training()
    x, y, ids = run.batches()[0]
    x.requires_grad_()

    def nested(x: Tensor) -> Tensor:
        return checkpoint(run.loss, "loss", x, y, ids, use_reentrant=inner)

    checkpoint(nested, x, use_reentrant=outer).backward()
    plain.loss("loss", x, y, ids).backward()
    assert torch.allclose(run.gradients(), plain.gradients(), rtol=1e-5, atol=1e-7)
    same_gates(run, plain)


@pytest.mark.parametrize("kind", LOSSES)
def test_saved_tensors_on_the_cpu(kind: str) -> None:
    run, plain = training(), training()
    x, y, ids = run.batches()[0]
    with torch.autograd.graph.save_on_cpu():
        loss = run.loss(kind, x, y, ids)
    loss.backward()
    plain.loss(kind, x, y, ids).backward()
    assert torch.allclose(run.gradients(), plain.gradients(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_steps_no_gate(kind: str, mode: Callable[[], Any]) -> None:
    run = training()
    before = run.state()
    x, y, ids = run.batches()[0]
    with mode():
        loss = run.loss(kind, x, y, ids)
    assert loss.isfinite()
    for name, tensor in run.state().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
    run.loss(kind, x, y, ids).backward()  # and training goes on
    assert run.visits == BATCH


def test_gates_step_whatever_becomes_of_the_loss() -> None:
    run = training()
    x, y, ids = run.batches()[0]
    run.loss("loss", x, y, ids)  # never differentiated
    run.loss("loss", x, y, ids).backward()
    assert run.visits == 2 * BATCH


def test_frozen_model_with_gradients_enabled_steps_the_gates() -> None:
    run, plain = training(), training()
    run.model.requires_grad_(False)
    x, y, ids = run.batches()[0]
    assert not run.loss("loss", x, y, ids).requires_grad
    plain.loss("loss", x, y, ids)
    same_gates(run, plain)


def run_epochs(run: Training, loss: Callable[..., Tensor], epochs: int) -> list[float]:
    history = []
    for _ in range(epochs):
        for x, y, ids in run.batches():
            value = loss(x, y, ids)
            value.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            history.append(value.item())
        run.pruner.step()
    return history


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("loss", "inductor"), ("overwriting", "aot_eager"), ("weigh", "aot_eager")],
)
def test_compiled_step(kind: str, backend: str) -> None:
    # Warm-up, its end, and a slope that changes in each epoch use one compiled graph.
    compiled, eager = (training(slope=0.1, epochs=5, warmup_epochs=2) for _ in range(2))
    counter = CompileCounterWithBackend(backend)

    def step(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return compiled.loss(kind, x, y, ids)

    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = run_epochs(compiled, torch.compile(step, backend=counter, fullgraph=True), 5)
    assert counter.frame_count == 1
    expected = run_epochs(eager, lambda x, y, ids: eager.loss(kind, x, y, ids), 5)
    assert found == pytest.approx(expected, rel=1e-5)
    slopes = {entry["slope"] for entry in compiled.pruner.history}
    assert len(slopes) == 3
    found_gates, expected_gates = compiled.pruner.gates, eager.pruner.gates
    assert torch.allclose(found_gates.logits, expected_gates.logits, atol=1e-5)
    assert torch.equal(found_gates.age, expected_gates.age)
    result, other = compiled.pruner.result(), eager.pruner.result()
    assert torch.equal(result.indices, other.indices)


def test_compiled_evaluation_steps_no_gate() -> None:
    run = training()
    before = run.state()
    x, y, ids = run.batches()[0]

    @torch.compile(backend="aot_eager", fullgraph=True)
    def evaluate(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return run.loss("loss", x, y, ids)

    torch._dynamo.reset()
    with torch.no_grad():
        loss = evaluate(x, y, ids)
    assert loss.item() == pytest.approx(run.loss("loss", x, y, ids).item(), rel=1e-6)
    assert run.visits == BATCH  # of the eager call
    assert before["state"][0] == run.state()["state"][0]
