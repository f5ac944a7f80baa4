"""What many processes cost: the end of an epoch in parts, and a training step beside plain DDP.

    python -m benchmarks.ranks --samples 1000000 10000000 --results benchmarks/results/ranks.json

Two processes with gloo on this machine stand for the ranks. With `--document docs/many-gpus.md`,
the tables of a result file go into the page, with a computed table for more ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from adapruner import Pruner, ops
from adapruner.pruning import bitmask
from adapruner.pruning.order import epoch_batches, share
from adapruner.pruning.visits import Batch
from benchmarks import tables
from benchmarks.provenance import provenance

RANKS, EPOCHS_READ = 2, 0.7
BATCH = 128  # of a rank in a step
BATCH_AT_END = 512  # of a rank at the end of an epoch: the global batches of eight ranks with 128
VISIT, GATES = 16, 19.25  # bytes of a visit on its way, and of a sample in the memory of a rank
# Assumed speeds of the network of each rank, bytes a second.
NETWORKS = {"25 Gbit/s": 3.1e9, "200 Gbit/s": 25e9}
STEP = {"DDP": "plain", "DDP with a pruner": "pruned", "DDP, all-gather a step": "gathered"}


def end_of_epoch(samples: int) -> dict[str, float]:
    """Seconds of the parts of Pruner.step, with 0.7 of the samples visited, on this rank.

    Seconds of the CPU, which other work on the machine changes little; but the gather waits for the
    other rank, and its seconds are those of a clock.
    """
    pruner = Pruner(samples, 0.5, 4, warmup_epochs=0)
    visits: Any = pruner.visits
    rank, pressure = dist.get_rank(), torch.zeros(BATCH_AT_END)
    generator = torch.Generator().manual_seed(rank)
    # The epoch reads the samples whose number ends in 0 to 6.
    read = bitmask.pack(np.resize(np.arange(10) < 10 * EPOCHS_READ, samples))
    for batch in epoch_batches(read, samples, 0, 0, RANKS * BATCH_AT_END):
        ids = share(batch, rank, RANKS)
        loss = torch.rand(len(ids), generator=generator) * 3
        found = ops.MaskedLoss(loss.sum(), loss, pressure[: len(ids)])
        visits.take(Batch(ids, found, False, predicted=ids.int() % 100))
    times = dict.fromkeys(("gather", "replay"), 0.0)
    dist.barrier()
    clock = time.perf_counter()
    gates = pruner.gates
    for _, ids, loss, _, predicted in visits._gather(gates):
        times["gather"] += time.perf_counter() - clock
        begun = time.thread_time()
        gates.learn(ids, ops.masked_loss(loss, ids, gates.logits, gates.state), predicted)
        times["replay"] += time.thread_time() - begun
        clock = time.perf_counter()
    visits.forget()

    def timed(name: str, call: Any) -> Any:
        start = time.thread_time()
        value = call()
        times[name] = time.thread_time() - start
        return value

    history = [{"phase": "prune", "slope": pruner.controller.slope_now}]
    timed("drift", pruner.gates.end_epoch)
    keys = timed(
        "draw", lambda: pruner.method.keys(pruner.gates, history, pruner.seed, final=False)
    )
    timed(
        "top-k",
        lambda: pruner.selection.select(pruner.gates, 0.5, pruner.controller.slope_now, keys),
    )
    timed("exploration", lambda: pruner.selection.explore_pruned(pruner.gates, 1))
    times["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return times


def steps(turns: int) -> dict[str, list[float]]:
    """Seconds of a step of each kind, in turns, on this rank."""
    torch.manual_seed(0)
    model = DistributedDataParallel(
        nn.Sequential(
            nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 100)
        )
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    samples = 2 * BATCH * turns * RANKS
    pruner = Pruner(samples, 0.5, 2, warmup_epochs=0)
    x, y = torch.randn(BATCH, 256), torch.randint(0, 100, (BATCH,))
    every = torch.arange(dist.get_rank(), samples, RANKS).split(BATCH)
    found: dict[str, list[float]] = {name: [] for name in STEP}
    kinds = list(STEP)
    for turn in range(turns):
        kinds.append(kinds.pop(0))
        for name in kinds:
            ids = every[turn]
            dist.barrier()
            start = time.perf_counter()
            outputs = model(x)
            if STEP[name] == "pruned":
                loss = pruner.loss(outputs, y, ids)
            else:
                rows = F.cross_entropy(outputs, y, reduction="none")
                loss = rows.mean()
                if STEP[name] == "gathered":  # ids and losses of each step, as InfoBatch does
                    both = torch.stack([ids.float(), rows.detach()])
                    dist.all_gather([torch.empty_like(both) for _ in range(RANKS)], both)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found[name].append(time.perf_counter() - start)
    return found


def _rank(rank: int, folder: str, samples: list[int], turns: int, repeats: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    ends = {count: [end_of_epoch(count) for _ in range(repeats)] for count in samples}
    of_step = steps(turns)
    if rank == 0:
        content = {
            "about": provenance(),
            "ranks": RANKS,
            "batch": BATCH,
            "batch_at_end": BATCH_AT_END,
            "end": {
                str(count): {name: statistics.median(t[name] for t in of) for name in of[0]}
                for count, of in ends.items()
            },
            "step": {
                name: statistics.quantiles(times[turns // 10 :], n=4)
                for name, times in of_step.items()
            },
            "step_ratio": {
                name: statistics.quantiles(
                    [a / b for a, b in zip(times, of_step["DDP"], strict=True)], n=4
                )
                for name, times in of_step.items()
            },
        }
        Path(folder, "found.json").write_text(json.dumps(content, indent=1))
    dist.barrier()
    dist.destroy_process_group()


def table(found: dict[str, Any]) -> str:
    """The measured tables and the computed one, as Markdown."""
    parts = ["gather", "replay", "drift", "draw", "top-k", "exploration"]
    lines = ["| N | visits | " + " | ".join(parts) + " | all | peak memory of a rank |"]
    lines.append("|---" * (len(parts) + 4) + "|")
    for count, times in found["end"].items():
        cells = [tables.time(times[name]) for name in parts]
        whole = sum(times[name] for name in parts)
        visits = int(EPOCHS_READ * int(count))
        lines.append(
            f"| {int(count):,} | {visits:,} | {' | '.join(cells)} | {tables.time(whole)} | "
            f"{times['peak MB']:,.0f} MB |"
        )
    lines += ["", "| step of a rank | median | as a multiple of plain DDP |", "|---|---|---|"]
    for name, (low, median, high) in found["step_ratio"].items():
        lines.append(
            f"| {name} | {tables.time(found['step'][name][1])} | {median:.2f} [{low:.2f}, "
            f"{high:.2f}] |"
        )
    lines += ["", "Computed from these figures, for more ranks:", "", *_computed(found)]
    about = tables.machine(found["about"])
    lines += [
        "",
        f"Two ranks with gloo and one thread each ({about}). Batches of a rank: {found['batch']} "
        f"in a step, {found['batch_at_end']} at the end of an epoch.",
    ]
    return "\n".join(lines)


def _computed(found: dict[str, Any]) -> list[str]:
    """Bytes and seconds of the end of an epoch for more ranks, from the largest measured N."""
    count, times = max(found["end"].items(), key=lambda item: int(item[0]))
    per_visit = times["replay"] / (EPOCHS_READ * int(count))
    per_sample = sum(times[n] for n in ("drift", "draw", "top-k", "exploration")) / int(count)
    lines = ["| N | ranks | sent by a rank | received | at " + " | at ".join(NETWORKS)]
    lines[0] += " | replay | rest | gates of a rank |"
    lines.append("|---" * (len(NETWORKS) + 7) + "|")
    for samples in (10**7, 10**9, 10**11):
        for ranks in (8, 64, 1024):
            visits = EPOCHS_READ * samples
            received = VISIT * visits * (ranks - 1) / ranks
            cells = [tables.time(received / speed) for speed in NETWORKS.values()]
            lines.append(
                f"| 10^{len(str(samples)) - 1} | {ranks} | {size(VISIT * visits / ranks)} | "
                f"{size(received)} | {' | '.join(cells)} | {tables.time(per_visit * visits)} | "
                f"{tables.time(per_sample * samples)} | {size(GATES * samples)} |"
            )
    return lines


def size(count: float) -> str:
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.3g} {unit}"
    return f"{count:.0f} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument("--turns", type=int, default=300, help="steps of each kind")
    parser.add_argument("--repeats", type=int, default=3, help="ends of an epoch at each N")
    parser.add_argument("--results", type=Path, help="file to write")
    parser.add_argument(
        "--document", type=Path, help="write the tables of --results into this page"
    )
    args = parser.parse_args()
    if args.document is not None:
        tables.rewrite(args.document, {"ranks": table(json.loads(args.results.read_text()))})
        return
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, args.samples, args.turns, args.repeats)
        multiprocessing.spawn(_rank, args=given, nprocs=RANKS)
        text = Path(folder, "found.json").read_text()
    if args.results is not None:
        args.results.write_text(text + "\n")
    print(table(json.loads(text)))


if __name__ == "__main__":
    main()
