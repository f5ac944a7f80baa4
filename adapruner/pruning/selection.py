"""Selections (the paper's ADP): the samples that are kept, and the samples that an epoch reads.

A selection keeps exactly ``keep_count(ratio, N)`` samples: those with the largest gate logits, or
with the largest keys of the method (:mod:`adapruner.pruning.methods`). Of equal values the lower
index wins. With balanced classes, each class keeps its own share
(:mod:`adapruner.pruning.quotas`). Held-out samples compete among
themselves for their own share. An unreadable sample (m = −inf) is never kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from adapruner import ops
from adapruner._util.checks import checked_real
from adapruner._util.seeds import Stream, stream_seed
from adapruner.pruning import bitmask
from adapruner.pruning.gates import Gates
from adapruner.pruning.quotas import largest_remainder, largest_remainder_within

# Samples that a class keeps at least, if it has so many, where losses decide on the shares.
LEAST_OF_CLASS = 5
# A run goes on where this share of N is missing among the samples to keep.
MOST_MISSING = 0.05


def keep_count(ratio: float, num_samples: int) -> int:
    """K = ⌊ratio·N + ½⌋, in float64. All code turns a ratio into a count with this function."""
    return math.floor(float(ratio) * num_samples + 0.5)


def check_keep_ratio(keep_ratio: float, num_samples: int) -> float:
    """The keep ratio as a float.

    Raises:
        TypeError: ``keep_ratio`` is not a real number.
        ValueError: ``keep_ratio`` is not in (0, 1], or it keeps fewer than one sample.
    """
    keep_ratio = checked_real("keep_ratio", keep_ratio, "a number in (0, 1]")
    if not 0 < keep_ratio <= 1:
        raise ValueError(
            f"keep_ratio must be in (0, 1], the share of samples to keep; found {keep_ratio}"
        )
    if keep_count(keep_ratio, num_samples) < 1:
        raise ValueError(
            f"keep_ratio must keep at least one sample; found {keep_ratio} of {num_samples} samples"
        )
    return keep_ratio


class Selection:
    """The samples that an epoch reads: an exact top-k of the gates, and some pruned samples.

    Masks are on the CPU, where samples are read, also if the gates are on a GPU.

    Args:
        num_samples: N.
        keep_ratio: r, the final keep ratio.
        seed: orders samples of equal age in the exploration.
        labels: int64 ``[N]``. If given, every class keeps its proportional share.
        by_loss: classes have shares of their own only in a selection with weights, and keep at
            least :data:`LEAST_OF_CLASS` samples each.
        held_out: int64 indices that are never trained on.
        explore: pruned samples to read in each epoch, as a share of N in [0, 1].

    Attributes:
        kept: bit mask of the samples that the last top-k kept; all at the start.
        read: bit mask of the samples that the epoch trains on: the kept and explored samples,
            without the held-out samples.
        held_out: bit mask, or None without held-out samples.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        *,
        seed: int = 0,
        labels: Tensor | None = None,
        by_loss: bool = False,
        held_out: Tensor | None = None,
        explore: float = 0.02,
    ) -> None:
        self.num_samples = num_samples
        self.keep_ratio = check_keep_ratio(keep_ratio, num_samples)
        self.seed = seed
        self.explore = explore
        self.by_loss = by_loss
        self.kept = bitmask.full(num_samples)
        self.held_out = None if held_out is None else bitmask.of_indices(held_out, num_samples)
        self.read = self._trained()
        self._classes = 1 if labels is None else int(labels.max()) + 1
        self._of_class = None if labels is None else self._class_segments(labels)
        self._sizes = self._segment_sizes(by_class=True)

    @property
    def kept_count(self) -> int:
        """Number of kept samples."""
        return bitmask.count(self.kept)

    @property
    def held_out_count(self) -> int:
        """Number of held-out samples."""
        return 0 if self.held_out is None else bitmask.count(self.held_out)

    @property
    def labels(self) -> Tensor | None:
        """The classes that keep their own share, integers ``[N]``; None without such classes."""
        return None if self._of_class is None else self._of_class % self._classes

    def explored(self) -> Tensor:
        """Bit mask of the pruned samples that the epoch reads."""
        return self.read & ~self.kept

    def digest(self) -> str:
        """A hash of the classes and of the held-out samples."""
        found = hashlib.blake2b(digest_size=16)
        for tensor in (self._of_class, self.held_out):
            found.update(b"" if tensor is None else tensor.numpy().data)
        return found.hexdigest()

    def _trained(self) -> Tensor:
        return self.kept if self.held_out is None else self.kept & ~self.held_out

    def _class_segments(self, labels: Tensor) -> Tensor:
        """The segment of every sample in the narrowest dtype.

        The segment is the class, plus the number of classes for a held-out sample.
        """
        segments = np.empty(self.num_samples, np.min_scalar_type(-2 * self._classes))
        np.copyto(segments, labels.numpy(), casting="unsafe")  # no label is larger
        if self.held_out is not None:
            for begin, held_out in bitmask.unpack_pieces(self.held_out, self.num_samples):
                segments[begin : begin + len(held_out)][held_out] += self._classes
        return torch.from_numpy(segments)

    def _segments(self, by_class: bool) -> Tensor | None:
        """The segments, integers ``[N]``; None where all samples are in one segment."""
        if by_class:
            return self._of_class
        if self.held_out is None:
            return None
        # Two segments are stored as bits.
        return torch.from_numpy(bitmask.unpack(self.held_out, self.num_samples).view(np.uint8))

    def _segment_sizes(self, by_class: bool) -> np.ndarray:
        if not by_class or self._of_class is None:
            return np.array([self.num_samples - self.held_out_count, self.held_out_count])
        pieces = (piece.numpy() for piece in self._of_class.split(bitmask.PIECE))
        return self._count(pieces, self._classes)

    @staticmethod
    def _count(pieces: Iterable[np.ndarray], classes: int) -> np.ndarray:
        """Size of each segment over all pieces, int64 ``[2·classes]``."""
        counts = np.zeros(2 * classes, dtype=np.int64)
        for piece in pieces:
            counts += np.bincount(piece, minlength=len(counts))
        return counts

    def select(
        self,
        gates: Gates,
        ratio: float,
        slope: float,
        keys: Tensor | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        """Keep the exact top-k at ``ratio``, and set the slope of the gates.

        Args:
            gates: the gates of the run.
            ratio: keep ratio of the selection.
            slope: the next slope k.
            keys: float32 ``[N]``, −inf for an unreadable sample. If given, they rank the samples
                instead of the gate logits.
            weights: int64 ``[classes]``. If given, the numbers of samples that classes keep are in
                proportion to these, not to the sizes of the classes.

        Raises:
            ValueError: many of the samples that the run must keep cannot be read.
        """
        by_class = self._of_class is not None and (weights is not None or not self.by_loss)
        segments = self._segments(by_class)
        # The pass that ranks gate logits also computes their sums. A pass over keys cannot.
        ranked, summed = (gates.logits, slope) if keys is None else (keys, None)
        if segments is None:
            readable = gates.integer("population")
            count = self._clip(keep_count(ratio, self.num_samples), readable)
            kept, sums = ops.topk_mask(ranked, count, summed)
        else:
            sizes = self._sizes if by_class else self._segment_sizes(by_class=False)
            quotas = torch.from_numpy(self._quotas(gates, ratio, segments, sizes, weights))
            device = gates.logits.device
            kept, sums = ops.segmented_topk(ranked, segments.to(device), quotas.to(device), summed)
        self.kept = kept.cpu()
        self.read = self._trained()
        if keys is None:
            gates.use_sums(slope, sums)
        else:
            gates.set_slope(slope)

    def _quotas(
        self,
        gates: Gates,
        ratio: float,
        segments: Tensor,
        sizes: np.ndarray,
        weights: np.ndarray | None,
    ) -> np.ndarray:
        """Quota of each segment for a selection at ``ratio``, int64 ``[2·classes]``.

        ``sizes`` are those of the segments.
        """
        half, available = len(sizes) // 2, sizes
        if not gates.all_readable:
            both = zip(
                segments.split(bitmask.PIECE), gates.logits.split(bitmask.PIECE), strict=True
            )
            available = available - self._count(
                (piece[(logits == -torch.inf).cpu()].numpy() for piece, logits in both), half
            )
        count = self._clip(keep_count(ratio, self.num_samples), int(available.sum()))
        held_out, readable = sizes[half:], available[:half] + available[half:]
        if weights is None:
            of_class = largest_remainder(count, sizes[:half] + held_out, readable)
        else:
            least = np.minimum(readable, LEAST_OF_CLASS if self.by_loss else 0)
            if least.sum() > count:
                least = largest_remainder(count, least, least)
            rest = largest_remainder(count - int(least.sum()), weights, readable - least)
            of_class = least + rest
        # Held-out samples fill the share of a class that has too few readable training samples.
        least = np.maximum(of_class - available[:half], 0)
        most = np.minimum(of_class, available[half:])
        share = keep_count(ratio, int(held_out.sum()))
        share = min(max(share, int(least.sum())), int(most.sum()))
        of_held_out = largest_remainder_within(share, held_out, least, most)
        return np.concatenate([of_class - of_held_out, of_held_out])

    def _clip(self, count: int, readable: int) -> int:
        """``count``, cut to the number of readable samples.

        A few missing samples end no run. Many are more likely the fault of a disk or of the code,
        and the checkpoint of the run is worth more than its result.
        """
        wanted = keep_count(self.keep_ratio, self.num_samples)
        if readable == 0 or wanted - readable > max(1, int(MOST_MISSING * self.num_samples)):
            raise ValueError(
                f"keep_ratio {self.keep_ratio} of {self.num_samples} samples needs {wanted} "
                f"readable samples; found {readable}"
            )
        return min(count, readable)

    def count_reads(self, ratio: float) -> int:
        """Number of samples that an epoch trains on after a selection at ``ratio``.

        Every sample counts as readable.
        """
        trained = self.num_samples - self.held_out_count
        kept = keep_count(ratio, self.num_samples) - keep_count(ratio, self.held_out_count)
        return kept + min(self._explore_limit, trained - kept)

    @property
    def _explore_limit(self) -> int:
        return int(self.explore * self.num_samples)

    def explore_pruned(self, gates: Gates, epoch: int) -> None:
        """Choose the pruned samples that the next epoch reads: those with the largest age.

        A seeded hash orders samples of equal age.
        """
        pruned = gates.readable() & ~self.kept
        if self.held_out is not None:
            pruned &= ~self.held_out
        key = stream_seed(self.seed, epoch, Stream.EXPLORATION)
        oldest = ops.oldest_mask(pruned.to(gates.age.device), gates.age, self._explore_limit, key)
        self.read = self._trained() | oldest.cpu()
