"""Draw the README's tables and figure from the result files.

    python benchmarks/report.py

Reads benchmarks/results/*.json; writes what stands between the markers in README.md, and
docs/images/digits.png.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine(about: dict[str, Any]) -> str:
    return (
        f"{about['processor']}, {about['cores']} cores, threads: {about['threads']}, "
        f"torch {about['torch']}, {about['date']}"
    )


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
        f"{about['epochs']} epochs each, by `make demo` ({machine(about)})."
    )
    return "\n".join(lines)


def speed_table(data: dict[str, Any]) -> str:
    """Ours and the rivals, from the alternating runs."""
    lines = ["| operator | ours | rival | rival's time / ours |", "|---|---|---|---|"]
    for name, rows in data["rows"].items():
        title = re.sub(r"^test_", "", name).replace("_", " ").replace("[", " [")
        ours = next(iter(rows))  # the first one, by the contract of `compare`
        for rival, row in rows.items():
            if rival.startswith("adapruner") or rival == ours:
                continue
            low, median, high = row["seconds"]
            base = rows[ours]["seconds"][1]
            lines.append(
                f"| {title} | {1e3 * base:.3g} ms | {rival} | **{median / base:.2f}** "
                f"({low / base:.2f} to {high / base:.2f}) |"
            )
    lines.append(
        "\nMedian (quartiles) of alternating runs in one process, by `make bench` "
        f"({machine(data['provenance'])}). Below 1 the rival is faster. Masked cross entropy is "
        "forward and backward; eager torch computes the same masked loss and pressure, plain cross "
        "entropy neither mask nor pressure."
    )
    return "\n".join(lines)


def between(text: str, marker: str, content: str) -> str:
    """``text`` with what stands between the markers replaced."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"README.md lacks the markers {begin} and {end}")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    from digits import draw

    readme = ROOT / "README.md"
    text = readme.read_text()
    digits = json.loads((RESULTS / "digits.json").read_text())
    text = between(text, "demo table", digits_table(digits))
    operators = json.loads((RESULTS / "operators.json").read_text())
    text = between(text, "speed", speed_table(operators))
    readme.write_text(text)
    runs = {float(share): rows for share, rows in digits["runs"].items()}
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    draw(runs, digits["provenance"]["keep_ratio"], images / "digits.png")


if __name__ == "__main__":
    main()
