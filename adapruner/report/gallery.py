"""The samples of the galleries and their pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adapruner.data.sources.find import source_again
from adapruner.pruning.record import NO_CLASS
from adapruner.report.style import printable
from adapruner.report.thumbnails import thumbnail
from adapruner.report.values import ABSENT, class_name, known_paths, number
from adapruner.results.original import Found, find_original
from adapruner.results.reasons import REASONS, reason_codes, samples_of

if TYPE_CHECKING:
    from adapruner.results.result import PruneResult

MOST_SAMPLES = 24  # in one gallery


@dataclass(frozen=True)
class Sample:
    """One sample of a gallery, as text. ``picture`` is a ``data:`` address, or ""."""

    index: int
    path: str  # "" if not known
    class_name: str
    predicted: str  # name of the predicted class, or ABSENT
    wrong: bool  # whether the predicted class is known and another one
    reason: str
    score: str
    loss: str
    relative: str  # relative loss
    kept: bool
    picture: str
    problem: str  # the reason why there is no picture


@dataclass(frozen=True)
class Gallery:
    """Samples in order. ``no_pictures`` is the reason if none of them has a picture, else ""."""

    name: str  # of the section in the page
    title: str
    about: str
    samples: list[Sample]
    total: int  # samples of this kind in the result
    no_pictures: str
    score: str  # the score that all of them have, or "" if their scores differ
    empty: str = "None."  # the text in place of no samples


def find_source(result: PruneResult, source: Any | None) -> Found:
    """The source of pictures: the given source, the result's source, or the place it names.

    Raises:
        DatasetMismatchError: ``source`` is not the dataset of the result.
        TypeError, ValueError: :func:`adapruner.data.as_source` does not take ``source``.
    """
    if source is not None:
        given = source_again(result.dataset, source)
        result.check_dataset(given)
        return Found(given)
    found = find_original(result)
    if found.gone:
        return found._replace(reason=f"no dataset was given, and {found.reason}")
    return found


def galleries(result: PruneResult, found: Found) -> list[Gallery]:
    """The galleries of a report: kept samples, both kinds of pruned ones, and suspects."""
    codes = reason_codes(result)
    kept = result.indices.numpy()
    evenly = kept[np.linspace(0, len(kept) - 1, min(MOST_SAMPLES, len(kept))).round().astype(int)]
    about = "Kept samples, evenly spaced over the dataset."
    made = [_gallery(result, codes, evenly, found, "kept", "Kept", about, total=len(kept))]
    made += [
        _gallery(result, codes, samples_of(result, reason), found, name, title, about)
        for name, title, reason, about in _PRUNED
    ]
    try:
        suspects = result.suspects().indices.numpy()
    except ValueError as error:
        return [*made, Gallery("suspects", "Suspects", "", [], 0, "", "", f"Absent: {error}.")]
    about = "Labels that are likely wrong: the model predicted another class, and the losses were "
    about += "high for the class. The likeliest come first."
    made.append(_gallery(result, codes, suspects, found, "suspects", "Suspects", about))
    return made


_PRUNED = (
    ("easy", "Easy", "easy", "Pruned samples with small losses, the smallest first."),
    (
        "does-not-fit",
        "Does not fit",
        "does not fit",
        "Pruned samples with large losses, the largest first: wrong labels, outliers, or samples "
        "too hard for the model.",
    ),
)


def _gallery(
    result: PruneResult,
    codes: NDArray[np.int8],
    indices: NDArray[np.int64],
    found: Found,
    name: str,
    title: str,
    about: str,
    total: int | None = None,
) -> Gallery:
    """The first of the samples at ``indices``, with pictures if ``found`` has them."""
    first = indices[:MOST_SAMPLES]
    paths = known_paths(result, found.source, first) or [""] * len(first)
    samples = [
        _sample(result, codes, found, index, path)
        for index, path in zip(first.tolist(), paths, strict=True)
    ]
    without = samples and not any(sample.picture for sample in samples)
    scores = {sample.score for sample in samples}
    return Gallery(
        name,
        title,
        about,
        samples,
        len(indices) if total is None else total,
        samples[0].problem if without else "",
        scores.pop() if len(scores) == 1 and len(samples) > 1 else "",
    )


def _sample(
    result: PruneResult, codes: NDArray[np.int8], found: Found, index: int, path: str
) -> Sample:
    picture, problem = _picture(found, index)
    label = None if result.targets is None else int(result.targets[index])
    predicted = NO_CLASS if result.predicted is None else int(result.predicted[index])
    relative = result.relative_losses
    last = result.sample_losses
    return Sample(
        index=index,
        path=printable(path),
        class_name=ABSENT if label is None else class_name(result, label),
        predicted=ABSENT if predicted == NO_CLASS else class_name(result, predicted),
        wrong=label is not None and predicted not in (NO_CLASS, label),
        reason=REASONS[codes[index]],
        score=f"{float(result.gate_logits[index]):.3f}".replace("-", "−"),
        loss=number(None if last is None else _finite(float(last[index])), digits=3),
        relative=number(None if relative is None else float(relative[index]), digits=3),
        kept=REASONS[codes[index]] == "kept",
        picture=picture,
        problem=printable(problem),
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


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
