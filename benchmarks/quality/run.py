"""Makes the runs of a table that its results do not hold yet, one JSON row for each.

    python -m benchmarks.quality.run digits cifar --workers 2

Stop it whenever you like (Ctrl-C, SIGTERM) and start it again: what benchmarks/results/quality/
holds is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..provenance import provenance
from .one import make
from .table import Run, tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "quality"
ANSWERS = ROOT / "results" / "answers"  # of suspects and other keep ratios


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; a last line that was cut off is none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path.name}: a line is cut off and left out: {line[:60]}…", file=sys.stderr)
    return rows


def run_of(row: dict[str, Any]) -> Run:
    """The run a row is of, as today's tables have it."""
    return Run(**{field.name: row[field.name] for field in dataclasses.fields(Run)})


def key_of(row: dict[str, Any]) -> str:
    """That of the run as it was made: of another recipe or other constants it is another one."""
    return repr(sorted((name, row.get(name)) for name in run_of(row).described()))


def append(path: Path, *rows: dict[str, Any]) -> None:
    """One write to the end: whole lines, whoever else appends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or not path.stat().st_size or path.read_bytes()[-1:] == b"\n"
    lines = ("" if whole else "\n") + "".join(json.dumps(row) + "\n" for row in rows)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, lines.encode())
    finally:
        os.close(handle)


def file_of(run: Run) -> str:
    return f"{run.dataset}{'' if run.measured_on == 'test' else '-split'}.jsonl".replace(" ", "-")


def missing(runs: Iterable[Run], results: Path) -> list[Run]:
    """Those whose row is not in their file in the folder."""
    runs = list(runs)
    return not_in({results / file_of(run) for run in runs}, runs)


def not_in(files: Iterable[Path], runs: Iterable[Run]) -> list[Run]:
    """The runs that have no row in any of the files."""
    done = {key_of(row) for path in files for row in read_rows(path)}
    return [run for run in runs if run.key() not in done]


def make_row(run: Run, device: str, path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Make the run, append its row to the file and say so."""
    start = time.perf_counter()
    row = make(run, device) | about
    row["wall_seconds"] = time.perf_counter() - start
    append(path, row)
    print(
        f"{row['accuracy']:6.2f}  {run.dataset}  {run.protocol}  {run.method}  "
        f"{run.ratio}  {run.noise}  seed {run.seed}  ({row['wall_seconds']:.1f} s)",
        flush=True,
    )
    return row


def work(
    jobs: list[list[Run]], results: Path, turn: Any, device: str, about: dict[str, Any]
) -> None:
    """Take groups of runs in turn until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    while True:
        with turn.get_lock():
            number, turn.value = turn.value, turn.value + 1
        if number >= len(jobs):
            return
        for run in jobs[number]:
            make_row(run, device, results / file_of(run), about)


def _end(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    sys.exit(143)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=list(tables()))
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    about = {"provenance": provenance() | {"threads": 1}}
    wanted = list(dict.fromkeys(run for name in args.tables for run in tables()[name]))
    left = missing(wanted, args.results)
    print(f"{len(left)} of {len(wanted)} runs are left", flush=True)
    groups: dict[Any, list[Run]] = {}
    for run in left:
        groups.setdefault(run.shared, []).append(run)
    # Seed by seed through all tables, so that what was stopped has whole seeds.
    jobs = sorted(groups.values(), key=lambda job: job[0].seed)
    context = multiprocessing.get_context("spawn")
    turn = context.Value("i", 0)
    processes = [
        context.Process(
            target=work, args=(jobs, args.results, turn, args.device, about), daemon=True
        )
        for _ in range(args.workers)
    ]
    # Daemons end with this process, by whichever signal it ends.
    signal.signal(signal.SIGTERM, _end)
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
