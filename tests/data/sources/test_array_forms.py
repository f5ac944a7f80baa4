"""Classes in every form that people have them in, and rows of arrays with any strides."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import INPUTS, Pairs, double

from adapruner import Pruner
from adapruner.data import as_source
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.data.sources.base import Source

CLASSES = [0, 200, 3, 1, 4, 2]


def read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def series(**options: Any) -> Any:
    """A Series whose index is permuted, as after a random split."""
    pandas = pytest.importorskip("pandas")
    return pandas.Series(CLASSES, index=[5, 0, 3, 1, 4, 2], **options)


FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: list(CLASSES),
    "tuple": lambda: tuple(CLASSES),
    "list of NumPy scalars": lambda: list(np.array(CLASSES, np.uint8)),
    "list of tensors": lambda: list(torch.tensor(CLASSES)),
    "list of lists": lambda: [[number] for number in CLASSES],
    "Series": series,
    "uint16 Series": lambda: series(dtype="uint16"),
    "nullable Series": lambda: series(dtype="Int64"),
    "categorical Series": lambda: series(dtype="category"),
    "object Series": lambda: series(dtype=object),
    "DataFrame": lambda: series().to_frame(),
    "objects": lambda: np.array(CLASSES, dtype=object),
    "reversed": lambda: np.array(CLASSES[::-1])[::-1],
    "read-only": lambda: read_only(np.array(CLASSES)),
    "spread": lambda: np.repeat(np.array(CLASSES, np.int32), 3)[::3],
    "column": lambda: np.array(CLASSES, np.uint16)[:, None],
    "column of a table": lambda: np.array([CLASSES, CLASSES], np.int16).T[:, 1:],
    "tensor column": lambda: torch.tensor(CLASSES)[:, None],
    "packed field": lambda: np.array(
        [(0, number) for number in CLASSES], dtype=[("a", "u1"), ("b", ">u4")]
    )["b"],
    **{
        f"NumPy {dtype}": lambda dtype=dtype: np.array(CLASSES, dtype)
        for dtype in ("u1", "<i2", ">i2", ">u2", "<u2", ">i4", "<u4", ">i8", "<u8", ">u8", "q", "Q")
    },
    **{
        f"tensor {dtype}": lambda dtype=dtype: torch.tensor(CLASSES, dtype=getattr(torch, dtype))
        for dtype in ("uint8", "int16", "int32", "uint16", "uint32", "uint64")
    },
}


def check_classes(source: Source) -> None:
    assert source.targets is not None
    assert source.targets.dtype == np.dtype(np.int64)
    assert source.targets.dtype.isnative
    assert source.targets.tolist() == CLASSES


def batches(source: Source) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Input and target of each sample, as the torch loader has them in a batch."""
    pruner = Pruner(len(source), keep_ratio=0.5, epochs=2)
    read = {}
    for inputs, targets, ids in PrunedLoader(source, pruner, 4):
        read |= {int(id): (x, y) for x, y, id in zip(inputs, targets, ids, strict=True)}
    assert sorted(read) == list(range(len(source)))
    return read


@pytest.mark.parametrize("form", FORMS)
def test_classes_of_arrays(form: str) -> None:
    labels = FORMS[form]()
    for transform in (None, double):
        source = as_source((INPUTS, labels), transform=transform)
        check_classes(source)
        for read in (source, pickle.loads(pickle.dumps(source)), batches(source)):
            for index, number in enumerate(CLASSES):
                target = read[index][1]
                assert target.dtype == torch.int64
                assert target.shape == ()
                assert int(target) == number
        check_classes(as_source(torch.utils.data.Subset(source, range(6))))
    if form == "read-only":
        assert not labels.flags.writeable


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["targets", "labels", "y"])
def test_classes_of_a_dataset(form: str, name: str) -> None:
    dataset = Pairs([(number, 0) for number in range(6)], **{name: FORMS[form]()})
    source = as_source(dataset)
    check_classes(source)
    assert source.fingerprint() == as_source(dataset).fingerprint()
    assert source.fingerprint() != as_source(Pairs(dataset.held)).fingerprint()


def test_fingerprint_covers_the_type_that_was_given() -> None:
    given = [np.array(CLASSES, dtype) for dtype in ("u1", "<i8", ">i8", "<u8")]
    one, two, three, four = (as_source((INPUTS, labels)).fingerprint() for labels in given)
    assert two == three == as_source((INPUTS, CLASSES)).fingerprint()
    assert len({one, two, four, as_source((INPUTS, given[1][:, None])).fingerprint()}) == 4


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_targets_of_a_regression_stay_as_they_are(dtype: Any) -> None:
    values = np.array([[0.5], [1], [2], [-3], [1e-3], [7]], dtype)
    for targets in (values, values[:, 0], values[::-1], np.round(values)):
        source = as_source((INPUTS, targets))
        assert source.targets is None
        for index, (_, target) in batches(source).items():
            expected = targets[index].astype(targets.dtype.newbyteorder("="))
            assert np.array_equal(target.numpy(), expected)
            assert target.numpy().dtype == expected.dtype


ROWS = np.random.default_rng(0).integers(0, 200, (6, 4, 5, 3))
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda array: array,
    "channels reversed": lambda array: array[..., ::-1],
    "samples reversed": lambda array: array[::-1],
    "all reversed": lambda array: array[::-1, ::-1, ::-1, ::-1],
    "every second": lambda array: array[:, ::2, ::-2],
    "channels first": lambda array: array.transpose(0, 3, 1, 2),
    "turned": lambda array: np.rot90(array, axes=(1, 2)),
    "repeated": lambda array: np.broadcast_to(array[:1], array.shape),
    "one number a sample": lambda array: array[::-1, 0, 0, 0],
}
STORED: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "C": lambda array, _: array,
    "Fortran": lambda array, _: np.asfortranarray(array),
    "read-only": lambda array, _: read_only(array),
    "packed": lambda array, _: packed(array),
    "memory map": lambda array, path: mapped(array, path, "r"),
    "writable memory map": lambda array, path: mapped(array, path, "r+"),
}


def packed(array: np.ndarray) -> np.ndarray:
    """The values as a field of records, which is not aligned."""
    records = np.zeros(len(array), [("other", "u1"), ("values", array.dtype, array.shape[1:])])
    records["values"] = array
    return records["values"]


def mapped(array: np.ndarray, path: Path, mode: Any) -> np.ndarray:
    np.save(path / "a.npy", array)
    return np.load(path / "a.npy", mmap_mode=mode)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", ">i8", "Q", "<f4", ">f8"])
def test_arrays_of_any_strides(tmp_path: Path, view: str, stored: str, dtype: str) -> None:
    inputs = VIEWS[view](STORED[stored](ROWS.astype(dtype), tmp_path))
    expected = VIEWS[view](ROWS)
    before = expected.copy()
    for transform, factor in ((None, 1), (double, 2)):
        source = as_source((inputs, CLASSES), transform=transform)
        for read in (source, batches(source)):
            for index in range(6):
                row = read[index][0]
                right = (expected[index] * factor).astype(dtype[-2:])  # bytes wrap around
                assert np.array_equal(row.numpy(), right)
                assert row.numpy().dtype == np.dtype(dtype).newbyteorder("=")
    if expected[0].ndim:
        assert np.array_equal(source.image(2), expected[2])  # type: ignore[arg-type]
    if stored not in ("C", "Fortran", "packed"):
        # A row of a file or of a read-only array is a copy.
        as_source((inputs, CLASSES))[0][0].fill_(1)
        assert np.array_equal(inputs, before)
