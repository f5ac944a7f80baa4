"""Mutated files and arguments for every parser: a clear error or the right value, never more.

Inputs are tried in forked children with a limit on memory. A child writes the seed of an input
before it tries it, so that a crash or a hang names its input. ``--seed`` with ``--parser`` and
``--input`` tries one input again.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from adapruner import Pruner, PruneResult, as_source
from adapruner._util.files import FORMAT_VERSION, _digest, read_file
from adapruner.cli.main import main as command
from adapruner.data.sources.arrays import map_array
from adapruner.data.sources.shard_index import read_index, scan
from adapruner.data.sources.tar_members import BLOCK
from adapruner.report import content as report_content
from adapruner.report.gallery import Found, galleries
from adapruner.training import CHECKPOINT_NAME
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint
from adapruner.training.trainer import Trainer
from torture import mutate
from torture.command import Findings, main
from torture.runs import KINDS, Network, live, make_data

MEMORY = 3 << 30  # bytes of address space that a child may have beyond the parent's
TURN = 4000  # inputs of a turn, for all parsers together
LONGEST = 20  # seconds of CPU time for one input; ten times as many by the clock
Dice = random.Random

# What a parser may raise. Its message must say something.
CLEAR = (OSError, ValueError)


class Wrong(Exception):
    """A parser has taken an input and made a wrong value of it."""


class Files:
    """A folder with whole files of every kind, to mutate, and a scratch folder.

    Attributes:
        data: the folder of the data.
        scratch: the folder in which an input may write.
    """

    def __init__(self, folder: Path) -> None:
        make_data(folder)
        self.data = folder
        self.life = folder / "life"
        self.life.mkdir()
        kind = KINDS["images"]
        live(kind._replace(exports=()), folder, self.life, report=False)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        # A result of `at` has all that a result of a run has, and the ratio of its run.
        result = folder / "result"
        PruneResult.load(self.life / "result").at(0.4).save(result)
        self.result = read_file(result, "result")
        path = self.life / "checkpoint" / CHECKPOINT_NAME
        self.checkpoint = read_file(path, "checkpoint")
        self.raw = {"result": result.read_bytes(), "checkpoint": path.read_bytes()}
        self.shard = folder / "shards" / "0.tar"
        self.tar = self.shard.read_bytes()
        self.index = self.shard.with_suffix(".idx").read_bytes()
        self.npy = (folder / "images.npy").read_bytes()

    def write(self, name: str, content: bytes) -> Path:
        path = self.scratch / name
        path.write_bytes(content)
        return path


# --- files of results and checkpoints


def signed(kind: str, tensors: dict[str, torch.Tensor], text: str) -> bytes:
    """A file whose checksum is right, whatever its content is, as an attacker would make it."""
    metadata = {
        "adapruner_kind": kind,
        "adapruner_format": str(FORMAT_VERSION),
        "content": text,
        "sha256": _digest(kind, tensors, text),
    }
    return save(tensors, metadata=metadata)


def odd_tensor(dice: Dice, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with another dtype, another shape or other values."""
    kind = dice.randrange(5)
    if kind == 0:
        return tensor.to(dice.choice((torch.uint8, torch.int64, torch.float32, torch.bfloat16)))
    if kind == 1:
        return tensor.reshape(-1)[: dice.randrange(3)]
    if kind == 2:
        return tensor.reshape(1, *tensor.shape)
    if kind == 3:
        return torch.zeros(dice.choice(((), (0,), (0, 2**20), (3, 0, 5))), dtype=tensor.dtype)
    changed = tensor.clone().reshape(-1)
    if changed.numel():
        for _ in range(dice.randrange(1, 4)):
            place = dice.randrange(len(changed))
            if changed.is_floating_point():
                wanted = torch.tensor(dice.choice(mutate.REALS), dtype=torch.float64)
                changed[place] = wanted.to(changed.dtype)
            elif changed.dtype != torch.bool:
                info = torch.iinfo(changed.dtype)
                changed[place] = max(info.min, min(info.max, mutate.number(dice)))
    return changed.reshape(tensor.shape)


