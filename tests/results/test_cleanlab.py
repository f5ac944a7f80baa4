"""The example of docs/answers.md: cleanlab trains without the suspects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adapruner import fast_prune

PAGE = Path(__file__).resolve().parents[2] / "docs" / "answers.md"


def test_cleanlab_takes_the_suspects() -> None:
    pytest.importorskip("cleanlab", reason="needs cleanlab")
    pytest.importorskip("pandas", reason="needs pandas")
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    wrong = torch.rand(400, generator=generator) < 0.1
    y[wrong] = 1 - y[wrong]
    result = fast_prune(
        nn.Linear(4, 2), (x, y), 0.7, 10, learning_rate=0.05, batch_size=32, progress=False
    )
    fitted: list[tuple[Any, Any]] = []

    class Watched(linear.LogisticRegression):
        def fit(self, data: Any, labels: Any, sample_weight: Any = None) -> Any:
            fitted.append((data, labels))
            return super().fit(data, labels)

    [code] = re.findall(r"^\*\*\[cleanlab[^`]*?\n\n((?:    .*\n|\n)+)", PAGE.read_text(), re.M)
    names = {"result": result, "inputs": x.numpy(), "labels": y.numpy(), "classifier": Watched()}
    exec("\n".join(line[4:] for line in code.splitlines()), names)
    suspects = result.suspects().indices.tolist()
    assert len(suspects) > 10
    expected = np.delete(x.numpy(), suspects, axis=0)
    assert np.array_equal(fitted[-1][0], expected)
