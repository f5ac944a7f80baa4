"""Every CUDA kernel once or twice on small, odd sizes: what compute-sanitizer watches."""

from __future__ import annotations

import torch

from adapruner import Pruner, ops

N, BATCH = 5003, 701


def train(pruner: Pruner, classes: int, dtype: torch.dtype, overwrite: bool) -> None:
    """An epoch on made-up logits, which start at an odd address."""
    for ids in pruner.batches(BATCH):
        ids = ids.cuda()
        memory = torch.randn(len(ids) * classes + 1, device="cuda", dtype=dtype)
        leaf = memory[1:].view(len(ids), classes).requires_grad_()
        logits = leaf * 1 if overwrite else leaf
        target = ids % classes
        loss = pruner.loss(logits, target, ids, overwrite_logits=overwrite, label_smoothing=0.1)
        (loss * 0.5).backward()
        pruner.weigh(torch.rand(len(ids), device="cuda", requires_grad=True), ids).backward()
    pruner.step()


def main() -> None:
    torch.manual_seed(0)
    labels = torch.arange(N) % 7
    for settings in ({}, {"labels": labels}):
        pruner = Pruner(N, epochs=4, device="cuda", **settings)
        for classes, dtype in ((3, torch.float32), (10, torch.float16), (1000, torch.bfloat16)):
            train(pruner, classes, dtype, overwrite=classes == 1000)
    pruner = Pruner(N, epochs=2, warmup_epochs=0, device="cuda")
    for classes in (128, 33001):
        ids = torch.arange(5, device="cuda")
        hidden = torch.randn(5, 2, 24, device="cuda", requires_grad=True)
        head = torch.randn(classes, 24, device="cuda", requires_grad=True)
        target = torch.randint(classes, (5, 2), device="cuda")
        pruner.linear_loss(hidden, head, target, ids).backward()
        logits = torch.randn(5, classes, 2, device="cuda", requires_grad=True)
        pruner.loss(logits, target, ids).backward()
    for n in (1, 33, 70_001):
        m = torch.randn(n, device="cuda")
        selected = ops.topk_mask(m, n // 2, 1.0).selected
        kept = ops.topk_indices(m, n // 2).selected
        assert len(kept) == n // 2
        order = ops.masked_order(selected, n, 3, 0, n)
        assert torch.equal(order.indices.sort().values, kept)
        age = torch.ones(n, dtype=torch.uint8, device="cuda")
        assert ops.sampling_keys(m, age, 1.5, 0.5, 3).isfinite().all()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
