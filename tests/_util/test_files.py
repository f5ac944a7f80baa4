"""Atomic, checksummed files, and the content of the disk after each kind of failure."""

from __future__ import annotations

import errno
import math
import os
import pickle
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.small_disk import small_disk

from adapruner._util.files import (
    FORMAT_VERSION,
    _digest,
    new_folder,
    read_file,
    remove_leftovers,
    replace_atomically,
    write_file,
)
from adapruner.errors import FileFormatError

TENSORS = {
    "float": torch.tensor([1.5, -0.0, float("inf"), float("nan")]),
    "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "int": torch.tensor([2**62, -1]),
    "flag": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
    "scalar": torch.tensor(7),
}
CONTENT = {"text": "Grüße ×", "number": 0.1, "list": [1, None, {"a": []}], "nan": float("nan")}


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """All bits of a tensor, with NaN payloads and signs of zeros."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, bytes(raw.tolist())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "result", TENSORS, CONTENT)
    tensors, content = read_file(tmp_path / "a", "result")
    assert {name: bits(value) for name, value in tensors.items()} == {
        name: bits(value) for name, value in TENSORS.items()
    }
    assert math.isnan(content.pop("nan"))
    assert content == {name: value for name, value in CONTENT.items() if name != "nan"}
    assert os.listdir(tmp_path) == ["a"]


def test_file_is_plain_safetensors(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "result", TENSORS, CONTENT)
    with safe_open(tmp_path / "a", framework="pt") as handle:
        assert set(handle.keys()) == set(TENSORS)
        assert set(handle.metadata()) == {
            "adapruner_kind",
            "adapruner_format",
            "content",
            "sha256",
        }


def test_views_and_shared_memory_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tied = {"a": base, "b": base.t(), "c": base[:, 1], "d": base.clone().requires_grad_()}
    write_file(tmp_path / "a", "checkpoint", tied, {})
    tensors, _ = read_file(tmp_path / "a", "checkpoint")
    for name, value in tied.items():
        assert torch.equal(tensors[name], value)


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "result", TENSORS, {})
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "plain")]
    assert modes[0] == modes[1]


def test_content_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "result", TENSORS, {"old": 1})
    with pytest.raises(TypeError, match="JSON"):
        write_file(tmp_path / "a", "result", TENSORS, {"bad": object()})
    assert read_file(tmp_path / "a", "result")[1] == {"old": 1}
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["result", "checkpoint"])
def test_other_kind_is_named(tmp_path: Path, kind: str) -> None:
    other = {"result": "checkpoint", "checkpoint": "result"}[kind]
    write_file(tmp_path / "a", other, {}, {})
    with pytest.raises(
        FileFormatError, match=f"expected an adapruner {kind}, found an adapruner {other}"
    ):
        read_file(tmp_path / "a", kind)


def test_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileFormatError, match="adapruner result, found data of another"):
        read_file(tmp_path / "model.safetensors", "result")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no such file: {path}"):
            read_file(path, "result")


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    torch.save({"x": Bomb()}, tmp_path / "torch")
    for name in ("pickle", "torch"):
        with pytest.raises(FileFormatError, match=r"not a whole safetensors file.*pickles"):
            read_file(tmp_path / name, "result")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing/a", FileNotFoundError, "the folder .*missing does not exist"),
        ("file/a", NotADirectoryError, "file is not a folder"),
        ("folder", IsADirectoryError, "it is a folder"),
        ("x" * 300, OSError, "too long"),
    ],
)
def test_destination_that_cannot_be_written(
    tmp_path: Path, name: str, error: type[OSError], message: str
) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=message) as caught:
        write_file(tmp_path / name, "result", TENSORS, {})
    assert str(tmp_path / name) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
    assert not any((tmp_path / "folder").iterdir())


def test_folder_of_the_system_that_takes_no_files() -> None:
    with pytest.raises(OSError, match="/proc/self"):
        write_file("/proc/self/a", "result", TENSORS, {})
    assert not os.path.exists("/proc/self/a")


def test_read_only_disk_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        write_file(disk / "a", "result", {}, {"old": 1})
        command = ["mount", "-o", "remount,ro", str(disk)]
        if not os.path.ismount(disk) or subprocess.run(command, check=False).returncode:
            return  # no disk can be mounted here; the test above uses /proc
        with pytest.raises(OSError, match=r"Read-only file system: .*disk/a'"):
            write_file(disk / "a", "result", TENSORS, {})
        assert read_file(disk / "a", "result")[1] == {"old": 1}
        assert os.listdir(disk) == ["a"]


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        write_file(disk / "a", "result", {"x": torch.zeros(100)}, {"old": 1})
        with pytest.raises(OSError, match=r"No space left|File too large") as caught:
            write_file(disk / "a", "result", {"x": torch.zeros(100_000)}, {})
        assert str(disk / "a") in str(caught.value)
        assert read_file(disk / "a", "result")[1] == {"old": 1}
        assert os.listdir(disk) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_at_the_last_steps_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_file(tmp_path / "a", "result", {}, {"old": 1})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left") as caught:
            write_file(tmp_path / "a", "result", TENSORS, {})
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "a") in str(caught.value)
    assert read_file(tmp_path / "a", "result")[1] == {"old": 1}
    assert os.listdir(tmp_path) == ["a"]


def test_file_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        calls.append("sync folder" if stat.S_ISDIR(mode) else "sync file")
        fsync(descriptor)

    def note_replace(source: Path, destination: Path) -> None:
        calls.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_file(tmp_path / "a", "result", TENSORS, {})
    assert calls == ["sync file", "rename", "sync folder"]


def test_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_file(tmp_path / "a", "result", {}, {"new": 1})
    assert read_file(tmp_path / "a", "result")[1] == {"new": 1}


def test_any_error_of_the_writer_passes_and_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        temporary.with_name("beside").write_text("what a writer leaves")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_atomically(tmp_path / "a", write)
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def killed_writer(path: Path) -> None:
    """A process that dies while it writes ``path``."""
    child = os.fork()
    if child == 0:
        replace_atomically(path, lambda temporary: os._exit(9))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_writer_leaves_the_old_file_and_its_leftovers_can_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "a[1].x"
    path.write_text("old")
    kept = [tmp_path / name for name in (".a[1].x.00000000.tmp", ".adapruner.notes.tmp", "b")]
    for other in kept:
        other.write_text("not ours")
    killed_writer(path)
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == len(kept) + 2
    remove_leftovers(tmp_path / "another")
    assert len(os.listdir(tmp_path)) == len(kept) + 2
    remove_leftovers(path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, path])


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path, folder = tmp_path / "a", tmp_path / "b"
    killed_writer(path)
    killed_writer(folder)
    assert len(os.listdir(tmp_path)) == 2
    replace_atomically(path, lambda temporary: temporary.write_text("new") and None)
    with new_folder(folder, "things"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_writer_does_not_disturb_another_of_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write(temporary: Path) -> None:
        replace_atomically(path, lambda other: other.write_text("inner") and None)
        assert path.read_text() == "inner"
        temporary.write_text("outer")

    replace_atomically(path, write)
    assert path.read_text() == "outer"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.mknod(path, 0o20600, os.makedev(1, 3))]
)
def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "special"
    try:
        make(path)
    except PermissionError:
        pytest.skip("only root can make a device")
    before = path.lstat()
    with pytest.raises(OSError, match=r"special: expected a file, or nothing; found a device"):
        replace_atomically(path, lambda temporary: temporary.write_text("new") and None)
    assert os.path.samestat(path.lstat(), before)


@pytest.mark.parametrize("call", ["rename", "symlink"])
def test_an_error_with_two_names_says_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(source: Any, destination: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(destination))

    monkeypatch.setattr(os, call, fail)
    with (
        pytest.raises(OSError, match="No space left") as caught,
        new_folder(tmp_path / "new", "links") as folder,
    ):
        os.symlink("/somewhere/else", folder / "x")
    assert str(caught.value).endswith(f"'{tmp_path / 'new'}'")
    assert os.listdir(tmp_path) == []


def signed(path: Path, text: str) -> None:
    """A file with a right checksum of any content."""
    metadata = {
        "adapruner_kind": "result",
        "adapruner_format": str(FORMAT_VERSION),
        "content": text,
        "sha256": _digest("result", {}, text),
    }
    save_file({}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "content that is not JSON"),
        ("[" * 100_000 + "]" * 100_000, "content that is not JSON: maximum recursion"),
        ("1" * 5000, "content that is not JSON: Exceeds the limit"),
        ("[1]", "must hold a JSON object; found list"),
    ],
)
def test_a_right_checksum_of_wrong_content(tmp_path: Path, text: str, message: str) -> None:
    signed(tmp_path / "a", text)
    with pytest.raises(FileFormatError, match=message):
        read_file(tmp_path / "a", "result")


@pytest.mark.parametrize("name", ["a", "n" * 255, "ä" * 127, "." + "x" * 254])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path, name: str) -> None:
    path, folder = tmp_path / name, tmp_path / "folders" / name
    folder.parent.mkdir()
    for text in ("first", "second"):
        replace_atomically(path, lambda temporary, text=text: temporary.write_text(text))
        assert path.read_text() == text
    with new_folder(folder, "things") as temporary:
        (temporary / "inside").write_text("whole")
    assert (folder / "inside").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "folders"])
