"""Selections (the paper's ADP): the samples that are kept, and the samples that an epoch reads.

A selection keeps exactly ``keep_count(ratio, N)`` samples: those with the largest gate logits, or
with the largest keys of the method (:mod:`adapruner.pruning.methods`). Of equal values the lower
index wins. With balanced classes, each class keeps its own share, and with floors no class keeps
less than its floor (:mod:`adapruner.pruning.quotas`). Held-out samples compete among themselves for
their own share. An unreadable sample (m = −inf) is never kept.
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
from adapruner.pruning.methods.base import NEVER_FINITE
from adapruner.pruning.quotas import class_floors, largest_remainder, largest_remainder_within

# Keys below it are of samples that never had a finite loss, whose score is NEVER_FINITE.
_NEVER_FINITE = NEVER_FINITE / 2
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
        labels: integers ``[N]``, the class of each sample, or None.
        balance: "class": every class keeps its proportional share in every selection. "floor": no
            class keeps less than its floor in the last selection.
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
        balance: str = "class",
        held_out: Tensor | None = None,
        explore: float = 0.02,
    ) -> None:
        self.num_samples = num_samples
        self.keep_ratio = check_keep_ratio(keep_ratio, num_samples)
        self.seed = seed
        self.explore = explore
        self.balance: str | None = None if labels is None else balance
        self.kept = bitmask.full(num_samples)
        self.held_out = None if held_out is None else bitmask.of_indices(held_out, num_samples)
        self.read = self._trained()
        self._classes = 1
        self._of_class: Tensor | None = None
        if labels is not None:
            self._know(labels)
        given = hashlib.blake2b(digest_size=16)
        for tensor in (self._of_class, self.held_out):
            given.update(b"" if tensor is None else tensor.numpy().data)
        self._digest = given.hexdigest()

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
        """The classes, integers ``[N]``; None where they are not known."""
        return None if self._of_class is None else self._of_class % self._classes

    def explored(self) -> Tensor:
        """Bit mask of the pruned samples that the epoch reads."""
        return self.read & ~self.kept

    def digest(self) -> str:
        """A hash of the classes that were given, and of the held-out samples."""
        return self._digest

    def learn_classes(self, labels: Tensor) -> None:
        """Give classes floors by these labels, integers ``[N]``."""
        self.balance = "floor"
        self._know(labels)

    def _know(self, labels: Tensor) -> None:
        self._classes = int(labels.max()) + 1
        segments = self._of_class = self._class_segments(labels)
        pieces = (piece.numpy() for piece in segments.split(bitmask.PIECE))
        self._class_sizes = self._count(pieces, self._classes)

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
        floors: bool = False,
    ) -> None:
        """Keep the exact top-k at ``ratio``, and set the slope of the gates.

        Args:
            gates: the gates of the run.
            ratio: keep ratio of the selection.
            slope: the next slope k.
            keys: float32 ``[N]``, −inf for an unreadable sample. If given, they rank the samples
                instead of the gate logits.
            floors: whether classes have floors, where they are known.

        Raises:
            ValueError: many of the samples that the run must keep cannot be read.
        """
        segments = self._segments(by_class=self.balance == "class")
        # The pass that ranks gate logits also computes their sums. A pass over keys cannot.
        ranked, summed = (gates.logits, slope) if keys is None else (keys, None)
        if segments is None:
            count = self._clip(keep_count(ratio, self.num_samples), gates.integer("population"))
            kept, sums = ops.topk_mask(ranked, count, summed)
        else:
            sizes, readable = self._sizes(gates, segments)
            half = len(sizes) // 2
            count = self._clip(keep_count(ratio, self.num_samples), int(readable.sum()))
            of_class = largest_remainder(
                count, sizes[:half] + sizes[half:], readable[:half] + readable[half:]
            )
            quotas = self._with_held_out(of_class, ratio, sizes, readable)
            kept, sums = self._segmented_topk(ranked, segments, quotas, summed)
        self.kept = kept.cpu()
        if floors and self.balance == "floor":
            self._raise_to_floors(gates, ratio, ranked)
        self.read = self._trained()
        if keys is None:
            gates.use_sums(slope, sums)
        else:
            gates.set_slope(slope)

    def _raise_to_floors(self, gates: Gates, ratio: float, ranked: Tensor) -> None:
        """Keep more of the classes that are below their floor, and less of the others."""
        segments = self._segments(by_class=True)
        if segments is None:
            return
        sizes, readable = self._sizes(gates, segments)
        # Samples that never had a finite loss do not raise their class.
        known = bitmask.pack_pieces(
            self.num_samples, lambda begin, end: (ranked[begin:end] > _NEVER_FINITE).cpu().numpy()
        )
        kept_of, known_of, readable_of = (
            np.add(*np.split(each, 2))
            for each in (self._count_of(self.kept), self._count_of(known), readable)
        )
        floors = class_floors(known_of, int(kept_of.sum()))
        if (kept_of >= floors).all():
            return
        of_class = largest_remainder_within(int(kept_of.sum()), kept_of, floors, readable_of)
        quotas = self._with_held_out(of_class, ratio, sizes, readable)
        self.kept = self._segmented_topk(ranked, segments, quotas)[0].cpu()

    def _count_of(self, mask: Tensor) -> np.ndarray:
        """Samples of each class segment in a bit mask, int64 ``[2·C]``."""
        assert self._of_class is not None
        segments = self._of_class.numpy()
        pieces = bitmask.unpack_pieces(mask, self.num_samples)
        return self._count(
            (segments[begin : begin + len(piece)][piece] for begin, piece in pieces), self._classes
        )

    @staticmethod
    def _segmented_topk(
        ranked: Tensor, segments: Tensor, quotas: np.ndarray, slope: float | None = None
    ) -> ops.TopK:
        device = ranked.device
        return ops.segmented_topk(
            ranked, segments.to(device), torch.from_numpy(quotas).to(device), slope
        )

    def _sizes(self, gates: Gates, segments: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Samples of each segment, and those of them that are readable; both int64 ``[2·C]``."""
        sizes = np.array([self.num_samples - self.held_out_count, self.held_out_count])
        if segments is self._of_class:
            sizes = self._class_sizes
        if gates.all_readable:
            return sizes, sizes
        both = zip(segments.split(bitmask.PIECE), gates.logits.split(bitmask.PIECE), strict=True)
        gone = (piece[(logits == -torch.inf).cpu()].numpy() for piece, logits in both)
        return sizes, sizes - self._count(gone, len(sizes) // 2)

    def _with_held_out(
        self, of_class: np.ndarray, ratio: float, sizes: np.ndarray, readable: np.ndarray
    ) -> np.ndarray:
        """Quotas of the segments, int64 ``[2·C]``, from those of the classes, ``[C]``.

        Held-out samples have their own share. They fill the quota of a class that has too few
        readable training samples.
        """
        half = len(of_class)
        held_out = sizes[half:]
        least = np.maximum(of_class - readable[:half], 0)
        most = np.minimum(of_class, readable[half:])
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