def odd_file(dice: Dice, files: Files, kind: str) -> bytes:
    """A file of tensors with damage to its bytes, its header, its tensors or its content."""
    tensors, content = files.result if kind == "result" else files.checkpoint
    how = dice.random()
    if how < 0.2:
        return mutate.raw_bytes(dice, files.raw[kind])
    if how < 0.35:
        raw = files.raw[kind]
        size = struct.unpack("<Q", raw[:8])[0]
        header = mutate.json_tree(dice, json.loads(raw[8 : 8 + size]))
        text = mutate.json_text(dice, header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + size :]
    tensors = dict(tensors)
    for name in dice.sample(sorted(tensors), dice.choice((0, 1, 1, 2))):
        tensors[name] = odd_tensor(dice, tensors[name])
    if dice.random() < 0.05:
        del tensors[dice.choice(sorted(tensors))]
    if dice.random() < 0.3:
        return signed(kind, tensors, json.dumps(content))
    return signed(kind, tensors, mutate.json_text(dice, mutate.json_tree(dice, content)))


def try_result(dice: Dice, files: Files) -> None:
    result = PruneResult.load(files.write("result", odd_file(dice, files, "result")))
    kept = result.kept
    if int(kept.sum()) != len(result.indices):
        raise Wrong("the kept set has another size than indices")
    repr(result)
    for part in (report_content.headline, report_content.classes, report_content.settings):
        part(result)
    report_content.history(result)
    nothing = Found(None, "none")
    report_content.unreadable(result, nothing)
    report_content.not_finite(result, nothing)
    report_content.reasons(result)
    for shown in galleries(result, nothing):
        report_content.listing(shown)
    result.save(files.scratch / "again")
    if len(PruneResult.load(files.scratch / "again").indices) != len(result.indices):
        raise Wrong("a saved result differs")


def try_report(dice: Dice, files: Files) -> None:
    result = PruneResult.load(files.write("result", odd_file(dice, files, "result")))
    result.report(files.scratch / "report.html", source=None)


def try_checkpoint(dice: Dice, files: Files) -> None:
    files.write(CHECKPOINT_NAME, odd_file(dice, files, "checkpoint"))
    state = load_checkpoint(files.scratch)
    if not isinstance(state, dict):
        raise Wrong(f"the state is a {type(state).__name__}")
    save_checkpoint(files.scratch / "state", state)


def try_resume(dice: Dice, files: Files) -> None:
    """Load a damaged state into a pruner, and go on with the run."""
    files.write(CHECKPOINT_NAME, odd_file(dice, files, "checkpoint"))
    stored = load_checkpoint(files.life / "checkpoint")
    assert stored is not None
    source, run = as_source(files.data / "images"), stored["pruner"]["settings"]
    pruner = Pruner(len(source), run["keep_ratio"], run["epochs"], seed=run["seed"])
    pruner.note_samples(source)
    trainer = Trainer(Network(), pruner, None, None, None, "fp32", False, False, "skip")
    trainer.resume(files.scratch, stored["settings"])
    while not pruner.finished:
        for ids in pruner.batches(16):
            pruner.weigh(torch.rand(len(ids)), ids)
        pruner.step(1.0)
    count = len(pruner.result().indices)
    if count != pruner.target_count:
        raise Wrong(f"the resumed run keeps {count} samples")


# --- shards and arrays


def odd_index(dice: Dice, files: Files) -> bytes:
    if dice.random() < 0.3:
        return mutate.raw_bytes(dice, files.index)
    lines = files.index.split(b"\n")
    for _ in range(dice.randrange(1, 4)):
        place = dice.randrange(len(lines))
        fields = lines[place].split(b" ")
        fields[dice.randrange(len(fields))] = (
            str(mutate.number(dice)).encode()
            if dice.random() < 0.7
            else mutate.text(dice).encode(errors="surrogatepass")
        )
        lines[place] = b" ".join(fields)
        if dice.random() < 0.1:
            lines.insert(place, lines[place])
    return b"\n".join(lines)


