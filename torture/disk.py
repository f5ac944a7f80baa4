"""Lets each write fail in turn. What stood before must stand after, and the message must be clear.

Every call that changes the disk fails once (or from then on) for every writer of the package: a
full disk, a quota, a read-only disk, an error of the device at a write or a sync, a short write,
and a folder that vanishes.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adapruner import PruneResult, as_source
from adapruner._util.files import new_folder, read_file
from adapruner.data.sources.shard_index import scan, write_index
from adapruner.errors import FileFormatError
from adapruner.training import CHECKPOINT_NAME
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint
from torture import faults
from torture.command import Findings, main
from torture.runs import KINDS, live, make_data, warm_up

SIZES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # KiB of a small disk
LEAST = 60  # faults, however short the time is
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
Write = Callable[[Path, PruneResult], None]


def _checkpoint(folder: Path, result: PruneResult) -> None:
    save_checkpoint(folder, {"new": result.gate_logits, "old": torch.zeros(3000)})


def _index(folder: Path, result: PruneResult) -> None:
    shard = folder.parent / "shards" / "0.tar"
    write_index(folder / "0.idx", scan(shard), shard.stat().st_size)


def _export(to: str, name: str, kind: str) -> Write:
    def write(folder: Path, result: PruneResult) -> None:
        result.export(folder / name, to=to, source=as_source(folder.parent / kind))

    return write


# Each writer with the name of what it writes in the folder.
WRITERS: dict[str, tuple[Write, str]] = {
    "result": (lambda folder, result: result.save(folder / "result"), "result"),
    "checkpoint": (_checkpoint, CHECKPOINT_NAME),
    "report": (lambda folder, result: result.report(folder / "report.html"), "report.html"),
    "index": (_index, "0.idx"),
    "npy": (_export("npy", "kept.npy", "images"), "kept.npy"),
    "paths": (_export("paths", "kept.txt", "images"), "kept.txt"),
    "parquet": (_export("parquet", "kept.parquet", "images"), "kept.parquet"),
    "links": (_export("links", "links", "images"), "links"),
    "wds-index": (_export("wds-index", "indexes", "shards"), "indexes"),
    "shards": (_export("shards", "kept-shards", "shards"), "kept-shards"),
}
FOLDERS = ("links", "wds-index", "shards")  # written to a new folder


def tree(folder: Path) -> dict[str, bytes | str]:
    """All files below a folder, with their bytes."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def content(path: Path) -> bytes | str:
    """The content of a file. Files of safetensors hold their metadata in any order."""
    for kind in ("result", "checkpoint"):
        try:
            return repr(read_file(path, kind))
        except FileFormatError:
            continue
    return path.read_bytes()


class Disk:
    """A folder in which writers fail, and the results to write."""

    def __init__(self, arena: Path) -> None:
        make_data(arena)
        self.arena, self.results = arena, {}
        for kind in ("images", "shards"):
            life = arena / f"life-{kind}"
            life.mkdir()
            live(KINDS[kind]._replace(exports=()), arena, life, report=False)
            self.results[kind] = PruneResult.load(life / "result")

    def result(self, writer: str) -> PruneResult:
        return self.results["shards" if writer in ("wds-index", "shards") else "images"]

    def prepare(self, writer: str) -> Path:
        """A folder that holds an old file where the writer writes, or none if it needs a folder."""
        folder = self.arena / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "mine").write_text("a file of the user")
        if writer not in FOLDERS:
            (folder / WRITERS[writer][1]).write_text("old")
        return folder

    def calls(self, writer: str) -> tuple[int, dict[str, bytes | str]]:
        """The number of calls of a writer that nothing disturbs, and what it leaves."""
        folder = self.prepare(writer)
        faults.arm(folder, -1, 0)
        WRITERS[writer][0](folder, self.result(writer))
        return faults.disarm(), tree(folder)

    def suffer(
        self, writer: str, number: int, fault: int, lasting: bool, whole: dict[str, bytes | str]
    ) -> str | None:
        """Write with a fault at a call. Returns what is wrong, or None."""
        folder = self.prepare(writer)
        before = tree(folder)
        faults.arm(folder, number, fault, lasting)
        try:
            WRITERS[writer][0](folder, self.result(writer))
        except OSError as error:
            faults.disarm()
            return self._after_error(writer, error, folder, before, fault)
        except Exception as error:
            faults.disarm()
            return f"{type(error).__name__}: {error}"
        faults.disarm()
        # A folder that cannot be synced is not an error, nor is a write that is tried again.
        return None if tree(folder) == whole else "it went wrong without an error"

    def _after_error(
        self,
        writer: str,
        error: OSError,
        folder: Path,
        before: dict[str, bytes | str],
        fault: int,
    ) -> str | None:
        after = tree(folder)
        if after != before:
            return f"files were lost or left: {sorted(after.keys() ^ before.keys())}; {error}"
        if fault == faults.SHORT:
            return f"a short write is an error: {error}"
        if WRITERS[writer][1] not in str(error):
            return f"the message does not name {WRITERS[writer][1]}: {error}"
        if os.strerror(fault) not in str(error):
            return f"the message does not give the reason: {error}"
        return None


