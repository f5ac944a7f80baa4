"""Image folders ROOT/CLASS/…/IMAGE, and torchvision's ``ImageFolder``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from adapruner.data.sources.base import (
    IntArray,
    Location,
    Source,
    Transform,
    integer_targets,
    new_digest,
)
from adapruner.data.sources.map_style import DatasetSource
from adapruner.data.sources.paths import Paths
from adapruner.vision.decoding import (
    IMAGE_EXTENSIONS,
    MAX_PIXELS,
    check_max_pixels,
    check_mode,
    read_image,
)


class ImageFolderSource(Source):
    """The images of ``root``/CLASS/…/IMAGE, in the order of torchvision's ``ImageFolder``.

    The folders of ``root``, sorted, are the classes. The images of a class lie at any depth below
    its folder, and are sorted. Symbolic links are followed. Names that start with "." are ignored.
    Without a transform an input is a PIL image. The target is the number of the class.

    The fingerprint covers the relative paths and the sizes of the files, and the class folders
    without an image. It does not cover ``root``.

    Args:
        root: the folder.
        transform: applied to the PIL image.
        fingerprint: a string that identifies the samples. The default hashes paths and sizes.
        mode: the PIL mode that images are converted to. None leaves them as they are.
        max_pixels: an image with more pixels, width times height, is unreadable.

    Raises:
        FileNotFoundError, NotADirectoryError: ``root`` is missing, or is a file.
        ValueError: there is no class folder or no image, or ``mode`` is unknown.
        ImportError: Pillow is not installed.

    Warns:
        UserWarning: some classes have no image.
    """

    kind = "image folder"
    root: str
    paths: Paths
    sizes: IntArray
    targets: IntArray

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform | None = None,
        fingerprint: str | None = None,
        mode: str | None = "RGB",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(transform, fingerprint)
        check_mode(mode)
        check_max_pixels(max_pixels)
        self.root = os.path.abspath(os.path.expanduser(os.fspath(root)))
        self.mode, self.max_pixels = mode, max_pixels
        self.has_encoded = True
        self.class_names = _class_folders(self.root)
        scans = [_scan(self.root, name) for name in self.class_names]
        counts = [len(scan.paths) for scan in scans]
        _check_counts(self.root, self.class_names, counts, scans)
        self.paths = Paths(chain.from_iterable(scan.paths for scan in scans))
        self.sizes = np.fromiter(
            chain.from_iterable(scan.sizes for scan in scans), np.int64, len(self.paths)
        )
        self.targets = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        # Folders without an image count as classes, so they decide on the numbers of the others.
        self._empty = [name for name, n in zip(self.class_names, counts, strict=True) if not n]
        self.doubts = _doubts(self.root, self.class_names)
        self.deterministic = transform is None

    def __len__(self) -> int:
        return len(self.paths)

    def location(self, index: int) -> Location:
        """The whole file of sample ``index``."""
        return Location(os.path.join(self.root, self.paths[self._checked(index)]))

    def _read(self, index: int) -> tuple[Any, int]:
        path = os.path.join(self.root, self.paths[index])
        return read_image(path, self.mode, self.max_pixels), int(self.targets[index])

    def _identify(self) -> str:
        return _identify_files(self.paths, self.sizes, self._empty)


class ImageFolderDatasetSource(DatasetSource):
    """A torchvision ``ImageFolder``: its own reader, and the fingerprint of the image folder."""

    kind = "image folder"
    root: str
    paths: Paths
    sizes: IntArray

    def __init__(
        self,
        dataset: Any,
        transform: Transform | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(dataset, transform, fingerprint)
        if self.targets is not None:  # the items are made from `samples`, not from `targets`
            self.targets = integer_targets([target for _, target in dataset.samples], len(self))
        prefix = _prefix(dataset)
        self.root = os.path.abspath(prefix)
        self.doubts = _doubts(self.root, self.class_names or [])
        self.paths = Paths(path[len(prefix) :] for path, _ in dataset.samples)
        self.sizes = np.fromiter(
            (_size(path) for path, _ in dataset.samples), np.int64, len(self.paths)
        )

    def _identify(self) -> str:
        names = self.class_names or [] if self.targets is not None else []
        present = set() if self.targets is None else set(self.targets.tolist())
        empty = [name for number, name in enumerate(names) if number not in present]
        return _identify_files(self.paths, self.sizes, empty, self._relabelled())

    def _relabelled(self) -> bytes:
        """The classes of the samples, unless each folder is one, in the order of their names."""
        if self.targets is None:
            return b""
        folders = (path.partition("/")[0] for path in self.paths)
        pairs = set(zip(folders, self.targets.tolist(), strict=True))
        numbers = [number for _, number in sorted(pairs)]
        one_each = len(dict(pairs)) == len(pairs)
        in_order = numbers == sorted(set(numbers))
        return b"" if one_each and in_order else self.targets.astype("<i8").tobytes()


def is_image_folder_dataset(dataset: Any) -> bool:
    """Whether ``dataset`` lists its files as torchvision's ``ImageFolder`` does.

    It must have ``samples``, one (path, class) for each item, all below the folder ``root``.
    """
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    if not isinstance(samples, list) or not isinstance(root, (str, os.PathLike)):
        return False
    prefix = _prefix(dataset)
    return len(samples) == len(dataset) and all(
        isinstance(sample, tuple)
        and len(sample) == 2
        and isinstance(sample[0], str)
        and sample[0].startswith(prefix)
        for sample in samples
    )


def find_image(root: str) -> str | None:
    """The path of an image in a class folder of ``root``, relative to it, or None."""
    with os.scandir(root) as entries:
        folders = [e.name for e in entries if not e.name.startswith(".") and _is_folder(e)]
    for name in folders:
        for folder, files in _walk(root, name, {_identity(root)}):
            for entry in files:
                if entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    return f"{folder}/{entry.name}"
    return None


@dataclass
class _Scan:
    """The files below one class folder."""

    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _class_folders(root: str) -> list[str]:
    if not os.path.lexists(root):
        raise FileNotFoundError(f"no such folder: {root}; expected {_EXPECTED}")
    if not os.path.isdir(root):
        raise NotADirectoryError(f"{root} is not a folder; expected {_EXPECTED}")
    with os.scandir(root) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        folders = sorted(entry.name for entry in shown if _is_folder(entry))
    if not folders:
        images = sum(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in shown)
        raise ValueError(
            f"{root} has no class folder: expected {_EXPECTED}; "
            f"found {len(shown)} files, {images} of them images"
        )
    return folders


_EXPECTED = f"ROOT/CLASS/IMAGE with images ending in {', '.join(IMAGE_EXTENSIONS)}"


def _scan(root: str, name: str) -> _Scan:
    scan = _Scan()
    # By folder, then by file name. This is torchvision's order, so both have the same indices.
    for folder, files in sorted(_walk(root, name, {_identity(root)}), key=lambda found: found[0]):
        for entry in sorted(files, key=lambda file: file.name):
            if not entry.name.lower().endswith(IMAGE_EXTENSIONS):
                scan.others.append(f"{folder}/{entry.name}")
                continue
            scan.paths.append(f"{folder}/{entry.name}")
            scan.sizes.append(_size(entry.path))
    return scan


def _walk(
    root: str, folder: str, above: Set[tuple[int, int]]
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield (path relative to ``root``, files) of ``folder`` and all folders below it."""
    path = os.path.join(root, folder)
    identity = _identity(path)
    if identity in above:  # a link to one of its own parents
        return
    with os.scandir(path) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    yield folder, [entry for entry in shown if _is_listed(entry)]
    for entry in shown:
        if _is_folder(entry):
            yield from _walk(root, f"{folder}/{entry.name}", above | {identity})


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_listed(entry: os.DirEntry[str]) -> bool:
    """Whether ``entry`` is a file or a broken link. A broken link is an unreadable sample."""
    return entry.is_file(follow_symlinks=False) or (
        entry.is_symlink() and (os.path.isfile(entry.path) or not os.path.exists(entry.path))
    )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a broken link, or a file that was removed
        return 0


