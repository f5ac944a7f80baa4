"""Files that survive a crash and cannot run code: safetensors with JSON metadata and a checksum.

A file is written beside its destination, synced, and renamed to it. So the destination always holds
either the whole old content or the whole new content.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapruner.errors import FileFormatError

FORMAT_VERSION = 1


def replace_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file near ``path``, sync it, and rename it to ``path``.

    The temporary file is alone in a temporary folder beside ``path``, because ``write`` may leave
    other files beside its file (safetensors does). After an error ``path`` has its old content and
    the folder is removed. A killed process can leave the folder; the next write of ``path`` removes
    it.

    Raises:
        OSError: the folder of ``path`` is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: expected a file, or nothing; found a device or a pipe")
    if not path.parent.exists():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {path.parent} is not a folder")
    with _workplace(path) as workplace:
        temporary = workplace / path.name
        temporary.touch()
        # The umask gives this mode. A writer that makes its own file may use a stricter one.
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        _sync_file(temporary)
        os.replace(temporary, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(destination: Path, what: str) -> Iterator[Path]:
    """A temporary folder to fill. At the end of the block it is renamed to ``destination``.

    Args:
        destination: a new or an empty folder.
        what: the content, as a message names it.

    Raises:
        FileExistsError: ``destination`` is a file, or a folder that is not empty.
        FileNotFoundError: the parent of ``destination`` does not exist.
    """
    _check_free(destination, what)
    with _workplace(destination) as workplace:
        temporary = workplace / "folder"
        temporary.mkdir()
        yield temporary
        for folder, _, files in os.walk(temporary):
            for file in files:
                _sync_file(Path(folder, file))
        # An old folder is empty here, so rename can replace it.
        os.rename(temporary, destination)
    _sync_folder(destination.parent)


@contextlib.contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, removed at the end. An error in the block names ``path``.

    The folder is locked while its writer lives, so the next writer of ``path`` can remove the
    folder of one that was killed. The name is short, however long that of ``path`` is.
    """
    remove_leftovers(path)
    workplace, descriptor = path, -1
    try:
        while descriptor < 0:
            workplace = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.tmp")
            workplace.mkdir()
            descriptor = _lock(workplace, alone=False)  # below 0 if another writer has removed it
        yield workplace
    except OSError as error:
        _name(error, path, workplace)
        raise
    finally:
        if workplace != path:
            shutil.rmtree(workplace, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def _lock(folder: Path, alone: bool) -> int:
    """A descriptor of ``folder`` that holds its lock, or −1.

    Args:
        folder: the folder. It may vanish at any moment.
        alone: whether a file system without locks gives −1. Otherwise it gives a descriptor.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if alone or isinstance(error, FileNotFoundError):
            return -1
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(descriptor), os.lstat(folder))
    except (BlockingIOError, FileNotFoundError):
        held = False
    except OSError:  # no locks here
        held = not alone
    if held:
        return descriptor
    os.close(descriptor)
    return -1


def _prefix(path: Path) -> str:
    name = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    return f".adapruner.{name}."


def _name(error: OSError, path: Path, workplace: Path) -> None:
    """Make the message of ``error`` name ``path``.

    It would name a temporary file, or no file at all where the disk is full.
    """
    inner = error.filename is None or any(
        os.fsdecode(name).startswith(str(workplace))
        for name in (error.filename, error.filename2)  # a rename and a link have two
        if isinstance(name, (str, bytes, os.PathLike))
    )
    if error.errno is not None and inner:
        error.filename = str(path)
        del error.filename2  # None would be shown as a second name


def _check_free(destination: Path, what: str) -> None:
    if destination.is_dir():
        if any(destination.iterdir()):
            raise FileExistsError(
                f"cannot write {what} to {destination}: expected a new or empty folder, "
                "and it is not empty"
            )
    elif destination.exists():
        raise FileExistsError(f"cannot write {what} to {destination}: it is a file")
    elif not destination.parent.exists():
        raise FileNotFoundError(
            f"cannot write {destination}: the folder {destination.parent} does not exist"
        )


def _sync_file(path: Path) -> None:
    if not path.is_symlink():
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    # The file is in place already, so a failure here is not an error. Some network file systems
    # cannot sync a folder, and a folder without read permission cannot be opened.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary folders of killed writers of ``path``."""
    path = Path(path)
    for leftover in path.parent.glob(f"{_prefix(path)}{'[0-9a-f]' * 8}.tmp"):
        descriptor = _lock(leftover, alone=True)
        if descriptor >= 0:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(descriptor)


def write_file(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    content: Mapping[str, Any],
) -> None:
    """Write a file of tensors and values, atomically.

    Args:
        path: the file. An old file is replaced.
        kind: the kind of file, "result" or "checkpoint".
        tensors: tensors by name.
        content: values that JSON can hold.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full. The old file
            stays.
        TypeError: ``content`` holds a value that JSON cannot hold.
    """
    # A clone, because safetensors refuses tensors that share memory, as tied weights do.
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(content, sort_keys=True)
    metadata = {
        "adapruner_kind": kind,
        "adapruner_format": str(FORMAT_VERSION),
        "content": text,
        "sha256": _digest(kind, flat, text),
    }

    def write(temporary: Path) -> None:
        try:
            save_file(flat, temporary, metadata=metadata)
        except SafetensorError as error:  # safetensors wraps errors of the system in it
            raise OSError(f"cannot write {path}: {error}") from error

    replace_atomically(path, write)


def read_file(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`write_file` and check its checksum.

    Returns:
        The tensors and the content.

    Raises:
        FileNotFoundError: the file does not exist.
        FileFormatError: the file is not a safetensors file, is cut off or altered, or is of another
            kind or version than expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError) as error:
        raise FileFormatError(
            f"{path} is not a whole safetensors file ({error}); expected an adapruner {kind}. "
            "Other formats, pickles for example, are never loaded"
        ) from error
    found, version = metadata.get("adapruner_kind"), metadata.get("adapruner_format")
    if found != kind:
        raise FileFormatError(
            f"{path} is of another kind; expected an adapruner {kind}, "
            f"found {'an adapruner ' + found if found else 'data of another program'}"
        )
    if version != str(FORMAT_VERSION):
        raise FileFormatError(
            f"{path} has another format version; this adapruner reads version {FORMAT_VERSION}, "
            f"found {version}"
        )
    text = metadata.get("content", "")
    if _digest(kind, tensors, text) != metadata.get("sha256"):
        raise FileFormatError(f"{path} was altered: its content does not match its SHA-256")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} has content that is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} must hold a JSON object; found {type(content).__name__}")
    return tensors, content


def pack_texts(texts: Sequence[str]) -> tuple[Tensor, int]:
    """File names as a compressed uint8 tensor, and their number of bytes before that."""
    raw = b"\0".join(map(os.fsencode, texts))  # no file name holds this byte
    return torch.frombuffer(bytearray(zlib.compress(raw)), dtype=torch.uint8), len(raw)


def unpack_texts(packed: Tensor, num_bytes: int) -> list[str]:
    """The file names of :func:`pack_texts`.

    Raises:
        FileFormatError: they do not have that number of bytes.
    """
    # A limit, because a small file can unpack to any size.
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed.numpy().tobytes(), num_bytes + 1)
    except zlib.error as error:
        raise FileFormatError(f"file names cannot be unpacked: {error}") from error
    if len(raw) != num_bytes or not unpacker.eof:
        raise FileFormatError(f"file names must have {num_bytes} bytes; found other names")
    return [os.fsdecode(name) for name in raw.split(b"\0")]


def _digest(kind: str, tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(f"{kind}\n{text}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