def try_index(dice: Dice, files: Files) -> None:
    shard = files.write("0.tar", files.tar)
    path = files.write("0.idx", odd_index(dice, files))
    if dice.random() < 0.5:  # an index that is older than its shard is compared with all headers
        os.utime(path, ns=(0, 0))
    index = read_index(path, shard)
    size = len(files.tar)
    source = as_source(shard)
    if len(source) != len(index.lines):
        raise Wrong("the source has another number of samples than its index")
    for sample in {0, len(source) - 1, dice.randrange(len(source))}:
        try:
            location = source.location(sample)
            source[sample]
        except OSError as error:  # an unreadable sample
            if not str(error):
                raise
        else:
            if location.offset + (location.size or 0) > size:
                raise Wrong("a sample ends after its shard")


def odd_tar(dice: Dice, files: Files) -> bytes:
    """A tar with damaged headers, whose checksums are made right again."""
    made = bytearray(files.tar)
    if dice.random() < 0.2:
        return mutate.raw_bytes(dice, bytes(made))
    headers = [at for at in range(0, len(made), BLOCK) if made[at + 257 : at + 262] == b"ustar"]
    for _ in range(dice.randrange(1, 4)):
        at = dice.choice(headers)
        begin, end = dice.choice(
            (
                (0, 100),
                (100, 108),
                (124, 136),
                (136, 148),
                (156, 157),
                (157, 257),
                (257, 265),
                (345, 500),
            )
        )
        how = dice.randrange(4)
        if how == 0:
            text = mutate.text(dice).encode(errors="surrogatepass")
        elif how == 1:
            text = b"%0*o" % (end - begin - 1, abs(mutate.number(dice)))
        elif how == 2:
            text = dice.randbytes(end - begin)
        else:
            text = dice.choice((b"g", b"x", b"L", b"K", b"S", b"2", b"1", b"3", b"5", b"6", b"\0"))
        text = text[: end - begin]
        made[at + begin : at + begin + len(text)] = text
        if dice.random() < 0.9:
            made[at + 148 : at + 156] = b" " * 8
            made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + BLOCK])
    if dice.random() < 0.2:
        del made[dice.randrange(len(made)) :]
    return bytes(made)


def try_tar(dice: Dice, files: Files) -> None:
    path = files.write("1.tar", odd_tar(dice, files))
    index, size = scan(path), path.stat().st_size
    for sample in range(len(index.lines)):
        for part in index.components(sample):
            if part.offset + part.size > size:
                raise Wrong("a component ends after its shard")
    source = as_source(path)
    for sample in {0, len(source) - 1, dice.randrange(len(source))}:
        try:
            source[sample]
        except OSError as error:
            if not str(error):
                raise


def odd_npy(dice: Dice, files: Files) -> bytes:
    if dice.random() < 0.3:
        return mutate.raw_bytes(dice, files.npy[:400])
    size = struct.unpack("<H", files.npy[8:10])[0]
    header = files.npy[10 : 10 + size].decode()
    descr = dice.choice(
        ("|u1", "<f4", ">i8", "|O", "<U7", "|V3", "|S0", "<m8[s]", "|b1", "<f16", "x")
    )
    shape = tuple(mutate.number(dice) for _ in range(dice.randrange(5)))
    how = dice.randrange(4)
    if how == 0:
        header = repr({"descr": descr, "fortran_order": dice.random() < 0.5, "shape": shape})
    elif how == 1:
        header = repr(
            {"descr": mutate.value(dice), "fortran_order": mutate.value(dice), "shape": shape}
        )
    elif how == 2:
        header = mutate.raw_bytes(dice, header.encode()).decode("latin-1")
    else:
        header = dice.choice(("(" * 500, "[" * 90, "{'a':" * 30, "9" * 9999, "f(x)", "{}", ""))
    text = header.encode("latin-1", errors="replace")
    text = text + b" " * (-(len(text) + 11) % 64) + b"\n"
    version = dice.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) % 2**16)
    return b"\x93NUMPY" + version + length + text + files.npy[10 + size :]


