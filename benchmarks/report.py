"""Draw tables and pictures of README.md, docs/performance.md and docs/quality.md.

    python -m benchmarks.report

Reads benchmarks/results/*.json. Replaces the text between the markers, and docs/images/*.png.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from examples.digits import draw

from .charts import draw_epochs, draw_growth, draw_speed
from .gpu.tables import gpu_tables
from .inputs import OURS
from .loader_tables import epoch_curves, loader_tables, remote_table
from .tables import factor, machine, rewrite, time

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SUITES = (
    "masked_cross_entropy",
    "linear_cross_entropy",
    "topk",
    "gate_update",
    "sampling_keys",
    "order",
    "step",
    "end_to_end",
    "growth",
)
# The rows of the summary in docs/performance.md, with the titles that they have there.
SUMMARY = {
    "masked_cross_entropy[(256, 10)]": "masked cross entropy, 256 × 10 logits",
    "masked_cross_entropy[(1024, 1000)]": "masked cross entropy, 1,024 × 1,000",
    "masked_cross_entropy[(4096, 1000)]": "masked cross entropy, 4,096 × 1,000",
    "over_the_logits[(64, 128256)]": "gradient written over the logits, 64 × 128,256",
    "masked_linear_cross_entropy[(2048, 64, 50257)]": "linear layer and loss, 2,048 × 64 to 50,257",
    "masked_linear_cross_entropy[(512, 512, 32000)]": "linear layer and loss, 512 × 512 to 32,000",
    "topk_mask[1e+07]": "exact top-k of 10⁷, as a mask",
    "segmented_topk[1e+07]": "top-k in each of 1,000 classes of 10⁷",
    "gate_update[1e+08-other samples each time]": "gate update, 1,024 new ids of 10⁸",
    "order[1e+08-keep 0.7]": "order of an epoch, 0.7 of 10⁸ kept",
    "step[plain]": "training step, against one without gates",
    "step[published]": "training step, against the published code",
    "end_to_end[digits]": "`fast_prune` to 0.7, digits",
    "end_to_end[cifar10]": "`fast_prune` to 0.7, CIFAR-10",
}
# The rows of the README.
FIRST = (
    "masked_cross_entropy[(1024, 1000)]",
    "masked_linear_cross_entropy[(2048, 64, 50257)]",
    "topk_mask[1e+07]",
    "step[plain]",
    "end_to_end[cifar10]",
)


def load(suite: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{suite}.json").read_text())


def rows_of(suite: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title and row of a suite; threads are a column, not part of the title."""
    for name, row in load(suite)["rows"].items():
        title = name.replace(f"{row['threads']} threads-", "").replace(
            f"[{row['threads']} threads]", ""
        )
        yield title, row


def digits_table(data: dict[str, Any]) -> str:
    """Accuracy and seconds of every way to train, with and without wrong labels."""
    clean, noisy = data["runs"].values()
    share = list(data["runs"])[1]

    def cell(runs: list[dict], name: str, key: str, digits: int) -> str:
        values = [run[name][key] for run in runs]
        return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"

    about = data["provenance"]
    lines = [
        f"| trained on | accuracy, % | accuracy with {float(share):.0%} wrong labels, % "
        "| wrong labels among used, % | seconds |",
        "|---|---|---|---|---|",
    ]
    titles = {
        "all data": "all data",
        "random part": f"a random {about['keep_ratio']:.0%}",
        "adapruner": "`fast_prune` itself, selection included",
        "kept set, anew": f"the {about['keep_ratio']:.0%} it kept, a new model",
    }
    for name, title in titles.items():
        lines.append(
            f"| {title} | {cell(clean, name, 'accuracy', 2)} | {cell(noisy, name, 'accuracy', 2)} "
            f"| {cell(noisy, name, 'wrong', 1)} | {cell(clean, name, 'seconds', 1)} |"
        )
    lines.append(
        f"\nTest accuracy of the last epoch, mean ± standard deviation over {len(clean)} seeds, "
        f"{about['epochs']} epochs each, by `make demo` ({about['processor']}, {about['cores']} "
        f"cores, threads: {about['threads']}, torch {about['torch']}, {about['date']})."
    )
    return "\n".join(lines)


