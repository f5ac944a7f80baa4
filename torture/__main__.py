"""The campaign: every kind for its share of the time, and one file of results.

    python -m torture [--hours H] [--only kill,fuzz] [--seed S] [--out FILE]

Each kind runs in a process of its own, so that a crash ends no other kind. The exit code is 1 if
anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
SHORT = 0.15  # hours of a campaign where none are asked for
# Each kind with its share of the time.
KINDS = {
    "kill": 0.28,
    "ranks": 0.1,
    "fuzz": 0.3,
    "disk": 0.06,
    "pictures": 0.06,
    "native": 0.03,
    "sanitize": 0.07,
    "load": 0.1,
}


def run_kind(kind: str, seconds: float, seed: int) -> dict[str, Any]:
    """The figures and findings of a kind. A process that fails is a finding too."""
    command = [sys.executable, "-m", f"torture.{kind}"]
    done = subprocess.run(
        [*command, "--seconds", str(seconds), "--seed", str(seed)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        example = f"{' '.join(command)} has ended with {done.returncode}"
        told = {"figures": {}, "findings": [{"place": kind, "count": 1, "example": example}]}
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=SHORT)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "torture" / "torture.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(KINDS):
        parser.error(f"--only must name {', '.join(KINDS)}; found {', '.join(sorted(unknown))}")
    began, kinds = time.monotonic(), {}
    whole = sum(KINDS[kind] for kind in arguments.only)
    for kind in arguments.only:
        seconds = 3600 * arguments.hours * KINDS[kind] / whole
        print(f"{kind}: {seconds / 60:.1f} minutes", file=sys.stderr, flush=True)
        kinds[kind] = run_kind(kind, seconds, arguments.seed)
        result = {
            **provenance(),
            "seed": arguments.seed,
            "hours": round((time.monotonic() - began) / 3600, 3),
            "kinds": kinds,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    found = [finding for told in kinds.values() for finding in told["findings"]]
    print(f"{len(found)} findings, written to {arguments.out}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
