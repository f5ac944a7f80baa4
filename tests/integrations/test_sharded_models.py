"""Language models whose weights are shared by two ranks, in the Trainer: losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import run_ranks
from torch import nn

for package in ("transformers", "accelerate", "datasets"):
    pytest.importorskip(package, reason=f"needs {package}")

from support import sharded_models as runs  # noqa: E402

# Each kind, the class that shares the weights, and whether the logits are never held whole.
FSDP = {
    "fsdp2": ("FSDPLlamaForCausalLM", True),
    "fsdp2-tied": ("FSDPLlamaForCausalLM", True),
    "loaded-tied": ("FSDPLlamaForCausalLM", True),
    "freed": ("FSDPLlamaForCausalLM", False),
    "fsdp1": ("FullyShardedDataParallel", False),
    "fsdp1-tied": ("FullyShardedDataParallel", False),
}
DEEPSPEED = {
    "zero2": ("DeepSpeedEngine", True),
    "zero2-tied": ("DeepSpeedEngine", True),
    "zero3": ("DeepSpeedEngine", False),
    "zero3-tied": ("DeepSpeedEngine", False),
}


def check(kinds: dict[str, tuple[str, bool]], folder: Path, *others: str) -> list[Any]:
    """Compare runs of two ranks with a loop of one process; run other kinds too.

    The ranks train as a plain loop of one process, which knows neither pruner nor Trainer.

    Returns:
        What each rank did.
    """
    for kind in kinds:
        runs.model_of(kind).save_pretrained(folder / f"{kind}-start")
    run_ranks(runs.__file__, ",".join([*kinds, *others]), str(folder), folder=folder)
    both = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for kind, (model, fused) in kinds.items():
        one, other = (rank[kind] for rank in both)
        assert (one["model"], one["fused"]) == (model, fused), kind
        assert ("a parameter that DeepSpeed ZeRO-3 shards" in one["refused"]) == ("zero3" in kind)
        assert one["kept"] == other["kept"]
        assert len(one["kept"]) == runs.N // 2
        losses, weights = plain_loop(kind, one, other)
        means = [(a + b) / 2 for a, b in zip(one["losses"], other["losses"], strict=True)]
        assert means == pytest.approx(losses, rel=1e-5), kind
        start = dict(runs.model_of(kind).named_parameters())
        for rank in (one, other):
            assert rank["weights"].keys() == weights.keys()
            for name, expected in weights.items():
                # The change, which the gradients of all steps make.
                moved = float((expected - start[name].detach()).abs().max())
                assert moved > 0
                torch.testing.assert_close(
                    rank["weights"][name], expected, rtol=0, atol=1e-3 * moved, msg=f"{kind} {name}"
                )
    return both


def plain_loop(
    kind: str, one: dict[str, Any], other: dict[str, Any]
) -> tuple[list[float], dict[str, Any]]:
    """The losses and the weights of a loop over the batches that two ranks have read."""
    model = runs.model_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=runs.RATE)
    tokens, labels = runs.rows()
    # A rank whose share of a last batch is empty gets a sample that counts for nothing.
    read = iter(sorted({*a, *b}) for a, b in zip(one["read"], other["read"], strict=True))
    losses = []
    for count in one["batches"]:
        for first in range(0, count, runs.GROUP):
            group = min(runs.GROUP, count - first)
            for _ in range(group):
                ids = next(read)
                logits = model(input_ids=tokens[ids]).logits[:, :-1]
                target = labels[ids][:, 1:]
                every = nn.functional.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
                loss = (every.sum(1) / (target != -100).sum(1)).mean()
                (loss / group).backward()
                losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    assert next(read, None) is None
    return losses, {name: value.detach() for name, value in model.named_parameters()}


def test_a_model_that_fsdp_shards_has_the_losses_and_gradients_of_a_plain_loop(
    tmp_path: Path,
) -> None:
    both = check(FSDP, tmp_path, "tensor")
    # Ranks that share a batch need a pruner each.
    one, other = (rank["tensor"] for rank in both)
    for found in (one, other):
        assert "must have 1 ranks, since each model is shared by 2 of the 2" in found["error"]
        assert "found 2. Pass the data-parallel group" in found["error"]
    assert one["read"] == other["read"]
    assert sorted(index for ids in one["read"] for index in ids) == list(range(runs.N))


def test_a_model_in_deepspeed_has_the_losses_and_gradients_of_a_plain_loop(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed")
    check(DEEPSPEED, tmp_path)