def short_runs() -> str:
    """The demo in fewer epochs: what is kept needs a run that fits most of the data."""
    found = [RESULTS / f"digits-{epochs}-epochs.json" for epochs in (3, 5, 8)]
    runs = [json.loads(file.read_text()) for file in (*found, RESULTS / "digits.json")]
    titles = {"random part": "a random part", "kept set, anew": "the kept set"}
    titles["adapruner"] = "the run itself"
    epochs = " | ".join(f"{run['provenance']['epochs']} epochs" for run in runs)
    lines = [f"| | {epochs} |", "|---" * (len(runs) + 1) + "|"]
    for name, title in titles.items():
        values = [[seed[name]["accuracy"] for seed in run["runs"]["0.0"]] for run in runs]
        cells = [f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in values]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary_rows(wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The rows ``wanted`` at all threads, in that order, by their titles in SUMMARY."""
    found: dict[str, dict[str, Any]] = {}
    for suite in SUITES:
        for name, row in rows_of(suite):
            if name in wanted and row["threads"] >= found.get(name, row)["threads"]:
                found[name] = row
    return {SUMMARY[name]: found[name] for name in wanted if name in found}


def ranks_row() -> str:
    """A step of two ranks as a row of :func:`speed_table`; benchmarks/ranks.py measures it."""
    made = load("ranks")
    steps, on = made["step"], made["about"]["processor"]
    ours = steps["DDP with a pruner"][1]
    rivals = {"plain DDP": "DDP", "all-gather each step": "DDP, all-gather a step"}
    shown = ", ".join(f"{title} **{steps[name][1] / ours:.2f}**" for title, name in rivals.items())
    title = f"step of two ranks, gloo, {on} ([table](docs/many-gpus.md#what-it-costs))"
    return f"| {title} | {time(ours)} | {shown} |"


def speed_table(wanted: Iterable[str], *more: str) -> str:
    """Our time and the rivals' for the rows ``wanted``, at all threads, and ``more`` rows."""
    lines = ["| | ours | time of the rivals as a multiple of ours |", "|---|---|---|"]
    for title, row in summary_rows(wanted).items():
        ours = row["rivals"][OURS]["seconds"][1]
        rivals = ", ".join(
            f"{name} **{factor(timing['times_first'][1])}**"
            for name, timing in row["rivals"].items()
            if not name.startswith(OURS)
        )
        lines.append(f"| {title} | {time(ours)} | {rivals} |")
    lines += more
    of = [load(s)["provenance"] for s in SUITES if any(t in wanted for t, _ in rows_of(s))]
    about = max(of, key=lambda each: each["date"])
    first, last = (choose(each["date"] for each in of) for choose in (min, max))
    dates = last if first == last else f"{first} to {last}"
    lines.append(
        f"\nMedians, {about['threads']} threads ({about['processor']}, {about['cores']} cores, "
        f"torch {about['torch']}, {dates})."
    )
    return "\n".join(lines)


def suite_table(suite: str) -> str:
    """Everything that a suite measured."""
    lines = [
        "| | threads | | median [quartiles] | as a multiple of ours [quartiles] | n |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in rows_of(suite):
        first = f"{title.split('[')[0].replace('_', ' ')} [{title.split('[')[-1]}"
        for name, timing in row["rivals"].items():
            lower, median, upper = timing["seconds"]
            low, middle, high = timing["times_first"]
            times = f"{factor(middle)} [{factor(low)}, {factor(high)}]"
            lines.append(
                f"| {first} | {row['threads'] if first else ''} | {name} | {time(median)} "
                f"[{time(lower)}, {time(upper)}] | {times} | {timing['n']} |"
            )
            first = ""
        for text in notes(row):
            lines.append(f"| | | | {text} | | |")
    lines.append(f"\n{machine(load(suite)['provenance'])}.")
    return "\n".join(lines)


def notes(row: dict[str, Any]) -> Iterator[str]:
    """What a row says beside its times."""
    ours = row["rivals"][OURS]["seconds"][1]
    for moved, bandwidth in (("read", "read_bandwidth"), ("copied", "copy_bandwidth")):
        if moved in row:
            share = row[moved] / row[bandwidth] / ours
            rate = row[bandwidth] / 1e9
            yield f"{share:.2f} of the {rate:.0f} GB/s at which memory is {moved} in the same run"
    for name, peak in row.get("peak_bytes", {}).items():
        if peak is not None:
            yield f"peak of {name}: {peak / 2**20:,.0f} MiB"
    if "samples_read_full" in row:
        yield f"{row['samples_read']:,} of {row['samples_read_full']:,} samples read"
    if "seconds_ending_epochs" in row:
        yield f"{time(row['seconds_ending_epochs'])} of ours in the ends of the epochs"


def main() -> None:
    digits = load("digits")
    loader = load("loader")
    rewrite(ROOT / "README.md", {"speed": speed_table(FIRST, ranks_row())})
    demo = {"demo table": digits_table(digits), "short runs": short_runs()}
    rewrite(ROOT / "docs" / "quality.md", demo)
    tables = {suite: suite_table(suite) for suite in SUITES} | gpu_tables(RESULTS / "gpu")
    tables["summary"] = speed_table(SUMMARY)
    rewrite(ROOT / "docs" / "performance.md", tables | loader_tables(loader))
    rewrite(ROOT / "docs" / "remote.md", {"remote": remote_table(load("remote"))})
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    runs = {float(share): rows for share, rows in digits["runs"].items()}
    draw(runs, digits["provenance"]["keep_ratio"], images / "digits.png")
    speeds = {
        title: {name: timing for name, timing in row["rivals"].items() if not name.startswith(OURS)}
        for title, row in summary_rows(SUMMARY).items()
    }
    draw_speed(speeds, images / "speed.png")
    draw_growth([row for _, row in rows_of("growth")], images / "growth.png")
    draw_epochs(epoch_curves(loader), images / "epochs.png")


if __name__ == "__main__":
    main()
