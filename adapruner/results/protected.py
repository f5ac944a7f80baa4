"""Files of the dataset, which no output of a result may replace."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from adapruner._util.addresses import is_address
from adapruner.data.sources.map_style import origin
from adapruner.data.sources.shard_paths import find_shards
from adapruner.data.sources.shards import ShardSource

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult


def check_replaces_no_data(result: PruneResult, path: str | os.PathLike[str]) -> None:
    """Raise ValueError where ``path`` is an image, a shard or an array file of the dataset."""
    if not os.path.lexists(path):
        return
    for place in {os.path.abspath(path), os.path.realpath(path)}:
        if _is_image(result, place) or place in map(os.path.abspath, _files(result)):
            raise ValueError(f"cannot write {os.fspath(path)}: it is a file of the dataset")


def _is_image(result: PruneResult, place: str) -> bool:
    root = result.dataset.get("root")
    if result.dataset.get("kind") != "image folder" or root is None or result.paths is None:
        return False
    inside = {
        os.path.relpath(place, base) for base in (os.path.abspath(root), os.path.realpath(root))
    }
    wanted = {path.replace(os.sep, "/") for path in inside if not path.startswith(os.pardir)}
    return bool(wanted) and any(path in wanted for path in result.paths)


def _files(result: PruneResult) -> Iterable[str]:
    about = result.dataset
    if about.get("kind") != "shards":
        return about.get("files") or ()
    source = None if result.source is None else origin(result.source)
    if isinstance(source, ShardSource):
        return [shard for shard in source.shards if not is_address(shard)]
    root = about.get("root")
    try:
        return () if root is None or is_address(root) else find_shards(root)
    except OSError:  # the shards are no longer there
        return ()
