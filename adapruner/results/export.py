"""Exports for other tools: the kept set, or the table of all samples."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapruner._util.files import new_folder, replace_atomically
from adapruner.data.sources.base import IntArray, Source
from adapruner.data.sources.find import source_again, why_not_there
from adapruner.data.sources.shards import ShardSource
from adapruner.results.original import find_original
from adapruner.results.protected import check_replaces_no_data
from adapruner.results.shard_export import write_kept_indexes, write_kept_shards
from adapruner.results.table import write_csv, write_parquet

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

TABLES = ("csv", "parquet")  # formats with a row for every sample


def export(
    result: PruneResult,
    destination: str | os.PathLike[str],
    to: str,
    source: Any | None = None,
) -> None:
    """Write ``result`` to ``destination``. An old file is replaced atomically.

    ``to`` is one of

    - "paths": a UTF-8 text file with one path per line, relative to the root of the image folder,
      in the order of the dataset. The file does not contain the root, so the folder can move.
    - "npy": the kept indices, int64 ``[K]``, ascending.
    - "csv": the table of all samples, one row for each, as
      :meth:`adapruner.PruneResult.to_dataframe` has it.
    - "parquet": the same table. The metadata of the schema hold ``keep_ratio`` and ``fingerprint``.
    - "links": an image folder CLASS/…/IMAGE of symbolic links with absolute targets. Classes
      without kept samples have folders too, so the class numbers stay. ``destination`` must be new
      or empty.
    - "wds-index": a folder with an index NAME.idx for each shard NAME.tar that has kept samples.
      DALI's ``fn.readers.webdataset`` reads only the kept samples with these indexes.
    - "shards": a folder of new shards kept-NNNNNN.tar with the kept samples in their order, and
      their indexes. The old shards are read once, from beginning to end, with a progress bar on a
      terminal.

    Args:
        result: a result of :func:`adapruner.fast_prune` or ``PruneResult.load``.
        destination: file or folder to write.
        to: the format.
        source: the dataset that was pruned, as a Source or in any form that
            :func:`adapruner.data.as_source` takes. Where None, the dataset of ``result``, or else
            the image folder or the shards at the place that ``result`` names.

    Raises:
        ValueError: ``to`` is unknown, or it needs paths or shards and the dataset has none. Or
            ``destination`` is a file of the dataset.
        DatasetMismatchError: the dataset is not the dataset that was pruned.
        FileExistsError: the folder to write is not empty.
        OSError: the destination cannot be written, or the disk is full.
        ImportError: pyarrow, which "parquet" needs, is not installed.
    """
    write = _FORMATS.get(to)
    if write is None:
        raise ValueError(f"to must be one of {', '.join(_FORMATS)}; found {to!r}")
    check_kind(result.dataset.get("kind", ""), to)
    found = find_source(result, source, needed=to)
    check_replaces_no_data(destination, result.dataset, result.paths, result.source)
    write(result, Path(destination), found)


def check_kind(kind: str, to: str) -> None:
    """Raise ValueError where no dataset of this kind has what the format ``to`` needs."""
    if to in ("wds-index", "shards"):
        needed, fits = "WebDataset shards", kind in ("shards", "")
    elif to in ("paths", "links"):
        needed = "samples that are files"
        fits = kind not in ("arrays", "hugging face", "shards")
    else:
        return
    if not fits:
        raise ValueError(
            f'export to "{to}" needs {needed}; found a dataset of kind "{kind}". "npy", '
            '"csv" and "parquet" work for every dataset'
        )


def find_source(result: PruneResult, source: Any | None, needed: str) -> Source | None:
    """The dataset of a result for the export ``needed``, or None if it is not needed or not there.

    A table has no paths if the dataset at the place that the result names has changed.

    Raises:
        DatasetMismatchError: the dataset is not the dataset that was pruned.
    """
    if source is None and needed in TABLES:
        return None if result.paths is not None else _for_table(result)
    found = _source(result, source, needed)
    if found is not None:
        result.check_dataset(found)
    return found


def _source(result: PruneResult, source: Any | None, needed: str) -> Source | None:
    if source is not None:
        return source_again(result.dataset, source)
    if needed == "npy" or (needed == "paths" and result.paths is not None):
        return None  # the result holds all of it
    if result.source is not None:
        return result.source
    try:
        return source_again(result.dataset)
    except FileNotFoundError:
        return None


def _for_table(result: PruneResult) -> Source | None:
    found = find_original(result)
    if found.source is None and not found.gone:
        warnings.warn(f"the table has no paths: {found.reason}", stacklevel=5)
    return found.source


def _with_paths(result: PruneResult, source: Source | None, to: str) -> tuple[Source, list[str]]:
    """The source and the paths of its kept samples. Raises ValueError without paths."""
    if source is None:
        raise ValueError(f'export to "{to}" needs the image folder, {_why_not_found(result)}')
    check_kind(source.kind, to)
    if source.paths is None:  # a dataset of one's own
        raise ValueError(f'export to "{to}" needs the paths of the samples; found none')
    return source, [source.paths[index] for index in result.indices.tolist()]


def _why_not_found(result: PruneResult) -> str:
    return f"and {why_not_there(result.dataset)}; give the dataset with source="


def _write_paths(result: PruneResult, destination: Path, source: Source | None) -> None:
    if source is None and result.paths is not None:
        paths = [result.paths[index] for index in result.indices.tolist()]
    else:
        _, paths = _with_paths(result, source, "paths")
    broken = next((path for path in paths if "\n" in path or "\r" in path), None)
    if broken is not None:
        raise ValueError(f"paths must not contain line breaks; found {broken!r}")
    # fsencode, because a file name need not be valid UTF-8.
    _write_bytes(destination, b"".join(os.fsencode(path) + b"\n" for path in paths))


def _write_npy(result: PruneResult, destination: Path, source: Source | None) -> None:
    # Through memory: np.save appends .npy to a name, and its error of a full disk has no reason.
    content = io.BytesIO()
    np.save(content, result.indices.cpu().numpy().astype(np.int64), allow_pickle=False)
    _write_bytes(destination, content.getvalue())


def _write_bytes(destination: Path, content: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    replace_atomically(destination, write)


def _write_links(result: PruneResult, destination: Path, source: Source | None) -> None:
    source, paths = _with_paths(result, source, "links")
    assert source.root is not None
    root = os.path.realpath(source.root)
    destination = Path(os.path.realpath(destination))
    if os.path.commonpath([root, destination]) == root:
        raise ValueError(
            f"{destination} is in the image folder {root}; links there would change the dataset. "
            "Choose a folder outside it"
        )
    with new_folder(destination, "links") as folder:
        for name in {os.path.dirname(path) for path in paths} | _class_folders(source):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for path in paths:
            os.symlink(os.path.join(source.root, path), folder / path)


def _class_folders(source: Source) -> set[str]:
    """The class folders, with those of empty classes if class names are folder names."""
    assert source.paths is not None
    folders = {path.split("/", 1)[0] for path in source.paths}
    names = set(source.class_names or ())
    return names if names >= folders else folders


def _write_wds_index(result: PruneResult, destination: Path, source: Source | None) -> None:
    write_kept_indexes(_of_shards(result, source, "wds-index"), _kept(result), destination)


def _write_shards(result: PruneResult, destination: Path, source: Source | None) -> None:
    write_kept_shards(_of_shards(result, source, "shards"), _kept(result), destination)


def _of_shards(result: PruneResult, source: Source | None, to: str) -> ShardSource:
    if source is None:
        raise ValueError(f'export to "{to}" needs the shards, {_why_not_found(result)}')
    check_kind(source.kind, to)
    if not isinstance(source, ShardSource):
        raise ValueError(f'export to "{to}" needs whole shards; found a {type(source).__name__}')
    return source


def _kept(result: PruneResult) -> IntArray:
    kept: IntArray = result.indices.cpu().numpy().astype(np.int64)
    return kept


_FORMATS: dict[str, Callable[[PruneResult, Path, Source | None], None]] = {
    "paths": _write_paths,
    "npy": _write_npy,
    "csv": write_csv,
    "parquet": write_parquet,
    "links": _write_links,
    "wds-index": _write_wds_index,
    "shards": _write_shards,
}
