"""The learning rate of the default optimiser, over the reads of a run."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.training_data import prune

from adapruner.training import trainer
from adapruner.training.learning_rate import set_learning_rate, share_done


def test_the_share_done_counts_reads_and_not_epochs() -> None:
    planned = torch.randint(1, 1000, (7,), generator=torch.Generator().manual_seed(0)).tolist()
    for epoch, of_epoch in itertools.product(range(7), (0.0, 0.3, 1.0)):
        read = [1.0] * epoch + [of_epoch] + [0.0] * (6 - epoch)
        expected = sum(r * p for r, p in zip(read, planned, strict=True)) / sum(planned)
        assert share_done(planned, epoch, of_epoch) == pytest.approx(expected)
    assert share_done([0, 0], 1, 0.5) == 0


def test_fast_prune_lowers_the_rate_over_the_samples_that_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []

    def noting(optimizer: torch.optim.Optimizer, highest: float, done: float) -> None:
        shares.append(done)
        set_learning_rate(optimizer, highest, done)

    monkeypatch.setattr(trainer, "set_learning_rate", noting)
    x, y = torch.randn(96, 5), torch.arange(96) % 3
    result = prune((x, y), keep_ratio=0.25, epochs=6, batch_size=8)
    reads = [entry["samples_read"] for entry in result.history]
    assert reads[-1] < reads[0] / 2
    # Batches are of even size but for the last one of an epoch.
    starts = [sum(reads[:epoch]) / sum(reads) for epoch in range(6)]
    for start in starts:
        assert min(abs(share - start) for share in shares) < 1e-9
    assert shares == sorted(shares)
    assert len(shares) == sum(-(-count // 8) for count in reads)
