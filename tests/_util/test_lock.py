"""One run for each folder of checkpoints, whatever happens to the runs before."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapruner import FolderInUseError
from adapruner._util.lock import LOCK_NAME, locked_folder


def in_child(work: Callable[[], None]) -> int:
    """The process number of a child that does ``work`` and exits with 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.005)


def hold(folder: Path) -> int:
    """The process number of a child that holds the lock until it is killed."""

    def work() -> None:
        with locked_folder(folder):
            (folder / "held").touch()
            time.sleep(60)

    child = in_child(work)
    wait_for(folder / "held")
    return child


def test_it_leaves_no_file(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        assert os.listdir(tmp_path) == [LOCK_NAME]
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), locked_folder(tmp_path):
        _ = 1 / 0
    assert os.listdir(tmp_path) == []


def test_another_process_is_refused_and_the_holder_is_named(tmp_path: Path) -> None:
    child = hold(tmp_path)
    try:
        named = f"found the lock of process {child} on {socket.gethostname()}"
        with pytest.raises(FolderInUseError, match=named) as caught, locked_folder(tmp_path):
            pass
        assert str(tmp_path) in str(caught.value)
        assert (tmp_path / LOCK_NAME).exists()
    finally:
        os.kill(child, signal.SIGKILL)
        assert code_of(child) == -signal.SIGKILL
    with locked_folder(tmp_path):  # the file of a killed process stops nobody
        assert str(os.getpid()) in (tmp_path / LOCK_NAME).read_text()
    assert os.listdir(tmp_path) == ["held"]


def test_another_thread_is_refused_and_does_not_free_the_lock(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def other() -> None:
        try:
            with locked_folder(tmp_path):
                pass
        except FolderInUseError as error:
            found.append(error)

    def work() -> None:
        with pytest.raises(FolderInUseError, match="process "), locked_folder(tmp_path):
            pass

    with locked_folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "another thread of this process" in str(found[0])
        assert code_of(in_child(work)) == 0
    with locked_folder(tmp_path):
        pass


def test_one_of_many_processes_wins_at_a_time(tmp_path: Path) -> None:
    """Processes that take the lock at once never hold it together, also as its file is removed."""

    def work() -> None:
        for _ in range(200):
            try:
                with locked_folder(tmp_path):
                    (tmp_path / "inside").mkdir()  # fails if another process is inside
                    (tmp_path / "inside").rmdir()
            except FolderInUseError:
                pass

    children = [in_child(work) for _ in range(4)]
    assert [code_of(child) for child in children] == [0] * 4
    assert os.listdir(tmp_path) == []


def test_a_child_of_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A loader's worker can outlive a killed run by seconds."""

    def work() -> None:
        with locked_folder(tmp_path):
            in_child(lambda: time.sleep(3))
            os.kill(os.getpid(), signal.SIGKILL)

    assert code_of(in_child(work)) == -signal.SIGKILL
    with locked_folder(tmp_path):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / LOCK_NAME).symlink_to(victim)
    with pytest.raises(OSError, match=LOCK_NAME), locked_folder(folder):
        pass
    assert victim.read_text() == "precious"
