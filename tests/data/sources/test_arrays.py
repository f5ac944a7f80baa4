"""Sources of arrays: rows, fingerprints, memory maps."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.sample_data import INPUTS, TARGETS, double, sha256
from torch.utils.data import TensorDataset

from adapruner.data import as_source
from adapruner.data.sources import base


def test_arrays_are_read_as_tensors() -> None:
    for data in (
        (INPUTS, TARGETS),
        TensorDataset(INPUTS, TARGETS),
        (INPUTS.numpy(), TARGETS.numpy()),
        (INPUTS, TARGETS.numpy()),
    ):
        source = as_source(data)
        assert (source.kind, len(source), source.deterministic) == ("arrays", 6, True)
        assert source.targets is not None
        assert source.targets.dtype == np.int64
        assert source.targets.tolist() == TARGETS.tolist()
        assert (source.paths, source.sizes, source.root, source.class_names) == (None,) * 4
        for index, (inputs, target) in enumerate(source):
            assert torch.equal(inputs, INPUTS[index])
            assert torch.equal(target, TARGETS[index])
        image = source.image(3)
        assert isinstance(image, np.ndarray)
        assert np.array_equal(image, INPUTS[3].numpy())


def test_index_wraps_once_and_then_ends() -> None:
    source = as_source((INPUTS, TARGETS))
    assert torch.equal(source[-1][0], INPUTS[5])
    assert torch.equal(source[torch.tensor(1)][0], INPUTS[1])  # type: ignore[index]
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 6 samples"):
            source[index]
    with pytest.raises(TypeError, match="integer"):
        source[1.0]  # type: ignore[index]


def test_transform_is_applied_to_the_input_only_and_not_to_the_image() -> None:
    source = as_source((INPUTS, TARGETS), transform=double)
    assert torch.equal(source[2][0], 2 * INPUTS[2])
    assert source[2][1] == TARGETS[2]
    assert np.array_equal(source.image(2), INPUTS[2].numpy())  # type: ignore[arg-type]
    assert not source.deterministic
    with pytest.raises(TypeError, match="transform must be callable or None; found str"):
        as_source((INPUTS, TARGETS), transform="resize")  # type: ignore[arg-type]


def test_array_fingerprint_is_over_dtype_shape_and_bytes() -> None:
    expected = sha256(
        b"adapruner arrays 1\n",
        b"float32 [6, 2, 2]\n",
        INPUTS.numpy().astype("<f4").tobytes(),
        b"int64 [6]\n",
        TARGETS.numpy().astype("<i8").tobytes(),
    )
    spread = torch.empty(6, 4, 4)[:, ::2, ::2].copy_(INPUTS)
    fortran = np.asfortranarray(INPUTS.numpy())
    for inputs in (INPUTS, INPUTS.numpy(), spread, fortran, INPUTS.numpy().astype(">f4")):
        for targets in (TARGETS, TARGETS.numpy(), TARGETS.numpy().astype(">i8")):
            assert as_source((inputs, targets)).fingerprint() == expected
    assert as_source(TensorDataset(INPUTS, TARGETS)).fingerprint() == expected
    assert as_source((INPUTS, TARGETS), transform=double).fingerprint() == expected


def test_array_fingerprint_tells_apart() -> None:
    changed = INPUTS.clone()
    changed[5, 1, 1] += 1
    variants = [
        (INPUTS, TARGETS),
        (changed, TARGETS),
        (INPUTS, TARGETS.flip(0)),
        (INPUTS, TARGETS.int()),
        (INPUTS.view(torch.int32), TARGETS),
        (INPUTS.reshape(6, 4), TARGETS),
        (INPUTS[:5], TARGETS[:5]),
        (INPUTS.bfloat16(), TARGETS),
        (INPUTS != 0, TARGETS),
    ]
    assert len({as_source(data).fingerprint() for data in variants}) == len(variants)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.float32, np.bool_, np.complex64]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=7),
    ),
    st.integers(1, 40),
    st.booleans(),
)
def test_chunks_do_not_show_in_the_fingerprint(
    array: np.ndarray[Any, Any], chunk: int, reverse: bool
) -> None:
    array = array[::-1] if reverse else array
    digests = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_CHUNK_BYTES", chunk)
        for form in (array, torch.from_numpy(array.copy())):
            digest = hashlib.sha256()
            base.update_with_array(digest, form)
            digests.append(digest.hexdigest())
    header = f"{array.dtype.name} {list(array.shape)}\n".encode()
    assert digests == [sha256(header, array.tobytes())] * 2


@pytest.mark.parametrize(
    "targets", [TARGETS.float(), TARGETS > 0, TARGETS[:, None].float(), TARGETS.expand(2, 6).T]
)
def test_targets_that_are_no_classes(targets: torch.Tensor) -> None:
    source = as_source((INPUTS, targets))
    assert source.targets is None
    assert torch.equal(source[1][1], targets[1])


def test_read_only_arrays_are_copied() -> None:
    inputs = INPUTS.numpy().copy()
    inputs.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row, _ = as_source((inputs, TARGETS))[0]
    row.fill_(99)
    assert np.array_equal(inputs, INPUTS.numpy())


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_memory_map_stays_one_and_is_never_written(tmp_path: Path, mode: Any) -> None:
    inputs = np.arange(300_000, dtype=np.float32).reshape(1000, 300)
    np.save(tmp_path / "x.npy", inputs)
    content = (tmp_path / "x.npy").read_bytes()
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    source = as_source((mapped, np.zeros(1000, np.int64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source[7][0].fill_(-1)
    pickled = pickle.dumps(source)
    assert len(pickled) < 20_000  # the targets take 8,000, the inputs would take 1.2 MB
    again = pickle.loads(pickled)
    assert isinstance(again._inputs, np.memmap)
    assert torch.equal(again[999][0], torch.from_numpy(inputs[999]))
    assert again.fingerprint() == as_source((inputs, np.zeros(1000, np.int64))).fingerprint()
    assert (tmp_path / "x.npy").read_bytes() == content


def test_other_memory_maps_are_pickled_by_value(tmp_path: Path) -> None:
    inputs = np.arange(60, dtype=np.float32).reshape(10, 6)
    np.save(tmp_path / "x.npy", inputs)
    np.save(tmp_path / "f.npy", np.asfortranarray(inputs))
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[3] = 7
    for array in (
        np.load(tmp_path / "x.npy", mmap_mode="r")[4:],
        np.load(tmp_path / "x.npy", mmap_mode="r")[:, ::2],
        np.load(tmp_path / "f.npy", mmap_mode="r"),
        changed,
    ):
        again = pickle.loads(pickle.dumps(as_source((array, np.zeros(len(array))))))
        for index in range(len(array)):
            assert np.array_equal(again[index][0].numpy(), array[index])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((INPUTS, TARGETS[:4]), ValueError, "found 6 inputs and 4 targets"),
        ((INPUTS[:0], TARGETS[:0]), ValueError, "at least one sample"),
        ((INPUTS, TARGETS, TARGETS), ValueError, "expected two arrays.*found a tuple of 3"),
        ((INPUTS,), ValueError, "found a tuple of 1"),
        ((INPUTS, set(range(6))), TypeError, "targets must be a torch tensor or .*; found set"),
        ((INPUTS, [[0], [1, 2]] * 3), TypeError, "targets must hold numbers, in rows of one shape"),
        ((INPUTS, [0, None] * 3), TypeError, "targets must hold numbers; found .*object"),
        ((INPUTS, ["a"] * 5), TypeError, "targets must hold numbers; found .*<U1"),
        ((INPUTS, [2**63] * 6), ValueError, r"targets must be less than 2\*\*63; found 92233"),
        ((INPUTS.tolist(), TARGETS), TypeError, "inputs must be a torch tensor or .*; found list"),
        ((INPUTS, np.ma.array(TARGETS)), TypeError, "targets must be .* without a mask"),
        ((np.ma.array(INPUTS), TARGETS), TypeError, "inputs must be .* without a mask"),
        ((INPUTS, torch.tensor(1)), ValueError, "targets must have one row for each sample"),
        ((INPUTS, np.array([b"a"] * 6)), TypeError, "targets must hold numbers; found .*S1"),
        ((np.array([None] * 6), TARGETS), TypeError, "inputs must hold numbers; found .*object"),
        ((INPUTS.to_sparse(), TARGETS), TypeError, "inputs must be a dense tensor"),
        (INPUTS, TypeError, r"found a single Tensor; pass a tuple \(inputs, targets\)"),
        (INPUTS.numpy(), TypeError, "found a single ndarray"),
    ],
)
def test_arrays_that_are_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_source(data)


def save_pair(folder: Path, inputs: Any = INPUTS, targets: Any = TARGETS) -> tuple[str, Path]:
    np.save(folder / "x.npy", np.asarray(inputs), allow_pickle=True)
    np.save(folder / "y.npy", np.asarray(targets), allow_pickle=True)
    return str(folder / "x.npy"), folder / "y.npy"


def test_npy_files_are_mapped(tmp_path: Path) -> None:
    paths = save_pair(tmp_path)
    source = as_source(paths)
    assert source.fingerprint() == as_source((INPUTS, TARGETS)).fingerprint()
    assert torch.equal(torch.stack([source[index][0] for index in range(6)]), INPUTS)
    assert source.targets is not None
    assert source.targets.tolist() == TARGETS.tolist()
    source[0][0].zero_()  # a row is a copy
    assert np.array_equal(np.load(paths[0]), INPUTS.numpy())
    assert len(pickle.dumps(as_source(save_pair(tmp_path, np.zeros((6, 10000)))))) < 2000
    assert as_source((paths[0], TARGETS)).fingerprint() != source.fingerprint()


def test_only_the_rows_read_of_a_mapped_file_come_to_memory(tmp_path: Path) -> None:
    rows, columns = 64, 1 << 17  # 64 MiB of float64
    with open(tmp_path / "x.npy", "wb") as handle:
        header = {"descr": "<f8", "fortran_order": False, "shape": (rows, columns)}
        np.lib.format.write_array_header_1_0(handle, header)
        handle.truncate(handle.tell() + rows * columns * 8)
    np.save(tmp_path / "y.npy", np.arange(rows))
    before = resident_bytes()
    source = as_source((tmp_path / "x.npy", tmp_path / "y.npy"))
    for index in (3, 60):
        assert not source[index][0].any()
    assert resident_bytes() - before < 16 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a whole .npy file"),
        (b"\x93NUMPY", "is not a whole .npy file"),
        (b"text, not an array", "is not a whole .npy file"),
        (pickle.dumps([1, 2]), "is not a whole .npy file"),
    ],
)
def test_files_that_are_not_arrays(tmp_path: Path, content: bytes, said: str) -> None:
    inputs, targets = save_pair(tmp_path)
    Path(inputs).write_bytes(content)
    with pytest.raises(ValueError, match=f"x.npy {said}"):
        as_source((inputs, targets))


def test_npy_files_that_cannot_be_mapped(tmp_path: Path) -> None:
    inputs, targets = save_pair(tmp_path)
    whole = Path(inputs).read_bytes()
    Path(inputs).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"not a whole \.npy file of numbers"):
        as_source((inputs, targets))
    with pytest.raises(ValueError, match=r"not a whole .npy file of numbers: .*[Oo]bject"):
        as_source(save_pair(tmp_path, np.array([{}, []], dtype=object)))
    np.savez(tmp_path / "z.npz", INPUTS.numpy())
    (tmp_path / "z.npz").rename(inputs)
    with pytest.raises(ValueError, match=r"x\.npy is not a whole \.npy file of numbers"):
        as_source((inputs, targets))
    Path(inputs).unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*x\.npy; expected a \.npy file"):
        as_source((inputs, targets))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{'descr': {}, 'fortran_order': False, 'shape': (-1,)}", r"\[-1\]"),  # a division by 0
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", r"\[-1\]"),
        ("{'descr': '|S0', 'fortran_order': False, 'shape': (3,)}", "S0 of shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,)}", ""),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},)}}", "needs more than"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 4)}}", "needs more than"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (", ""),
        ("(" * 500, ""),
        ("{'descr': 'x', 'fortran_order': 1, 'shape': 3}", ""),
    ],
)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"])
def test_hostile_headers_are_refused(
    tmp_path: Path, header: str, said: str, version: bytes
) -> None:
    inputs, targets = save_pair(tmp_path)
    text = header.encode() + b"\n"
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    Path(inputs).write_bytes(b"\x93NUMPY" + version + size + text + bytes(40))
    message = said if version[0] < 3 else "expected version 1.0 or 2.0|version"
    with pytest.raises(
        ValueError, match=rf"x\.npy is not a whole \.npy file of numbers: .*({message})"
    ):
        as_source((inputs, targets))
