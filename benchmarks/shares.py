"""What the ranks of a run read of a kept set, beside torch's DistributedSampler. Counts, no times.

    python -m benchmarks.shares --results benchmarks/results/shares.json

Eight processes with gloo on this machine stand for the ranks. With `--document docs/many-gpus.md`,
the table of a result file goes into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.utils.data import BatchSampler, DistributedSampler

from adapruner import PrunedBatchSampler, Pruner
from benchmarks import tables
from benchmarks.provenance import provenance

RANKS, EPOCHS, KEEP_RATIO = 8, 6, 0.3
CASES = ((50_003, 128), (1_003, 16), (20, 4))  # N, and samples in a batch of a rank
OURS, OURS_DROP = "adapruner", "adapruner, `drop_last`"
TORCH, TORCH_DROP = "DistributedSampler", "DistributedSampler, `drop_last`"
READERS = (OURS, OURS_DROP, TORCH, TORCH_DROP)


def batches(name: str, pruner: Pruner, size: int) -> Iterator[list[int]]:
    """The batches of this rank in the pruner's epoch, as dataset indices."""
    drop = name in (OURS_DROP, TORCH_DROP)
    if name in (OURS, OURS_DROP):
        yield from PrunedBatchSampler(pruner, size, drop)
        return
    read = np.flatnonzero(pruner.reads()).tolist()
    sampler: Any = DistributedSampler(read, seed=pruner.seed, drop_last=drop)
    sampler.set_epoch(pruner.epoch)
    for places in BatchSampler(sampler, size, drop_last=False):
        yield [read[place] for place in places]


def count(num_samples: int, size: int) -> dict[str, Any]:
    """What all ranks read in a run, in samples summed over its epochs."""
    pruner = Pruner(num_samples, KEEP_RATIO, EPOCHS, warmup_epochs=0)
    losses = torch.rand(num_samples, generator=torch.Generator().manual_seed(0)) * 3
    found = {name: {"read": 0, "repeated": 0, "left out": 0} for name in READERS}
    wanted = []
    while not pruner.finished:
        reads = torch.from_numpy(pruner.reads())
        wanted.append(int(reads.sum()))
        for name in READERS:
            visits = torch.zeros(num_samples, dtype=torch.int64)
            for ids in map(torch.tensor, batches(name, pruner, size)):
                visits[ids] += 1
                if name == OURS:
                    pruner.weigh(losses[ids].requires_grad_(), ids)
            dist.all_reduce(visits)
            assert not visits[~reads].any()
            found[name]["read"] += int(visits.sum())
            found[name]["repeated"] += int((visits - 1).clamp(min=0).sum())
            found[name]["left out"] += int((visits[reads] == 0).sum())
        pruner.step()
    return {"samples": num_samples, "batch": size, "wanted": wanted, "readers": found}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    cases = [count(*case) for case in CASES]
    if rank == 0:
        content = {"about": provenance(), "ranks": RANKS, "epochs": EPOCHS, "cases": cases}
        Path(folder, "found.json").write_text(json.dumps(content, indent=1))
    dist.barrier()
    dist.destroy_process_group()


def table(found: dict[str, Any]) -> str:
    """The counts as Markdown."""
    lines = [
        "| N | batch of a rank | to read | | read twice | left out |",
        "|---|---|---|---|---|---|",
    ]
    for case in found["cases"]:
        head = f"{case['samples']:,} | {case['batch']} | {sum(case['wanted']):,}"
        for name, counts in case["readers"].items():
            lines.append(f"| {head} | {name} | {counts['repeated']:,} | {counts['left out']:,} |")
            head = " | |"
    about = tables.machine(found["about"])
    lines += [
        "",
        f"Samples of {found['epochs']} epochs together, on {found['ranks']} ranks ({about}).",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="file to write, or to draw with --document")
    parser.add_argument("--document", type=Path, help="write the table of --results into this page")
    args = parser.parse_args()
    if args.document is not None:
        tables.rewrite(args.document, {"shares": table(json.loads(args.results.read_text()))})
        return
    with tempfile.TemporaryDirectory() as folder:
        # Forked, because each new process would import torch for seconds.
        multiprocessing.start_processes(_rank, args=(folder,), nprocs=RANKS, start_method="fork")
        text = Path(folder, "found.json").read_text()
    if args.results is not None:
        args.results.write_text(text + "\n")
    print(table(json.loads(text)))


if __name__ == "__main__":
    main()
