"""Labels and held-out indices of any form: the run is that of an int64 array."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import drive, frozen

from adapruner import Pruner

N = 60
Y = np.random.default_rng(0).integers(0, 3, N)


def series(values: np.ndarray) -> Any:
    pandas = pytest.importorskip("pandas")
    # As train_test_split leaves it: the index is another order.
    return pandas.Series(values, index=np.random.default_rng(1).permutation(len(values)))


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.setflags(write=False)
    return values


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda y: y.tolist(),
    "tuple": lambda y: tuple(y.tolist()),
    "reversed": lambda y: y[::-1].copy()[::-1],
    "every second": lambda y: np.repeat(y, 2)[::2],
    "big endian": lambda y: y.astype(">i4"),
    "read-only": read_only,
    "whole floats": lambda y: y.astype(np.float64),
    "a column": lambda y: y[:, None],
    "series": series,
    "tensor": torch.from_numpy,
    "float tensor": lambda y: torch.from_numpy(y).bfloat16(),
    **{
        name: lambda y, name=name: y.astype(name)
        for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64")
    },
    **{
        f"torch.{name}": lambda y, name=name: torch.from_numpy(y).to(getattr(torch, name))
        for name in ("uint8", "int32", "uint16", "uint32", "uint64")
    },
}


def kept(**settings: Any) -> torch.Tensor:
    pruner = Pruner(N, 0.4, epochs=4, **settings)
    drive(pruner, frozen(N))
    return pruner.result().indices


@pytest.mark.parametrize("form", FORMS)
def test_labels(form: str) -> None:
    given = FORMS[form](Y)
    before = copy.deepcopy(given)
    found = kept(labels=given)
    assert torch.equal(found, kept(labels=Y))
    shares = np.bincount(Y[found.numpy()], minlength=3)
    assert np.abs(shares - 0.4 * np.bincount(Y)).max() < 1
    assert str(given) == str(before)


@pytest.mark.parametrize("form", FORMS)
def test_held_out(form: str) -> None:
    indices = np.array([3, 50, 7, 21])
    assert torch.equal(kept(held_out=FORMS[form](indices)), kept(held_out=indices))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([0.5] * N, TypeError, "labels must hold integers; found float64"),
        ([np.nan] * N, TypeError, "labels must hold integers; found float64"),
        (["cat"] * N, TypeError, "labels must hold integers; found <U3"),
        ([2**63] * N, ValueError, r"labels must be less than 2\*\*63; found 9223372036854775808"),
        (np.zeros((N, 2), int), ValueError, r"labels must have shape \[60\], .*found \[60, 2\]"),
    ],
)
def test_other_labels_are_refused(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pruner(N, labels=values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    losses = [frozen(N)(epoch) for epoch in range(4)]
    plain = Pruner(N, 0.4, epochs=4, normalize_loss=True)
    drive(plain, losses.__getitem__)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        pruner = Pruner(N, 0.4, epochs=4, normalize_loss=True)
        drive(pruner, losses.__getitem__)
        found = pruner.result()
        assert pruner.gates.last_loss is not None
        assert pruner.gates.last_loss.dtype == pruner.gates.logits.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found.indices, plain.result().indices)
