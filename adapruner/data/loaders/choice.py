"""The samples of a run, and the choice of a loader for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from adapruner._util.extras import require
from adapruner.data.loaders.torch_loader import PrunedLoader, evaluation_loader
from adapruner.data.sources.base import Source, Transform
from adapruner.data.sources.find import HuggingFaceSource, as_source
from adapruner.data.sources.items import Target
from adapruner.data.sources.map_style import has_transform
from adapruner.pruning.distributed import Ranks
from adapruner.vision import to_tensor

if TYPE_CHECKING:
    from adapruner.pruning.pruner import Pruner

LOADERS = ("auto", "torch", "dali")

Collate = Callable[[list[Any]], Any]
Columns = tuple[str | Sequence[str], str]


class Choice(NamedTuple):
    """The name of a loader, "torch" or "dali", and the reason for the choice."""

    name: str
    why: str


def training_source(
    data: Any,
    transform: Transform | None = None,
    collate_fn: Collate = default_collate,
    fingerprint: str | None = None,
    columns: Columns | None = None,
    target: Target | None = None,
) -> Source:
    """``data`` as a source. PIL images become tensors unless a transform or a collate is given."""
    source = as_source(
        data, transform=transform, fingerprint=fingerprint, columns=columns, target=target
    )
    pictures = source.kind in ("image folder", "shards", "hugging face")
    pictures &= not (isinstance(source, HuggingFaceSource) and isinstance(source.columns[0], list))
    if pictures and not has_transform(source) and collate_fn is default_collate:
        source = as_source(source, transform=to_tensor)
    return source


def choose_loader(wanted: str, source: Source, collate_fn: Collate) -> Choice:
    """The loader for ``source``. "auto" takes DALI if DALI can read the samples, else torch.

    Raises:
        ImportError: "dali" is wanted and not installed.
        TypeError: "dali" is wanted and cannot read these samples.
        ValueError: ``wanted`` is not in ``LOADERS``.
    """
    if wanted not in LOADERS:
        listed = ", ".join(f'"{name}"' for name in LOADERS)
        raise ValueError(f"loader must be one of {listed}; found {wanted!r}")
    if wanted == "torch":
        return Choice("torch", "asked for")
    if wanted == "dali":
        require("nvidia.dali", extra="dali")
    from adapruner.data.dali.loader import why_not_dali

    reason = why_not_dali(source)
    if reason is None and collate_fn is not default_collate:
        reason = "DALI makes the batches itself, and cannot call a collate_fn"
    if reason is None:
        why = "asked for" if wanted == "dali" else "DALI is installed and can read these samples"
        return Choice("dali", why)
    if wanted == "dali":
        raise TypeError(f"the DALI loader cannot read these samples: {reason}")
    return Choice("torch", reason)


def training_loader(
    choice: Choice,
    source: Source,
    pruner: Pruner,
    batch_size: int,
    *,
    num_workers: int,
    block_size: int | None,
    collate_fn: Collate,
    on_error: str,
) -> Any:
    """The loader of the training samples, a ``PrunedLoader`` or a ``DaliLoader``."""
    device = pruner.gates.logits.device
    if choice.name == "torch":
        return PrunedLoader(
            source,
            pruner,
            batch_size,
            num_workers=num_workers,
            block_size=block_size,
            collate_fn=collate_fn,
            pin_memory=device.type == "cuda",
            on_error=on_error,
            triples=True,
        )
    from adapruner.data.dali.loader import DaliLoader

    return DaliLoader(
        source,
        pruner,
        batch_size,
        num_threads=num_workers or None,
        device=device,
        block_size=block_size,
        on_error=on_error,
    )


def held_out_loader(
    choice: Choice,
    source: Source,
    indices: np.ndarray,
    batch_size: int,
    *,
    ranks: Ranks,
    seed: int,
    num_workers: int,
    collate_fn: Collate,
    device: torch.device,
) -> Iterable[Any]:
    """The loader of a rank's share of the held-out samples.

    It yields (batch, ids, unreadable samples).
    """
    if choice.name == "torch":
        return evaluation_loader(
            source,
            indices,
            batch_size,
            ranks=ranks,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_fn,
        )
    from adapruner.data.dali.loader import DaliEvaluation

    threads = num_workers or None
    return DaliEvaluation(
        source, indices, batch_size, ranks=ranks, seed=seed, num_threads=threads, device=device
    )