def full_disks(disk: Disk, sizes: tuple[int, ...], findings: Findings) -> int:
    """Write to disks of some sizes, in KiB. Returns how many were tried."""
    place, tried = disk.arena / "disk", 0
    place.mkdir()
    for writer, (write, name) in WRITERS.items():
        for kibibytes in sizes:
            command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(place)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return tried  # only root can mount
            try:
                (place / "out").mkdir()
                result = disk.result(writer)
                os.symlink(disk.arena / "shards", place / "shards")
                os.symlink(disk.arena / "images", place / "images")
                try:
                    write(place / "out", result)
                except OSError as error:
                    left = sorted(path.name for path in (place / "out").iterdir())
                    if left:
                        findings.note(f"disk, full, {writer}", f"left {left}")
                    if "space" not in str(error) and "too large" not in str(error):
                        findings.note(f"disk, full, {writer}", f"unclear: {error}")
                except Exception as error:
                    findings.note(f"disk, full, {writer}", f"{type(error).__name__}: {error}")
                else:
                    if not (place / "out" / name).exists():
                        findings.note(f"disk, full, {writer}", "nothing was written")
                tried += 1
            finally:
                subprocess.run(["umount", str(place)], check=True)
    return tried


def vanishing(disk: Disk, findings: Findings) -> int:
    """The folder goes away in the middle of a write. The error must name what was to be written."""

    def in_a_report(folder: Path) -> None:
        from adapruner._util.files import replace_atomically

        def write(temporary: Path) -> None:
            shutil.rmtree(folder)
            temporary.write_text("new")

        replace_atomically(folder / "report.html", write)

    def before_a_checkpoint(folder: Path) -> None:
        shutil.rmtree(folder)
        save_checkpoint(folder, {"x": torch.zeros(3)})  # it is made again
        assert load_checkpoint(folder) is not None
        raise FileNotFoundError(f"all is well in {folder}")

    def in_an_export(folder: Path) -> None:
        with new_folder(folder / "links", "links") as temporary:
            shutil.rmtree(folder)
            (temporary / "x").write_text("new")

    cases = (in_a_report, before_a_checkpoint, in_an_export)
    for case in cases:
        folder = disk.prepare("links")
        try:
            case(folder)
        except OSError as error:
            if "folder" not in str(error):
                findings.note(f"disk, vanished {case.__name__}", str(error))
        else:
            findings.note(f"disk, vanished {case.__name__}", "no error")
    return len(cases)


def run(seconds: float, seed: int, findings: Findings) -> dict[str, Any]:
    """Every call of every writer fails with every error, until ``seconds`` have passed."""
    warm_up()
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        disk = Disk(Path(os.path.realpath(name)))
        sizes = SIZES if seconds else SIZES[::5]
        others = full_disks(disk, sizes, findings) + vanishing(disk, findings)
        cases, wholes = [], {}
        for writer in WRITERS:
            count, wholes[writer] = disk.calls(writer)
            for number in range(count):
                cases += [
                    (writer, number, fault, lasting) for fault in ERRORS for lasting in (0, 1)
                ]
                cases.append((writer, number, faults.SHORT, 0))
        dice.shuffle(cases)
        tried, end = 0, time.monotonic() + seconds
        for writer, number, fault, lasting in cases:
            if time.monotonic() > end and tried >= LEAST:
                break
            wrong = disk.suffer(writer, number, fault, bool(lasting), wholes[writer])
            if wrong:
                findings.note(f"disk, {writer}", f"call {number}, {fault}, {lasting}: {wrong}")
            tried += 1
        return {"faults": tried + others, "possible faults": len(cases) + others}


if __name__ == "__main__":
    faults.with_faults()
    main(run)
