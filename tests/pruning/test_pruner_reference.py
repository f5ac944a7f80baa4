"""A whole run of Pruner in the user's own loop, against a float64 version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.sample_inputs import constants_of
from support.training_data import frozen

from adapruner import Pruner
from adapruner._util.seeds import Stream, stream_seed
from adapruner.ops import reference
from adapruner.pruning import bitmask
from adapruner.pruning.methods import HOMES, find_method
from adapruner.pruning.methods.sampled import Sampled
from adapruner.pruning.selection import keep_count


def drawn(
    method: Sampled,
    gates: reference.ReferenceGates,
    losses: torch.Tensor | None,
    unit: float,
    epochs: tuple[int, int],
    final: bool,
) -> torch.Tensor:
    """The keys of a run with seed 0 after a number of epochs, of which some were warm-up.

    ``losses`` are the last losses, or None if they are not tracked.
    """
    ended, warmup = epochs
    pressures = (1 - gates.m) / unit
    easiest, hardest = method.target_range
    if final:
        farthest = method.pressure_cap - hardest
        unfit = int((1 - (1 - method.most_unfit) * method.share) * len(pressures))
        end = max(hardest, pressures.sort(descending=True).values[unfit].item())
        below = (method.share**4 * (easiest - pressures)).clamp(0, farthest)
        limit = float(
            np.interp(end, [hardest, method.unfit_end], [farthest, method.unfit_farthest])
        )
        above = method.hard_side_weight * (pressures - end).clamp(0, limit)
        logs = -torch.maximum(below, above)
        more = ended - warmup - 1
        scale = method.sharpness * more / (more + method.few_epochs / 2)
        scale *= min(1, more / method.few_epochs) ** 2
    else:
        scale, logs = 1.0, torch.zeros_like(gates.m)
        if losses is not None:
            relative = (losses.double() / losses.double().mean()).clamp(min=method.least_read)
            logs = (relative.log() * 64).round() / 64
            logs[pressures > hardest] = np.log(method.least_read)
    key = stream_seed(0, ended, Stream.DRAW)
    return reference.sampling_keys(logs.tolist(), [1] * len(logs), scale, 0.0, key)


@pytest.mark.parametrize("method", HOMES)
@pytest.mark.parametrize(
    ("warmup_epochs", "normalize", "track"),
    [(0, False, False), (2, False, False), (0, True, False), (0, False, True), (2, True, True)],
)
def test_run_is_that_of_the_reference(
    method: str, warmup_epochs: int, normalize: bool, track: bool
) -> None:
    num_samples, epochs, keep_ratio = 60, 9, 0.4
    losses = frozen(num_samples)(0)
    pruner = Pruner(
        num_samples,
        keep_ratio,
        epochs,
        warmup_epochs=warmup_epochs,
        method=method,
        explore=0.05,
        normalize_loss=normalize,
        track_losses=track,
    )
    constants = find_method(method).at(keep_ratio, epochs)
    first, last = constants.slope
    unit = 0.0
    plain = reference.ReferenceGates(
        torch.ones(num_samples),
        keep_ratio,
        first,
        **constants_of(constants),
        age_cap=1 if track else constants.age_cap,
        resting=warmup_epochs > 0,
    )
    scales = normalize or constants.by_first_loss
    for epoch in range(epochs):
        seen: list[float] = []
        for ids in torch.from_numpy(np.flatnonzero(pruner.reads())).split(7):
            sample_loss = losses[ids].requires_grad_()
            loss = pruner.weigh(sample_loss, ids)
            expected = reference.masked_loss(plain, losses[ids], ids)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
            if scales and epoch == 0:  # the mean of the batches before; of the first one its own
                plain.loss_scale = float(np.mean(seen or losses[ids].tolist()))
            seen += losses[ids].tolist()
            plain.update(ids.tolist(), plain.pressure(losses[ids]).tolist())
        assert torch.allclose(pruner.gates.logits.double(), plain.m, atol=1e-5)
        if scales and (epoch == 0 or not constants.by_first_loss):
            plain.loss_scale = float(np.mean(seen))
        entry = pruner.step()
        assert entry["mean_gate"] == pytest.approx(plain.mean_gate, abs=1e-5)
        assert entry["open_share"] == pytest.approx(plain.open_share)
        if track:
            plain.drift(losses.tolist())
        if epoch >= warmup_epochs:
            s = 1 / (1 + np.exp(-plain.slope * (1 - unit)))
            unit += constants.step_size * plain.slope * s * (1 - s)
        plain.end_epoch()
        plain.resting = epoch + 1 < warmup_epochs
        done = max(epoch + 1 - warmup_epochs, 0) / (epochs - warmup_epochs - 1)
        plain.slope = first + (last - first) * min(done, 1.0)
        ratio = 1 - (1 - keep_ratio) * min(2 * done, 1)
        ranked = plain.m
        if isinstance(constants, Sampled) and ratio < 1:
            ranked = drawn(
                constants,
                plain,
                losses if track else None,
                unit,
                (epoch + 1, warmup_epochs),
                epoch + 1 == epochs,
            )
        kept = reference.largest(ranked, keep_count(round(ratio, 9), num_samples))
        assert bitmask.indices(pruner.selection.kept).tolist() == kept.tolist()
    assert pruner.result().indices.tolist() == kept.tolist()
