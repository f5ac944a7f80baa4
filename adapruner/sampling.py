"""Drawing samples by their gates: exact in number, by chance in which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapruner import masks, ops
from adapruner.data.order import epoch_seed
from adapruner.gates import Gates
from adapruner.methods import Method

NEVER_FINITE = -1e3  # ranked below any gate that has seen a finite loss


def pressure_unit(method: Method, history: Sequence[dict[str, Any]]) -> float:
    """How far a gate has gone down for each unit of the mean pressure on it: from 1, with a
    pressure of 1 in every epoch of ``history`` that was no warm-up."""
    logit = 1.0
    for entry in history:
        if entry["phase"] == "prune":
            gate = 1 / (1 + math.exp(-entry["slope"] * logit))
            logit -= method.step_size * entry["slope"] * gate * (1 - gate)
    return 1 - logit


def preferences(method: Method, gates: Gates, history: Sequence[dict[str, Any]]) -> Tensor:
    """By what samples are wanted: their gate logits, or, where samples are drawn, what these would
    be had the pressure in each epoch been the distance of the mean one from the reach. The least
    wanted are those whose gate has never stepped: of them no visit had a finite loss.

    Args:
        method: of a run at its keep ratio.
        gates: those of the run, after an epoch that visited all and was no warm-up.
        history: the epochs so far.

    Returns:
        Float32 ``[N]`` on the gates' device: the larger the more wanted, −inf where the gate logit
        is, and where samples are drawn 1 within the reach. The gate logits themselves where these
        are to be had as they are.
    """
    sampling, logits = method.sampling, gates.logits
    if sampling is None:
        all_stepped = not any((part == 1).any() for part in logits.split(masks.PIECE))
        return logits if all_stepped else logits.masked_fill(logits == 1, NEVER_FINITE)
    unit = pressure_unit(method, history)
    easiest, hardest = (1 - unit * pressure for pressure in sampling.reach)
    wanted = logits - hardest
    torch.minimum(wanted, (easiest - logits).mul_(sampling.easy_side), out=wanted)
    wanted.clamp_(-unit * sampling.farthest, 0).add_(1)
    wanted.masked_fill_(logits == 1, NEVER_FINITE)
    return wanted.masked_fill_(logits == -torch.inf, -torch.inf)


def draw(
    method: Method, gates: Gates, history: Sequence[dict[str, Any]], seed: int, final: bool
) -> Tensor | None:
    """What the next selection ranks samples by: the largest of these are drawn by chance.

    Args:
        method: of a run at its keep ratio.
        gates: those of the run.
        history: the epochs so far, of which one at least was no warm-up.
        seed: of the run.
        final: whether this draw is the kept set, not what an epoch reads.

    Returns:
        Float32 ``[N]`` on the gates' device, or None where samples are ranked by their gate logits.
    """
    sampling, wanted = method.sampling, preferences(method, gates, history)
    if sampling is None:
        return None if wanted is gates.logits else wanted
    unit = pressure_unit(method, history)
    key = epoch_seed(seed, len(history), 0, 3)
    within, turns = (0.0, 0.0) if final else (sampling.evenly_read, sampling.turns)
    return ops.sampling_keys(
        wanted,
        gates.age,
        sampling.sharpness / unit,
        turns,
        key,
        1 - unit * within,
    )
