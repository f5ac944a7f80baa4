"""Results as an attacker would write them: the checksum is right, the content is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_data import prune

from adapruner import FileFormatError, PruneResult
from adapruner._util.files import read_file, write_file


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and values of a result of 40 samples."""
    path = tmp_path_factory.mktemp("whole") / "result"
    generator = torch.Generator().manual_seed(0)
    prune((torch.randn(40, 5, generator=generator), torch.arange(40) % 3), epochs=2).save(path)
    return read_file(path, "result")


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 1


CONTENT = [
    (("keep_ratio",), 0, "keep_ratio must be a number in (0, 1]"),
    (("keep_ratio",), True, "keep_ratio must be a number"),
    (("keep_ratio",), "0.5", "keep_ratio must be a number"),
    (("fingerprint",), None, "fingerprint must be of type str"),
    (("config",), [], "config must be a dict"),
    (("forced",), 1, "forced must be of type bool"),
    (("selected_epoch",), "1", "selected_epoch must be a whole number or None"),
    (("history",), {}, "history must be a list of dicts"),
    (("history",), [3], "history must be a list of dicts"),
    (("history", 0, "kept"), "many", "history[0].kept must be a number or None"),
    (("history", 0, "phase"), 3, "history[0].phase must be text"),
    (("history", 0, "epoch"), float("inf"), "history[0].epoch must be a whole number or None"),
    (("dataset", "root"), "/nonexist\0", "dataset.root must be text of Unicode without NUL"),
    (("dataset", "root"), "/\ud800", "dataset.root must be text of Unicode without NUL"),
    (("unreadable",), [[40, "torn"]], "unreadable must be pairs of a dataset index and a reason"),
    (("unreadable",), [[1]], "unreadable must be pairs"),
    (("unreadable",), [[1, 2]], "unreadable must be pairs"),
    (("not_finite",), [-1], "not_finite must be dataset indices in [0, 40)"),
    (("not_finite",), [10**9], "not_finite must be dataset indices in [0, 40)"),
    (("saved", "samples"), "all", "saved.samples must be a finite number"),
    (("saved", "seconds_full"), float("inf"), "saved.seconds_full must be a finite number"),
    (("saved", "seconds"), float("nan"), "saved.seconds must be a finite number"),
    (("saved", "samples"), 10**400, "made of numbers that int64 holds"),
    (("dataset", "class_names"), ["a", 3], "dataset.class_names must be a list of strings"),
    (("dataset", "class_names"), "abc", "dataset.class_names must be of type list"),
    (("dataset", "root"), ["/etc"], "dataset.root must be of type str, or None"),
    (("dataset", "columns"), ["jpg"], "dataset.columns must be the input columns and the target"),
    (("dataset", "columns"), [[], "cls"], "dataset.columns must be the input columns"),
    (("dataset", "columns"), [["jpg", 3], "cls"], "dataset.columns must be the input columns"),
    (("dataset", "columns"), ["jpg", ["cls"]], "dataset.columns must be the input columns"),
    (("dataset", "target"), [1], "dataset.target must be a name, a place or None"),
    (("dataset", "target"), True, "dataset.target must be a name, a place or None"),
    (("dataset", "subset"), 1, "dataset.subset must be of type bool"),
    (("config", "run_keep_ratio"), "half", "config.run_keep_ratio must be a number in (0, 1]"),
    (("config", "run_keep_ratio"), 0, "config.run_keep_ratio must be a number in (0, 1]"),
    (("config", "note"), nested(500), "at most 20 levels deep"),
]


@pytest.mark.parametrize(("path", "value", "message"), CONTENT)
def test_content_that_no_run_writes_is_refused(
    tmp_path: Path, whole: Any, path: tuple[Any, ...], value: Any, message: str
) -> None:
    tensors, content = copy.deepcopy(whole)
    part = content
    for place in path[:-1]:
        part = part[place]
    part[path[-1]] = value
    write_file(tmp_path / "result", "result", tensors, content)
    with pytest.raises(FileFormatError) as caught:
        PruneResult.load(tmp_path / "result")
    assert message in str(caught.value)
    assert f"{tmp_path / 'result'} is not a result" in str(caught.value)


LOGITS = torch.zeros(40)
TENSORS = [
    ("gate_logits", LOGITS.double(), "gate_logits must be float32 [N]"),
    ("gate_logits", LOGITS.reshape(8, 5), "gate_logits must be float32 [N]"),
    ("gate_logits", LOGITS[:3], "indices must be dataset indices in [0, 3)"),
    ("indices", torch.tensor([1.0]), "indices must be int64 [K]"),
    ("indices", torch.tensor([0, 40]), "indices must be dataset indices in [0, 40); found '40'"),
    ("indices", torch.tensor([-1, 3]), "indices must be dataset indices in [0, 40); found '-1'"),
    ("indices", torch.tensor([3, 3]), "indices must be ascending"),
    ("indices", torch.tensor([4, 3]), "indices must be ascending"),
    ("targets", torch.zeros(39, dtype=torch.int64), "targets must be int64 [40]"),
    ("targets", torch.zeros(40), "targets must be int64 [40]"),
    ("sample_losses", torch.zeros(40, 1), "sample_losses must be float32 [40]"),
    ("gate_logits", LOGITS + 3e38, "gate_logits must be numbers up to 1e+30, or -inf; found '3"),
    ("gate_logits", LOGITS + torch.inf, "gate_logits must be numbers up to 1e+30, or -inf"),
    ("draw_keys", LOGITS * torch.nan, "draw_keys must be numbers up to 1e+30, or -inf"),
    ("quota_labels", LOGITS.long() - 1, "quota_labels must be classes in [0, 1048576); found '-1"),
    ("quota_labels", LOGITS.long() + 2**40, "quota_labels must be classes in [0, 1048576)"),
    ("quota_labels", LOGITS.to(torch.uint16), "quota_labels must be integers [40]; found 'uint16"),
    ("quota_labels", LOGITS, "quota_labels must be integers [40]; found 'float32"),
]


@pytest.mark.parametrize(("name", "tensor", "message"), TENSORS)
def test_tensors_that_no_run_writes_are_refused(
    tmp_path: Path, whole: Any, name: str, tensor: torch.Tensor, message: str
) -> None:
    tensors, content = whole
    write_file(tmp_path / "result", "result", tensors | {name: tensor}, content)
    with pytest.raises(FileFormatError) as caught:
        PruneResult.load(tmp_path / "result")
    assert message in str(caught.value)


def test_the_result_itself_is_taken(tmp_path: Path, whole: Any) -> None:
    write_file(tmp_path / "result", "result", *whole)
    assert PruneResult.load(tmp_path / "result").num_samples == 40
