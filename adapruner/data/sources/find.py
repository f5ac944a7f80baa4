"""Make a :class:`Source` from any form of a dataset."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset, TensorDataset

from adapruner.data.sources.arrays import ArraySource, map_array
from adapruner.data.sources.base import Source, Transform, stated_fingerprint
from adapruner.data.sources.hugging_face import (
    TARGET_COLUMNS,
    HuggingFaceSource,
    has_known_columns,
    is_hugging_face,
)
from adapruner.data.sources.image_folder import (
    ImageFolderDatasetSource,
    ImageFolderSource,
    is_image_folder_dataset,
)
from adapruner.data.sources.items import Target
from adapruner.data.sources.map_style import (
    ConcatSource,
    DatasetSource,
    SubsetSource,
    checked_length,
)
from adapruner.data.sources.remote import RemoteOptions, object_store
from adapruner.data.sources.shard_paths import absolute, find_shards, is_shards
from adapruner.data.sources.shards import ShardSource
from adapruner.data.sources.timm import TimmSource, is_timm, reads_as_timm
from adapruner.vision.decoding import MAX_PIXELS

__all__ = [
    "ArraySource",
    "ConcatSource",
    "DatasetSource",
    "HuggingFaceSource",
    "ImageFolderDatasetSource",
    "ImageFolderSource",
    "ShardSource",
    "Source",
    "SubsetSource",
    "TimmSource",
    "as_source",
]


def as_source(
    data: Any,
    *,
    transform: Transform | None = None,
    fingerprint: str | None = None,
    columns: tuple[str | Sequence[str], str] | None = None,
    target: Target | None = None,
    mode: str | None = "RGB",
    max_pixels: int = MAX_PIXELS,
    index_folder: str | os.PathLike[str] | None = None,
    remote: RemoteOptions | None = None,
) -> Source:
    """A :class:`Source` of the samples in ``data``.

    ``data`` is one of:

    - the path of an image folder, ROOT/CLASS/…/IMAGE;
    - WebDataset shards: the path of a tar file or of a folder of tar files, a pattern such as
      ``train-{000..099}.tar`` or ``train-*.tar``, or a list of paths and patterns. They may lie
      in an object store: ``s3://…``, ``gs://…``, ``https://…``;
    - a tuple ``(inputs, targets)`` of tensors, of NumPy arrays, or of paths of .npy files. The
      targets can also be a sequence or a pandas Series, which is read in order of position;
    - a ``TensorDataset`` of two tensors;
    - one split of a Hugging Face dataset;
    - a timm ``ImageDataset``;
    - a map-style dataset. Its items are pairs ``(input, target)``, or have their target at
      ``target``, or are inputs as a whole;
    - a ``Subset`` or a ``ConcatDataset`` of datasets named above;
    - a Source. It is returned unchanged, or copied to take ``transform`` or ``fingerprint``.

    Args:
        data: the samples.
        transform: applied to each input when it is read.
        fingerprint: a string that identifies the samples, such as a name and version. It is
            hashed, unless it is a fingerprint already. By default ``data`` is inspected.
        columns: for a Hugging Face dataset, the input column and the target column. Several input
            columns, as a list, make a dict. For shards, the extensions of the image and the class;
            the class "json:KEY" is the value of a key in the component "json". None means a guess.
        target: for a map-style dataset, where the target is in an item: the key of a mapping, the
            field of a namedtuple, or the place in a tuple. The rest of the item is the input. For a
            Hugging Face dataset, the target column; all other columns are inputs.
        mode: the PIL mode to which images of folders, shards and Hugging Face datasets are
            converted. None leaves images as they are.
        max_pixels: an image of a folder or shard with more pixels, width times height, is
            unreadable. Pillow's own limit, about 180 million, holds too.
        index_folder: the folder with the indexes of shards. None means beside the shards.
        remote: how shards in an object store are read.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder or file is missing, or of another kind.
        TypeError: ``data`` has none of these forms, or has no length.
        ValueError: ``data`` is empty, or its parts do not fit. The message says why.
        UnreachableError: an object store did not answer.

    Example:
        >>> import torch
        >>> source = as_source((torch.rand(8, 3), torch.arange(8) % 2))
        >>> len(source), source.targets.tolist()
        (8, [0, 1, 0, 1, 0, 1, 0, 1])
    """
    shards = is_shards(data)
    if columns is not None and not _takes_columns(data):
        raise ValueError(
            f"columns are for shards and Hugging Face datasets; found {_described(data)}"
        )
    if target is not None and (columns is not None or not _takes_target(data)):
        raise ValueError(
            "target is for map-style and Hugging Face datasets, without columns; found "
            f"{'columns' if columns is not None else type(data).__name__}"
        )
    patterns = list(data) if isinstance(data, (list, tuple)) else [data]
    store = object_store(patterns, remote) if shards else None
    if remote is not None and store is None:
        raise ValueError(
            f"remote is for shards in an object store; found {type(data).__name__} without an "
            "address"
        )
    if isinstance(data, Source):
        return _changed(data, transform, fingerprint)
    if shards:
        if columns is not None and not isinstance(columns[0], str):
            raise ValueError(f"columns of shards must be two names; found {columns!r}")
        return ShardSource(
            [shard for pattern in patterns for shard in find_shards(pattern, store)],
            transform,
            fingerprint,
            mode,
            max_pixels,
            None if columns is None else (str(columns[0]), columns[1]),
            index_folder,
            absolute(patterns[0]) if len(patterns) == 1 else None,
            store,
        )
    if isinstance(data, (str, os.PathLike)):
        return ImageFolderSource(data, transform, fingerprint, mode, max_pixels)
    pairs = type(data) is TensorDataset and len(data.tensors) == 2 and target is None
    if isinstance(data, tuple) or pairs:
        inputs, targets = _two_arrays(data)
        return ArraySource(inputs, targets, transform, fingerprint)
    if is_hugging_face(data):
        return HuggingFaceSource(data, transform, fingerprint, columns, mode, target)
    if isinstance(data, Subset):
        base = as_source(
            data.dataset,
            columns=columns,
            target=target,
            mode=mode,
            max_pixels=max_pixels,
            index_folder=index_folder,
        )
        return SubsetSource(data, base, transform, fingerprint, target)
    checked_length(data)
    if is_image_folder_dataset(data) and target is None:
        return ImageFolderDatasetSource(data, transform, fingerprint)
    if reads_as_timm(data) and target is None:
        return TimmSource(data, transform, fingerprint)
    if isinstance(data, ConcatDataset):
        parts = [identified(part) for part in data.datasets if len(part)]  # type: ignore[arg-type]
        return ConcatSource(data, parts, transform, fingerprint, target)
    source = DatasetSource(data, transform, fingerprint, target)
    if is_timm(data):
        source.doubts["timm"] = (
            f"this {type(data).__name__} gives the next image in place of one that cannot be read, "
            "as timm's ImageDataset does, so the ids of such images are wrong"
        )
    return source


def _takes_columns(data: Any) -> bool:
    return is_shards(data) or isinstance(data, Subset) or is_hugging_face(data)


def _takes_target(data: Any) -> bool:
    return not (is_shards(data) or isinstance(data, (Source, str, os.PathLike, tuple)))


def fitting(
    data: Any, columns: Sequence[Any] | None = None, target: Target | None = None
) -> dict[str, Any]:
    """Those of the arguments that :func:`as_source` takes for this form of data.

    The samples of a run may have several forms: a dataset whose items have a target at a name, and
    a tuple of arrays beside it.
    """
    if columns is not None and _takes_columns(data):
        return {"columns": (columns[0], columns[1])}
    return {"target": target} if target is not None and _takes_target(data) else {}


def identified(dataset: Any) -> Source:
    """A source that identifies the samples of a dataset, whatever a sample consists of.

    It is that of :func:`as_source`. All columns of a Hugging Face dataset count if their names do
    not tell the input from the target.

    Raises:
        TypeError, ValueError: as :func:`as_source`, for what is not a dataset.
    """
    if not is_hugging_face(dataset) or has_known_columns(dataset):
        return as_source(dataset)
    names = list(dataset.column_names)
    target = next((name for name in TARGET_COLUMNS if name in names), names[-1])
    inputs = [name for name in names if name != target] or [target]
    return as_source(dataset, columns=(inputs, target))


def source_again(about: Mapping[str, Any], data: Any | None = None) -> Source:
    """Make the source of a result again.

    Args:
        about: the result's ``dataset``.
        data: another place or form of the same samples. None means the place in ``about``, where
            a fingerprint that was stated then holds again.

    Raises:
        FileNotFoundError: the dataset is no longer there, or ``about`` does not name its place.
        OSError, TypeError, ValueError: as :func:`as_source`.
    """
    stated = about.get("stated_fingerprint") if data is None else None
    if data is None:
        data = about.get("root")
        if data is None or about.get("subset"):
            raise FileNotFoundError(why_not_there(about))
    if isinstance(data, Source):
        return data
    return as_source(
        data,
        fingerprint=stated,
        index_folder=about.get("index_folder"),
        **fitting(data, about.get("columns"), about.get("target")),
    )


def why_not_there(about: Mapping[str, Any]) -> str:
    """Why the dataset of a result was not found, as the end of a sentence."""
    root = about.get("root")
    if root is None:
        return "the result does not name its place"
    if about.get("subset"):
        return f"the result is of a Subset of {root}"
    return f"{root} does not exist"


def _described(data: Any) -> str:
    return str(data) if isinstance(data, (str, os.PathLike)) else type(data).__name__


def _changed(source: Source, transform: Transform | None, fingerprint: str | None) -> Source:
    if transform is None and fingerprint is None:
        return source
    changed = copy.copy(source)
    if transform is not None:
        if source.transform is not None:
            raise ValueError(
                "expected a source without a transform; found one with a "
                f"{type(source.transform).__name__}: compose the two transforms first"
            )
        changed.transform, changed.deterministic = transform, False
    if fingerprint is not None:
        changed._fingerprint = changed.stated_fingerprint = stated_fingerprint(fingerprint)
    return changed


def _two_arrays(data: Any) -> tuple[Any, Any]:
    arrays = data if isinstance(data, tuple) else data.tensors
    if len(arrays) != 2:
        raise ValueError(
            "expected two arrays, (inputs, targets); "
            f"found a {type(data).__name__} of {len(arrays)}"
        )
    inputs, targets = (
        map_array(array) if isinstance(array, (str, os.PathLike)) else array for array in arrays
    )
    return inputs, targets
