"""The samples of the galleries and their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adapruner.data.sources.base import Source
from adapruner.data.sources.find import as_source, source_again
from adapruner.report.style import printable
from adapruner.report.thumbnails import thumbnail
from adapruner.report.values import ABSENT, class_name, finite_losses, number

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

MOST_SAMPLES = 24  # in one gallery


class Found(NamedTuple):
    """A source of pictures, or the reason why there is none."""

    source: Source | None
    reason: str = ""


@dataclass(frozen=True)
class Sample:
    """One sample of a gallery, as text. ``picture`` is a ``data:`` address, or ""."""

    index: int
    path: str  # "" if not known
    class_name: str
    gate_logit: str
    loss: str
    kept: bool
    picture: str
    problem: str  # the reason why there is no picture


@dataclass(frozen=True)
class Gallery:
    """Samples in order, and the reason if none of them has a picture, else ""."""

    samples: list[Sample]
    no_pictures: str


def find_source(result: PruneResult, source: Any | None) -> Found:
    """The source of pictures: the given source, the result's source, or the place it names.

    Raises:
        DatasetMismatchError: ``source`` is not the dataset of the result.
        TypeError, ValueError: :func:`adapruner.data.as_source` does not take ``source``.
    """
    if source is not None:
        given = as_source(source)
        result.check_dataset(given)
        return Found(given)
    if result.source is not None:
        return Found(result.source)
    root = result.dataset.get("root")
    if not root:
        return Found(None, "no dataset was given, and the result does not name its place")
    return _original(result, root)


def _original(result: PruneResult, root: str) -> Found:
    what = "the shards" if result.dataset.get("kind") == "shards" else "the folder"
    try:
        source = source_again(result.dataset)
        unchanged = source.fingerprint() == result.fingerprint
    except FileNotFoundError:
        return Found(None, f"no dataset was given, and {what} {root} cannot be found")
    except (OSError, ValueError, TypeError, ImportError) as error:
        return Found(None, f"{what} {root} cannot be read: {error}")
    if not unchanged:
        return Found(None, f"{what} {root} has changed, or is not the dataset that was pruned")
    return Found(source)


def extremes(result: PruneResult) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Readable samples with the largest and with the smallest gate logits.

    Each list has at most ``MOST_SAMPLES`` indices, and the extreme sample is first. No sample is in
    both lists: if there are few samples, each list gets half. Of equal gate logits, a smaller last
    loss comes nearer to the largest, then a lower index.
    """
    logits = result.gate_logits.double().numpy()
    order = np.lexsort((np.nan_to_num(finite_losses(result)), -logits))
    unreadable = np.array([index for index, _ in result.unreadable], dtype=np.int64)
    order = order[np.isfinite(logits[order]) & ~np.isin(order, unreadable)]
    most = min(MOST_SAMPLES, (len(order) + 1) // 2)
    least = min(MOST_SAMPLES, len(order) // 2)
    return order[:most], order[len(order) - least :][::-1]


def gallery(result: PruneResult, indices: NDArray[np.int64], found: Found) -> Gallery:
    """The samples at ``indices``, with pictures if ``found`` has them."""
    kept, losses = result.kept, finite_losses(result)
    paths = found.source.paths if found.source is not None else None
    samples = []
    for index in indices.tolist():
        picture, problem = _picture(found, index)
        name = ABSENT if result.targets is None else class_name(result, int(result.targets[index]))
        samples.append(
            Sample(
                index=index,
                path=str(paths[index]) if paths else "",
                class_name=name,
                gate_logit=f"{float(result.gate_logits[index]):.3f}".replace("-", "−"),
                loss=number(float(losses[index]), digits=3),
                kept=bool(kept[index]),
                picture=picture,
                problem=printable(problem),
            )
        )
    without = samples and not any(sample.picture for sample in samples)
    return Gallery(samples, samples[0].problem if without else "")


def _picture(found: Found, index: int) -> tuple[str, str]:
    """(address, problem), one of which is "". A bad sample must not end the report."""
    if found.source is None:
        return "", found.reason
    try:
        image = found.source.image(index)
        if image is None:
            return "", "this kind of dataset has no pictures"
        return thumbnail(image), ""
    except ImportError:
        raise
    except Exception as error:  # decoders raise errors of any type
        return "", f"{type(error).__name__}: {error}"