def try_npy(dice: Dice, files: Files) -> None:
    path = files.write("x.npy", odd_npy(dice, files))
    try:
        array = map_array(path)
        if array.nbytes > path.stat().st_size:
            raise Wrong("an array is larger than its file")
        targets = (
            np.zeros(len(array), np.int64) if array.ndim and len(array) < 10**6 else np.zeros(1)
        )
        source = as_source((path, targets))
    except TypeError as error:  # as_source says so of arrays that hold no numbers
        if not str(error):
            raise
        return
    source.fingerprint()
    source[0]


# --- exports and the command


def try_export(dice: Dice, files: Files) -> None:
    """Export a hostile result. Nothing may be written outside the destination."""
    tensors, content = files.result
    tensors, content = dict(tensors), json.loads(json.dumps(content))
    content["dataset"]["kind"] = dice.choice(("shards", "image folder", "x"))
    places = (str(files.data / "shards"), str(files.data / "images"), mutate.text(dice), None)
    content["dataset"]["root"] = dice.choice(places)
    if dice.random() < 0.5:
        content["dataset"] = mutate.json_tree(dice, content["dataset"])
    if dice.random() < 0.5:
        content["fingerprint"] = as_source(files.data / "shards").fingerprint()
    path = files.write("result", signed("result", tensors, mutate.json_text(dice, content)))
    out = files.scratch / f"out-{dice.randrange(10**9)}"
    to = dice.choice(("paths", "npy", "parquet", "links", "wds-index", "shards"))
    before = sorted(files.scratch.iterdir())
    try:
        PruneResult.load(path).export(out, to=to)
    finally:
        new = set(files.scratch.iterdir()) - {*before, out}
        if new:
            raise Wrong(f"an export to {to} wrote {sorted(new)}")
        for file in sorted(out.rglob("*"), reverse=True) if out.is_dir() else [out]:
            if file.is_symlink() or file.is_file():
                file.unlink()
            elif file.is_dir():
                file.rmdir()
        if out.is_dir():
            out.rmdir()


_WORDS = (
    *("prune", "report", "export", "index", "info", "--out", "--to", "--data", "--keep-ratio"),
    *(
        "--epochs",
        "--model",
        "--seed",
        "--batch-size",
        "--lr",
        "--checkpoint",
        "--report",
        "--help",
    ),
    *(
        "--version",
        "--columns",
        "--validation",
        "--weights",
        "--max-pixels",
        "--workers",
        "--method",
    ),
    *(
        "--block-size",
        "--image-size",
        "--precision",
        "--device",
        "--loader",
        "--threads",
        "-x",
        "--",
    ),
)


def try_command(dice: Dice, files: Files) -> None:
    """Arguments of the command. Nothing is trained: the data are missing or of another kind."""
    existing = (files.scratch / "r", files.scratch, files.shard, "/dev/null", "/nowhere/x.tar")
    words = [dice.choice(("report", "export", "index", "prune"))]
    for _ in range(dice.randrange(8)):
        kind = dice.randrange(4)
        word = (
            dice.choice(_WORDS)
            if kind < 2
            else str(dice.choice(existing))
            if kind == 2
            else mutate.text(dice)
        )
        words.append(word)
    if words[0] == "prune":
        words.insert(1, "/nowhere")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = command([word.replace("\0", "") for word in words])
        except SystemExit as end:
            code = int(str(end.code))
    if code not in (0, 1, 2):
        raise Wrong(f"the exit code is {code}")
    if code and not err.getvalue().strip():
        raise Wrong(f"exit code {code} without a message")
    if "\x1b" in err.getvalue() + out.getvalue():
        raise Wrong("a terminal escape was printed")


# Each parser with its share of the inputs.
PARSERS: dict[str, tuple[Callable[[Dice, Files], None], float]] = {
    "result": (try_result, 0.22),
    "report": (try_report, 0.0005),
    "checkpoint": (try_checkpoint, 0.1),
    "resume": (try_resume, 0.03),
    "index": (try_index, 0.18),
    "tar": (try_tar, 0.16),
    "npy": (try_npy, 0.28),
    "export": (try_export, 0.003),
    "command": (try_command, 0.0265),
}


