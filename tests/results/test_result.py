"""PruneResult: save and load, damaged files, and the dataset that it belongs to."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.training_data import prune
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from adapruner._util.files import write_file
from adapruner.data.sources.find import as_source
from adapruner.errors import DatasetMismatchError, FileFormatError
from adapruner.results.result import PruneResult


def make_result(fingerprint: str = "ab" * 32, **changes: Any) -> PruneResult:
    values: dict[str, Any] = {
        "indices": torch.tensor([0, 2, 3]),
        "gate_logits": torch.tensor([1.0, -0.5, 2.0, 0.25, float("-inf")]),
        "keep_ratio": 0.6,
        "fingerprint": fingerprint,
        "config": {"epochs": 3, "method": "published"},
        "dataset": {"kind": "arrays", "samples": 5},
        "history": [{"epoch": 0, "phase": "warm-up", "validation_loss": None}],
        "selected_epoch": 2,
        "sample_losses": torch.tensor([0.1, 0.2, 0.3, 0.4, float("nan")]),
        "targets": torch.tensor([0, 1, 0, 1, 1]),
        "unreadable": [(4, "cannot decode é.jpg")],
        "not_finite": [1],
        "saved": {"samples": 2},
        "versions": {"torch": torch.__version__},
    }
    return PruneResult(**values | changes)


class Numbers(Dataset[tuple[int, int]]):
    """A dataset that is identified only by its class and length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, int]:
        return 10 * index, 0


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "kept.safetensors"
    make_result().save(path)
    return path


def test_round_trip(saved: Path) -> None:
    result, again = make_result(), PruneResult.load(saved)
    for entry in dataclasses.fields(PruneResult):
        before, after = getattr(result, entry.name), getattr(again, entry.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before.nan_to_num(99), after.nan_to_num(99))
        else:
            assert before == after, entry.name


def test_round_trip_without_what_is_optional(tmp_path: Path) -> None:
    result = PruneResult(torch.tensor([1]), torch.zeros(2), 0.5, "")
    result.save(tmp_path / "a")
    again = PruneResult.load(tmp_path / "a")
    assert (again.sample_losses, again.targets, again.source) == (None, None, None)
    assert again.unreadable == []


def test_source_is_not_saved(tmp_path: Path) -> None:
    source = as_source((torch.rand(5, 2), torch.zeros(5)))
    make_result(source=source).save(tmp_path / "a")
    assert PruneResult.load(tmp_path / "a").source is None


def test_masks_and_counts() -> None:
    result = make_result()
    assert result.num_samples == 5
    assert result.kept.tolist() == [True, False, True, True, False]
    assert "kept 3 of 5" in repr(result)


def test_file_cut_off_at_any_length(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    lengths = {0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(whole) - 1}
    lengths |= set(range(0, len(whole), 37))
    for length in sorted(lengths):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match="not a whole safetensors file"):
            PruneResult.load(tmp_path / "cut")


