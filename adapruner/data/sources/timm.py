"""timm's ``ImageDataset``, recognised without importing timm."""

from __future__ import annotations

from typing import Any

from adapruner.data.sources.base import (
    Source,
    Transform,
    integer_targets,
    new_digest,
    update_with_array,
)
from adapruner.data.sources.map_style import checked_length, relative_paths
from adapruner.vision.decoding import decode_image


class TimmSource(Source):
    """The images of a ``timm.data.ImageDataset``, with the dataset's own transforms.

    The dataset itself gives the next image in place of an unreadable one, and the ids would be
    wrong. This source raises. The fingerprint covers the relative paths and the classes.

    Args:
        dataset: the dataset.
        transform: applied after the dataset's own transform.
        fingerprint: a string that identifies the samples.

    Raises:
        ValueError: the dataset is empty.
    """

    kind = "timm"
    paths: list[str]

    def __init__(
        self, dataset: Any, transform: Transform | None = None, fingerprint: str | None = None
    ) -> None:
        super().__init__(transform, fingerprint)
        self._length = checked_length(dataset)
        self.dataset = dataset
        self.paths = relative_paths(dataset.filenames(absolute=True))
        self._stored_targets = _stored_targets(dataset.reader, self._length)
        if dataset.target_transform is None:
            self.targets = self._stored_targets
        self.class_names = _class_names(dataset.reader)

    def __len__(self) -> int:
        return self._length

    def _read(self, index: int) -> tuple[Any, Any]:
        dataset = self.dataset
        handle, target, *_ = dataset.reader[index]
        with handle:
            encoded = handle.read()
        image = decode_image(encoded, self.paths[index], dataset.input_img_mode)
        if dataset.transform is not None:
            image = dataset.transform(image)
        if target is None:
            target = -1  # as timm marks a sample without a class
        elif dataset.target_transform is not None:
            target = dataset.target_transform(target)
        return image, target

    def _identify(self) -> str:
        digest = new_digest(self.kind)
        for path in self.paths:
            digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        if self._stored_targets is not None:
            update_with_array(digest, self._stored_targets)
        return digest.hexdigest()


def is_timm(data: Any) -> bool:
    """Whether ``data`` is a ``timm.data.ImageDataset`` or of a derived class."""
    return any(
        base.__name__ == "ImageDataset" and base.__module__.split(".")[0] == "timm"
        for base in type(data).__mro__
    )


def reads_as_timm(data: Any) -> bool:
    """Whether ``data`` is timm's dataset, and its items are timm's (image, target) too."""
    if not is_timm(data):
        return False
    own = type(data).__getitem__.__module__.split(".")[0] != "timm"
    return not (
        own or getattr(data, "additional_features", None) or getattr(data, "load_bytes", False)
    )


def _stored_targets(reader: Any, length: int) -> Any:
    """The classes that a reader lists, int64 ``[N]``, or None."""
    targets = getattr(reader, "targets", None)
    if targets is None:
        targets = [target for _, target in getattr(reader, "samples", [])]
    return integer_targets(targets, length)


def _class_names(reader: Any) -> list[str] | None:
    index_of = getattr(reader, "class_to_idx", None) or {}
    names = {index: name for name, index in index_of.items()}
    if sorted(names) != list(range(len(names))) or not names:
        return None
    return [str(names[index]) for index in range(len(names))]
