"""Ranks that have a GPU each, with NCCL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.rank_cases import prune_all
from support.rank_training import held_digits
from support.ranks import Pool

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs"),
]
CASE = {
    "num_samples": 203,
    "seed": 3,
    "ties": True,
    "infinite": [7],
    "bad": [3, 70],
    "bad_from": 1,
    "drop_last": False,
    "block_size": None,
    "held_out": list(range(0, 203, 9)),
    "global_batch": 32,
}


@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl"])
@pytest.mark.parametrize("method", ["sampled", "published"])
def test_2_ranks_on_gpus_prune_like_one_process(backend: str, method: str) -> None:
    settings: dict[str, Any] = {"keep_ratio": 0.4, "epochs": 5, "method": method}
    settings |= {"held_out": CASE["held_out"], "device": "cuda"}
    cases = [CASE | {"settings": settings}]
    ranks = Pool(2, backend=backend)
    try:
        assert ranks.run(prune_all, 2, cases) == [prune_all(None, cases)] * 2
    finally:
        ranks.close()


@pytest.mark.parametrize("way", ["plain", "FSDP2"])
def test_12_models_train_on_gpus(way: str) -> None:
    pytest.importorskip("sklearn")
    ranks = Pool(2, backend="cpu:gloo,cuda:nccl")
    try:
        one, other = ranks.run(held_digits, 2, way, None, device="cuda")
        assert one["indices"] == other["indices"]
        assert len(one["indices"]) == 600
        assert one["accuracy"] == other["accuracy"] > 0.8
    finally:
        ranks.close()