def _check_counts(root: str, names: list[str], counts: list[int], scans: list[_Scan]) -> None:
    if not any(counts):
        others = [path for scan in scans for path in scan.others]
        example = f" (such as {others[0]})" if others else ""
        raise ValueError(
            f"{root} has no image: expected {_EXPECTED}; found {len(names)} class folders "
            f"({_listed(names)}) with {len(others)} other files{example}"
        )
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        warnings.warn(
            f"{root}: {len(empty)} of {len(names)} class folders have no image: {_listed(empty)}",
            UserWarning,
            stacklevel=4,  # the caller of as_source
        )


def _doubts(root: str, classes: list[str]) -> dict[str, str]:
    """A warning if the folders of ``root`` look like the parts of a dataset, not like classes."""
    parts = [name for name in classes if name.lower() in _PARTS]
    if len(parts) < 2:
        return {}
    return {
        "folders": f"{root}: the folders {_listed(parts)} are taken for classes, and look like "
        "parts of a dataset; pass one of them as the image folder"
    }


_PARTS = ("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _prefix(dataset: Any) -> str:
    """The common start of all paths of a torchvision ``ImageFolder``: its folder and a "/"."""
    # In torchvision's ImageNet, root is the folder above the images.
    root = getattr(dataset, "split_folder", None) or dataset.root
    return os.path.join(os.path.expanduser(os.fspath(root)), "")


def _identify_files(
    paths: Paths, sizes: IntArray, empty: Sequence[str], relabelled: bytes = b""
) -> str:
    digest = new_digest("image folder")
    digest.update(relabelled)
    for name in empty:
        digest.update(os.fsencode(name) + b"/\0")
    for path, size in zip(paths, sizes.tolist(), strict=True):
        digest.update(os.fsencode(path) + f"\0{size}\n".encode())
    return digest.hexdigest()
