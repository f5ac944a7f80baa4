"""Makes one run of a table: select, train, measure."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from adapruner.pruning.methods import DEFAULT_METHOD
from adapruner.pruning.selection import keep_count

from . import plans
from .data import Data, load
from .probe import probe_accuracy
from .scores import record
from .static import STATIC, generator_of
from .table import (
    ADAPRUNER,
    BALANCED,
    CIFAR,
    RIGHT_ONLY,
    SHORT,
    SHORT_READS,
    SHORT_RUNS,
    TRACKS,
    UNKNOWN,
    Run,
)
from .trainer import Plan, Trained, accuracy, train


@functools.lru_cache(maxsize=1)  # runs come in groups that share it
def data_of(name: str, noise: str, seed: int, measured_on: str, device: str) -> Data:
    """The data of the runs with this :attr:`Run.shared`, on the device."""
    return load(name.split(" ")[0], noise, seed, measured_on).to(device)


def make(run: Run, device: str) -> dict[str, Any]:
    """The row of a run, without what is the same for all runs."""
    row = run.described() | {"device": device, "time": time.time()}
    made = _joint(run, device) if run.protocol == "joint" else _retrained(run, device)
    return row | made


def _measure(run: Run, data: Data, trained: Trained, kept: Tensor | None) -> dict[str, Any]:
    overall, balanced = accuracy(trained.model, data, run.recipe.bfloat16)
    return {
        "data": data.source,
        "samples": len(data.y),
        "kept": len(data.y) if kept is None else len(kept),
        "accuracy": overall,
        "balanced_accuracy": balanced,
        "bad": data.bad.double().mean().item(),
        "bad_among_kept": data.bad[slice(None) if kept is None else kept].double().mean().item(),
        "samples_read": trained.samples_read,
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
    }


def _retrained(run: Run, device: str) -> dict[str, Any]:
    data = data_of(*run.shared, device)
    kept, cost = select(run.selecting, device)
    reads = torch.zeros(len(data.y), dtype=torch.bool, device=data.y.device)
    reads[kept] = True
    read = len(kept) if run.protocol == "same epochs" else len(data.y)
    samples = run.recipe.epochs * read
    trained = train(data, run.recipe, Plan(reads), run.seed, samples=samples)
    row = _measure(run, data, trained, kept) | {f"selection_{k}": v for k, v in cost.items()}
    row["selected_by"] = asdict(run.selecting.recipe)
    if run.selecting.dataset == CIFAR and run.protocol == "same epochs":
        row["probe_accuracy"] = probe_accuracy(trained.model)
    return row


@functools.lru_cache(maxsize=64)  # one selection serves several networks
def select(run: Run, device: str) -> tuple[Tensor, dict[str, float]]:
    """The kept indices, and what it took to know them."""
    data = data_of(*run.shared, device)
    nothing = {"samples_read": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    count = keep_count(run.ratio, len(data.y))
    if run.method == "full":
        return torch.arange(len(data.y)), nothing
    if run.method == RIGHT_ONLY:
        order = torch.randperm(len(data.y), generator=generator_of(run.seed))
        return order[~data.bad[order]][:count].sort().values, nothing
    if run.method in ADAPRUNER:
        epochs = SHORT_RUNS.get(run.method, run.recipe.epochs)
        if run.method == SHORT:
            epochs = _epochs_within(run, data, int(SHORT_READS * epochs * len(data.y)))
        plan = _adapruner(run, data, epochs)
        trained = train(data, run.recipe, plan, run.seed, epochs=epochs)
        return plan.pruner.result().indices, _cost(trained)
    records = record(data, run.recipe, run.seed, f"{run.shared} {data.source} {device}")
    start = time.process_time()
    kept = STATIC[run.method](records, count, run.seed)
    spent = time.process_time() - start
    if run.method.startswith("random"):
        return kept, nothing
    cost = {
        "samples_read": records.samples_read,
        "seconds": records.seconds + spent,
        "cpu_seconds": records.cpu_seconds + spent,
    }
    return kept, cost


def _cost(trained: Trained) -> dict[str, float]:
    return {name: getattr(trained, name) for name in ("samples_read", "seconds", "cpu_seconds")}


def _adapruner(run: Run, data: Data, epochs: int) -> plans.Adapruner:
    known = {BALANCED: (data.y, "class"), TRACKS: (data.track, "class"), UNKNOWN: (None, "class")}
    floors = ADAPRUNER[run.method] == DEFAULT_METHOD
    groups = known.get(run.method, (data.y, "floor") if floors else (None, "class"))
    return plans.Adapruner(
        len(data.y),
        run.ratio,
        epochs,
        ADAPRUNER[run.method],
        run.seed,
        data.y.device,
        *groups,
    )


def _joint(run: Run, device: str) -> dict[str, Any]:
    """The model of the run that prunes, for the samples that ratio · epochs · N are."""
    data = data_of(*run.shared, device)
    count, recipe = len(data.y), run.recipe
    budget = keep_count(run.ratio, count) * recipe.epochs
    kept = None
    if run.method in ADAPRUNER:
        # The budget ends within the last epoch.
        plan = _adapruner(run, data, _epochs_within(run, data, budget) + 1)
        trained = train(data, recipe, plan, run.seed, samples=budget)
        if plan.pruner.finished:
            kept = plan.pruner.result().indices
    else:
        everything = torch.ones(count, dtype=torch.bool, device=data.y.device)
        shared = count, run.seed, data.y.device
        make_plan = {
            "full, fewer epochs": lambda: Plan(everything),
            "random each epoch": lambda: plans.RandomEachEpoch(count, run.ratio, run.seed),
            "InfoBatch": lambda: plans.InfoBatch(*shared),
            "InfoBatch, no full epochs": lambda: plans.InfoBatch(*shared, until=1.0),
            "InfoBatch, no full epochs, no weights": lambda: plans.InfoBatch(
                *shared, until=1.0, weighs=False
            ),
            "SeTa": lambda: plans.SeTa(*shared),
            "OrderDP": lambda: plans.OrderDP(count, run.ratio, run.seed, data.y.device),
            "RePB": lambda: plans.RePB(*shared),
        }[run.method]
        trained = train(data, recipe, make_plan(), run.seed, samples=budget)
    return _measure(run, data, trained, kept)


def _epochs_within(run: Run, data: Data, budget: int) -> int:
    """The most epochs of a pruning run that read no more than the budget, as far as the schedule
    tells: nothing holds the pace back here."""
    epochs = 2
    while True:
        pruner = _adapruner(run, data, epochs + 1).pruner
        if _reads(pruner, len(data.y)) > budget:
            return epochs
        epochs += 1


def _reads(pruner: Any, count: int) -> int:
    controller = replace(pruner.controller)
    read = 0.0
    for epoch in range(pruner.epochs):
        ratio = controller.ratio_now if epoch > 0 else 1.0
        read += min(count, ratio * count + pruner.selection.explore * count * (ratio < 1))
        controller.step(epoch, None)
    return round(read)
