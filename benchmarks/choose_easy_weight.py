"""How w, the weight of the easy side in the pressure, was chosen: docs/method.md has the table.

    python benchmarks/choose_easy_weight.py

Prunes 997 of the digits' training images for every w and trains a new model on what is kept;
measured on 300 others of the training images, where their labels are right. The test images are
not looked at.
Writes benchmarks/results/easy_weight.json; takes some four minutes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from provenance import provenance

import adapruner
from adapruner.methods import METHODS, Method

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))
from digits import BATCH, accuracy, network, optimizer, split, train  # noqa: E402

WEIGHTS = (0.0, 0.1, 0.2, 0.4, 1.0)
EPOCHS, SEEDS, VALIDATION = 16, 4, 300


def measure(weight: float, wrong: float, seed: int) -> dict[str, float]:
    x, y, is_wrong, _, _ = split(seed, wrong)
    count = len(y) - VALIDATION
    right = ~is_wrong[count:]
    x_held, y_held = x[count:][right], y[count:][right]
    torch.manual_seed(seed)
    model = network()
    result = adapruner.fast_prune(
        model,
        (x[:count], y[:count]),
        keep_ratio=0.7,
        epochs=EPOCHS,
        batch_size=BATCH,
        seed=seed,
        method=f"w = {weight}",
        optimizer=lambda parameters: optimizer(parameters, EPOCHS),
        progress=False,
    )
    kept = result.indices
    torch.manual_seed(seed)
    anew = network()
    train(anew, x[kept], y[kept], EPOCHS, seed)
    return {
        "kept set, anew": accuracy(anew, x_held, y_held),
        "fast_prune itself": accuracy(model, x_held, y_held),
        "wrong among kept": is_wrong[kept].double().mean().item() * 100,
    }


def main() -> None:
    torch.set_num_threads(1)
    METHODS.update({f"w = {weight}": Method(easy_weight=weight) for weight in WEIGHTS})
    runs = []
    for wrong in (0.0, 0.15):
        for weight in WEIGHTS:
            for seed in range(SEEDS):
                row = measure(weight, wrong, seed)
                runs.append({"w": weight, "wrong labels": wrong, "seed": seed, **row})
                print(runs[-1], flush=True)
    data = {"provenance": provenance(), "runs": runs}
    (ROOT / "results" / "easy_weight.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