def test_one_bit_flipped_anywhere(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    altered = tmp_path / "altered"
    for position in range(len(whole)):
        for bit in (0, position % 7 + 1):
            content = bytearray(whole)
            content[position] ^= 1 << bit
            altered.write_bytes(content)
            with pytest.raises(FileFormatError, match=str(altered)):
                PruneResult.load(altered)


def test_one_flipped_byte_of_the_data_is_called_an_alteration(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"was altered: .* does not match its SHA-256"):
        PruneResult.load(saved)


def test_bytes_appended(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        PruneResult.load(saved)


def test_values_edited_with_a_library_are_found(saved: Path) -> None:
    with safe_open(saved, framework="pt") as handle:
        metadata = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    content = json.loads(metadata["content"]) | {"keep_ratio": 0.9}
    save_file(tensors, saved, metadata=metadata | {"content": json.dumps(content)})
    with pytest.raises(FileFormatError, match="was altered"):
        PruneResult.load(saved)
    save_file(tensors | {"more": torch.zeros(1)}, saved, metadata=metadata)
    with pytest.raises(FileFormatError, match="was altered"):
        PruneResult.load(saved)


def test_other_version_is_named(saved: Path) -> None:
    with safe_open(saved, framework="pt") as handle:
        metadata = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    save_file(tensors, saved, metadata=metadata | {"adapruner_format": "999"})
    with pytest.raises(FileFormatError, match="this adapruner reads version 1, found 999"):
        PruneResult.load(saved)


def test_checkpoint_is_no_result(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "checkpoint", {}, {})
    with pytest.raises(
        FileFormatError, match="expected an adapruner result, found an adapruner checkpoint"
    ):
        PruneResult.load(tmp_path / "a")


def test_result_that_lacks_entries(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "result", {"indices": torch.zeros(1)}, {"keep_ratio": 1})
    with pytest.raises(FileFormatError, match=r"not found: config, .*gate_logits"):
        PruneResult.load(tmp_path / "a")


@pytest.mark.parametrize(
    "content",
    [b"", b"kept: 1, 2, 3\n" * 40, pickle.dumps({"indices": [1]}), bytes(64), b"\xff" * 64],
    ids=["empty", "text", "pickle", "zeros", "ones"],
)
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        PruneResult.load(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content


def test_torch_save_is_refused(tmp_path: Path) -> None:
    torch.save({"indices": torch.arange(3)}, tmp_path / "a")
    with pytest.raises(FileFormatError, match="Other formats, pickles for example, are never"):
        PruneResult.load(tmp_path / "a")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        PruneResult.load(tmp_path / "a")


def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        make_result().save(tmp_path / "gone" / "a")
    assert os.listdir(tmp_path) == []


# --- subset ---------------------------------------------------------------------------------------


def arrays() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(10.0).reshape(5, 2), torch.tensor([0, 1, 0, 1, 1])


def test_subset_of_the_dataset_pruned() -> None:
    data = TensorDataset(*arrays())
    result = make_result(as_source(data).fingerprint())
    subset = result.subset(data)
    assert isinstance(subset, Subset)
    assert subset.dataset is data
    assert [sample[0].tolist() for sample in subset] == [[0, 1], [4, 5], [6, 7]]


def test_subset_of_another_form_of_the_same_samples() -> None:
    inputs, targets = arrays()
    result = make_result(as_source((inputs, targets)).fingerprint())
    assert result.subset(TensorDataset(inputs, targets))[1][1] == 0
    assert torch.equal(result.subset((inputs.numpy(), targets.numpy()))[2][0], inputs[3])


def test_subset_reads_a_folder_by_path(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for index in range(5):
        (tmp_path / "cat").mkdir(exist_ok=True)
        image.new("RGB", (2, 2), (index, 0, 0)).save(tmp_path / "cat" / f"{index}.png")
    result = make_result(as_source(tmp_path).fingerprint())
    subset = result.subset(tmp_path)
    assert [round(255 * x[0, 0, 0].item()) for x, _ in subset] == [0, 2, 3]
    images, classes = next(iter(DataLoader(subset, batch_size=3)))
    assert images.shape == (3, 3, 2, 2)
    assert classes.tolist() == [0, 0, 0]
    sizes = [image.size for image, _ in result.subset(tmp_path, transform=lambda image: image)]
    assert sizes == [(2, 2)] * 3


def test_subset_takes_no_transform_for_a_dataset() -> None:
    data = TensorDataset(*arrays())
    with pytest.raises(ValueError, match=r"transform is for paths and arrays.* TensorDataset"):
        make_result(as_source(data).fingerprint()).subset(data, transform=torch.abs)


def test_subset_of_another_dataset_names_both_fingerprints() -> None:
    inputs, targets = arrays()
    result = make_result(as_source((inputs, targets)).fingerprint())
    other = (inputs + 1, targets)
    with pytest.raises(DatasetMismatchError) as caught:
        result.subset(other)
    assert result.fingerprint in str(caught.value)
    assert as_source(other).fingerprint() in str(caught.value)


def test_subset_with_an_identity_that_the_user_states() -> None:
    inputs, targets = arrays()
    stated = as_source(Numbers(5), fingerprint="numbers, version 1").fingerprint()
    result = make_result(stated)
    assert result.subset(Numbers(5), fingerprint="numbers, version 1")[1] == (20, 0)
    for fingerprint in (None, "numbers, version 2"):
        with pytest.raises(DatasetMismatchError, match="another dataset"):
            result.subset(Numbers(5), fingerprint=fingerprint)
    # The result's own fingerprint is accepted for any dataset of its length.
    assert len(result.subset((inputs, targets), fingerprint=result.fingerprint)) == 3
    with pytest.raises(DatasetMismatchError, match="number of samples 5, found 6"):
        result.subset(Numbers(6), fingerprint=result.fingerprint)


def test_subset_of_a_dataset_known_by_class_and_length_only() -> None:
    result = make_result(as_source(Numbers(5)).fingerprint())
    assert list(result.subset(Numbers(5))) == [(0, 0), (20, 0), (30, 0)]
    with pytest.raises(DatasetMismatchError, match="another dataset"):
        result.subset(Numbers(6))


def test_subset_of_a_result_without_fingerprint_compares_lengths() -> None:
    result = make_result("")
    assert len(result.subset(Numbers(5))) == 3
    assert len(result.subset((np.zeros((5, 1)), np.zeros(5)))) == 3
    with pytest.raises(DatasetMismatchError, match="number of samples 5, found 4"):
        result.subset(Numbers(4))


def test_check_dataset_takes_a_source_or_a_fingerprint() -> None:
    source = as_source(arrays())
    result = make_result(source.fingerprint())
    result.check_dataset(source)
    result.check_dataset(source.fingerprint())
    for other in ("0" * 64, ""):
        with pytest.raises(DatasetMismatchError, match=f"{source.fingerprint()}, found {other}$"):
            result.check_dataset(other)
    with pytest.raises(DatasetMismatchError, match=f"expected fingerprint , found {'0' * 64}"):
        make_result("").check_dataset("0" * 64)


def test_subset_of_what_is_no_dataset() -> None:
    with pytest.raises(TypeError, match="map-style"):
        make_result().subset(iter([1, 2]))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], ""),
        ([{"epoch": 0}], ""),
        ([{}, {"fitted": 0.5, "chance": 0.2}], "The model has fitted 50 % of the data."),
        ([{"fitted": 0.5, "chance": None}], "The model has fitted 50 % of the data."),
        ([{"fitted": None, "chance": None}], ""),
        (
            [{"fitted": 0.9, "chance": 0.2}, {"fitted": 0.041, "chance": 0.97}],
            "The model has fitted 4.1 % of the data. The selection is mostly chance.",
        ),
    ],
)
def test_a_result_tells_how_much_is_fitted_and_whether_it_is_chance(
    entries: list[dict[str, float]], text: str
) -> None:
    result = PruneResult(torch.arange(2), torch.ones(4), 0.5, "f", history=entries)
    assert result.fit == text


def test_a_run_of_one_epoch_of_losses_says_that_its_selection_is_chance() -> None:
    result = prune((torch.zeros(64, 5), torch.arange(64) % 3), epochs=2)
    assert result.fit == "The model has fitted 0 % of the data. The selection is mostly chance."
