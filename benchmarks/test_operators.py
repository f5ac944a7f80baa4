"""The native operators beside eager torch; each is checked before it is timed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from adapruner import ops, reference
from adapruner.gates import Gates
from adapruner.methods import METHODS

EPSILON = 1e-5


def make_gates(num_samples: int) -> Gates:
    gates = Gates(num_samples, 0.7, METHODS["adapruner"])
    gates.logits.copy_(torch.randn(num_samples, generator=torch.Generator().manual_seed(0)))
    gates.set_slope(1.0)
    return gates


@pytest.mark.parametrize("shape", [(256, 10), (1024, 100), (1024, 1000), (4096, 1000)], ids=str)
def test_masked_cross_entropy(compare, shape):
    generator = torch.Generator().manual_seed(1)
    gates = make_gates(50_000)
    logits = torch.randn(shape, generator=generator, requires_grad=True)
    target = torch.randint(shape[1], shape[:1], generator=generator)
    ids = torch.randint(50_000, shape[:1], generator=generator)
    balance = 0.1  # a constant here; eager torch would need a pass over all gates for it

    # The gradient is asked for, not accumulated in a leaf, as within a model.
    def ours():
        losses = ops.masked_cross_entropy(logits, target, ids, gates.logits, gates.state)
        return losses.loss, torch.autograd.grad(losses.loss, logits)[0]

    def eager():
        loss = functional.cross_entropy(logits, target, reduction="none")
        detached = loss.detach()
        pressure = detached - torch.log(detached + EPSILON) + balance
        masked = (torch.sigmoid(gates.logits[ids]) * loss).mean()
        return pressure, torch.autograd.grad(masked, logits)

    def plain():
        return torch.autograd.grad(functional.cross_entropy(logits, target), logits)

    loss, gradient = ours()
    oracle = reference.ReferenceGates(gates.logits, keep_ratio=0.7, slope=1.0)
    exact = logits.detach().double().requires_grad_()
    expected, _, _ = reference.masked_cross_entropy(oracle, exact, target, ids)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-9)
    compare({"adapruner": ours, "eager torch": eager, "plain cross entropy": plain})


@pytest.mark.parametrize("num_samples", [1_000_000, 10_000_000], ids=str)
def test_topk(compare, num_samples):
    m = torch.randn(num_samples, generator=torch.Generator().manual_seed(2))
    k = round(0.7 * num_samples)
    values = m.numpy()
    indices = ops.topk_indices(m, k, 1.0).selected
    stable = np.sort(np.argsort(-values.astype(np.float64), kind="stable")[:k])
    np.testing.assert_array_equal(indices.numpy(), stable)
    compare(
        {
            "adapruner to a mask": lambda: ops.topk_mask(m, k, 1.0),
            "adapruner to indices": lambda: ops.topk_indices(m, k, 1.0),
            "torch.topk and sort": lambda: torch.topk(m, k, sorted=False).indices.sort(),
            "torch.kthvalue": lambda: m >= torch.kthvalue(m, num_samples - k + 1).values,
            "numpy.argpartition": lambda: np.argpartition(-values, k)[:k],
        }
    )


@pytest.mark.parametrize("num_samples", [1_000_000, 10_000_000], ids=str)
def test_gate_update(compare, num_samples):
    batch = 1024
    generator = torch.Generator().manual_seed(3)
    gates = make_gates(num_samples)
    ids = torch.randint(num_samples, (batch,), generator=generator)
    pressure = torch.randn(batch, generator=generator)
    losses = ops.MaskedLoss(torch.zeros(()), torch.rand(batch), pressure)
    dense = torch.zeros(num_samples, requires_grad=True)
    dense_sgd = torch.optim.SGD([dense], lr=0.05)
    embedding = torch.nn.Embedding(num_samples, 1, sparse=True)
    sparse_sgd = torch.optim.SGD(embedding.parameters(), lr=0.05)

    def dense_step():
        dense_sgd.zero_grad()
        (torch.sigmoid(dense[ids]) * pressure).sum().backward()
        dense_sgd.step()

    def sparse_step():
        sparse_sgd.zero_grad()
        (torch.sigmoid(embedding(ids).squeeze(1)) * pressure).sum().backward()
        sparse_sgd.step()

    oracle = reference.ReferenceGates(gates.logits[ids], keep_ratio=0.7, slope=1.0)
    unique, first = np.unique(ids.numpy(), return_index=True)
    before = gates.logits.clone()
    gates.visit(ids, losses)
    s = oracle.gates[torch.from_numpy(first)]
    total = torch.zeros(num_samples, dtype=torch.float64).index_add(0, ids, pressure.double())
    step = 0.05 * s * (1 - s) * total[torch.from_numpy(unique)]
    expected = before[unique].double() - step
    torch.testing.assert_close(gates.logits[unique].double(), expected, rtol=0, atol=1e-6)
    compare(
        {
            "adapruner": lambda: gates.visit(ids, losses),
            "dense SGD on m": dense_step,
            "sparse embedding, SGD": sparse_step,
        }
    )
