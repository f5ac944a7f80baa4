"""The dataset of a result, at the place that the result names."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from adapruner.data.sources.base import Source
from adapruner.data.sources.find import source_again, why_not_there

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult


class Found(NamedTuple):
    """A dataset, or the reason why there is none.

    Attributes:
        source: the dataset, or None.
        reason: why it was not found; "" with a source.
        gone: whether nothing is at its place, or the result names no place.
    """

    source: Source | None
    reason: str = ""
    gone: bool = False


def find_original(result: PruneResult) -> Found:
    """The dataset of ``result``, if the result holds it or it lies unchanged in its place."""
    if result.source is not None:
        return Found(result.source)
    root = result.dataset.get("root")
    if not root:
        return Found(None, "the result does not name its place", gone=True)
    if result.dataset.get("subset"):
        return Found(None, why_not_there(result.dataset), gone=True)
    what = "the shards" if result.dataset.get("kind") == "shards" else "the folder"
    try:
        source = source_again(result.dataset)
        unchanged = source.fingerprint() == result.fingerprint
    except FileNotFoundError:
        return Found(None, f"{what} {root} cannot be found", gone=True)
    except (OSError, ValueError, TypeError, ImportError) as error:
        return Found(None, f"{what} {root} cannot be read: {error}")
    if not unchanged:
        return Found(None, f"{what} {root} has changed, or is not the dataset that was pruned")
    return Found(source)