def attempt(parser: str, number: int, files: Files) -> tuple[bool, str]:
    """Try one input. Returns whether it was taken, and what is wrong, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PARSERS[parser][0](Dice(f"{parser} {number}"), files)
    except Exception as error:
        if isinstance(error, CLEAR) and str(error).strip():
            return False, ""
        return False, f"{type(error).__name__}: {str(error)[:300]}\n{_trace()}"
    return True, ""


def _trace() -> str:
    return "".join(traceback.format_exc(limit=-6)[-1500:])


class Child:
    """Forked children that try the inputs of a parser from ``first`` on, a new one after a crash.

    Attributes:
        done: number of inputs that were tried.
        taken: number of them that were taken, not refused.
    """

    def __init__(
        self, parser: str, first: int, count: int, files: Files, findings: Findings
    ) -> None:
        self._findings, self._parser, self._last = findings, parser, first + count
        self._page = mmap.mmap(-1, 4096)  # shared: the input that is tried, and how many were taken
        self._told = files.data / "told"
        self._told.write_text("")
        self.done = 0
        number = first
        while number < self._last:
            self._page[:8] = struct.pack("<q", number)
            process = os.fork()
            if process == 0:
                self._work(number, files)
            code = self._watch(process)
            at = struct.unpack("<q", self._page[:8])[0]
            self.done += at - number + (code != 0)
            if code:
                hangs = code in (-signal.SIGPROF, -signal.SIGALRM)
                what = "hangs" if hangs else f"ends the process with {code}"
                findings.note(f"{parser}: {what}", f"--parser {parser} --input {at}")
            number = at + 1 if code else self._last
        self.taken = struct.unpack("<q", self._page[8:16])[0]
        for line in self._told.read_text().splitlines():
            at, text = json.loads(line)
            place = _place(text)
            findings.note(f"{parser}: {place}", f"--parser {parser} --input {at}: {text}")

    def _work(self, number: int, files: Files) -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        code = 1
        try:
            with open(self._told, "a") as told:
                taken = struct.unpack("<q", self._page[8:16])[0]
                for at in range(number, self._last):
                    self._page[8:16] = struct.pack("<q", taken)
                    self._page[:8] = struct.pack("<q", at)
                    signal.setitimer(signal.ITIMER_PROF, LONGEST)
                    signal.alarm(10 * LONGEST)
                    was_taken, wrong = attempt(self._parser, at, files)
                    taken += was_taken
                    if wrong:
                        told.write(json.dumps([at, wrong]) + "\n")
                        told.flush()
            self._page[:16] = struct.pack("<qq", self._last, taken)
            code = 0
        finally:
            os._exit(code)

    def _watch(self, process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _place(text: str) -> str:
    """The error and the last line of the package in a traceback."""
    lines = [line.strip() for line in text.splitlines() if "/adapruner/" in line]
    where = lines[-1].split("/adapruner/")[-1] if lines else ""
    return f"{text.split(':')[0]} at {where}"


def run(seconds: float, seed: int, findings: Findings) -> dict[str, Any]:
    """Try inputs of every parser in turns for ``seconds``. The inputs depend on ``seed``."""
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        files = Files(Path(os.path.realpath(name)))
        tried, taken = dict.fromkeys(PARSERS, 0), dict.fromkeys(PARSERS, 0)
        end, turn = time.monotonic() + seconds, 0
        while turn == 0 or time.monotonic() < end:
            for parser, (_, share) in PARSERS.items():
                count = max(1, round(TURN * share))
                first = (seed << 32) + tried[parser]
                child = Child(parser, first, count, files, findings)
                tried[parser] += child.done
                taken[parser] += child.taken
                if turn and time.monotonic() > end:
                    break
            turn += 1
        return {
            "inputs": sum(tried.values()),
            "inputs by parser": tried,
            "inputs that were taken": taken,
        }


def again() -> None:
    """Try one input: --parser NAME --input NUMBER."""
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        files = Files(Path(os.path.realpath(name)))
        parser, number = sys.argv[2], int(sys.argv[4])
        PARSERS[parser][0](Dice(f"{parser} {number}"), files)
        print("no error")


if __name__ == "__main__":
    if "--parser" in sys.argv:
        again()
    else:
        main(run)
