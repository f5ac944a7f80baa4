"""Files of the dataset, which no output of a result may replace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adapruner._util.addresses import is_address
from adapruner.data.sources.base import Source
from adapruner.data.sources.map_style import origin
from adapruner.data.sources.shard_paths import find_shards
from adapruner.data.sources.shards import ShardSource


def check_replaces_no_data(
    path: str | os.PathLike[str],
    about: Mapping[str, Any],
    paths: Sequence[str] | None,
    source: Source | None,
) -> None:
    """Raise ValueError where ``path`` is an image, a shard or an array file of the dataset.

    Args:
        path: the place of an output.
        about: the ``dataset`` of a result.
        paths: the paths of the samples relative to the root of an image folder, where known.
        source: the dataset, where known.
    """
    if not os.path.lexists(path):
        return
    root = about.get("root") if about.get("kind") == "image folder" else None
    files = set(map(os.path.abspath, _files(about, source)))
    for place in {os.path.abspath(path), os.path.realpath(path)}:
        if place in files or (root is not None and _is_image(place, root, paths or ())):
            raise ValueError(f"cannot write {os.fspath(path)}: it is a file of the dataset")


def _is_image(place: str, root: str, paths: Sequence[str]) -> bool:
    bases = os.path.abspath(root), os.path.realpath(root)
    inside = {os.path.relpath(place, base) for base in bases}
    wanted = {path.replace(os.sep, "/") for path in inside if not path.startswith(os.pardir)}
    return bool(wanted) and any(path in wanted for path in paths)


def _files(about: Mapping[str, Any], source: Source | None) -> Iterable[str]:
    if about.get("kind") != "shards":
        return about.get("files") or ()
    whole = None if source is None else origin(source)
    if isinstance(whole, ShardSource):
        return [shard for shard in whole.shards if not is_address(shard)]
    root = about.get("root")
    try:
        return () if root is None or is_address(root) else find_shards(root)
    except OSError:  # the shards are no longer there
        return ()
