"""Adaptive dataset pruning (ADP): which samples the next epoch reads, and which are kept.

A selection keeps exactly ``keep_count(ratio, N)`` samples: the largest gate logits, equal ones to
the lower index; within its share of each class where the classes are balanced. Samples held out of
the training data compete among themselves for their own share. A sample that cannot be read
(m = −inf) is never kept.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from adapruner import ops
from adapruner.gates import Gates


def keep_count(ratio: float, num_samples: int) -> int:
    """K = ⌊ratio·N + ½⌋, in float64: the one place where a ratio becomes a count."""
    return math.floor(float(ratio) * num_samples + 0.5)


def check_keep_ratio(keep_ratio: float, num_samples: int) -> float:
    """The ratio as a float, if it is one and keeps at least one sample.

    Raises:
        TypeError: it is no real number.
        ValueError: it is not in (0, 1], or less than one sample would be kept.
    """
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, (int, float, np.floating)):
        raise TypeError(f"keep_ratio must be a number in (0, 1]; found {keep_ratio!r}")
    if not 0 < keep_ratio <= 1:
        raise ValueError(
            f"keep_ratio must be in (0, 1], the share of samples to keep; found {keep_ratio}"
        )
    if keep_count(keep_ratio, num_samples) < 1:
        raise ValueError(
            f"keep_ratio {keep_ratio} of {num_samples} samples keeps fewer than one sample"
        )
    return float(keep_ratio)


def unpack(mask: Tensor, num_samples: int) -> np.ndarray:
    """A bit mask (uint8 ``[ceil(N / 8)]``) as bools ``[N]``."""
    return np.unpackbits(mask.cpu().numpy(), count=num_samples, bitorder="little").view(bool)


def pack(kept: np.ndarray) -> Tensor:
    """Bools ``[N]`` as a bit mask."""
    return torch.from_numpy(np.packbits(kept, bitorder="little"))


def largest_remainder(total: int, sizes: np.ndarray, available: np.ndarray) -> np.ndarray:
    """``total`` dealt out in proportion to ``sizes``, none beyond ``available``; int64.

    The largest remainders get the seats that rounding down leaves, equal ones the lower index
    first; what a full one cannot take goes on to the others in the same way.

    >>> largest_remainder(7, np.array([5, 3, 2]), np.array([5, 3, 2]))
    array([4, 2, 1])
    """
    if total > available.sum():
        raise ValueError(f"{total} samples are to be kept and only {available.sum()} can be read")
    dealt = np.zeros(len(sizes), dtype=np.int64)
    while (left := total - int(dealt.sum())) > 0:
        open_ = dealt < available
        weight = np.where(open_, sizes, 0)
        # Whole numbers throughout (Python's, of any size): an exact tie stays one.
        share = [left * int(w) for w in weight]
        whole = sum(int(w) for w in weight)
        gain = np.array([s // whole for s in share], dtype=np.int64)
        remainder = [s % whole for s in share]
        order = sorted(range(len(sizes)), key=lambda j: (-remainder[j], j))
        seats = [j for j in order if open_[j]][: left - int(gain.sum())]
        gain[seats] += 1
        dealt = np.minimum(dealt + gain, available)
    return dealt


def _largest_remainder_within(
    total: int, sizes: np.ndarray, least: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """The same with ``least`` or more each: who would get less gets that, the others the rest."""
    raised = np.zeros(len(sizes), dtype=bool)
    while True:
        free = np.where(raised, 0, 1)
        rest = total - int(least[raised].sum())
        dealt = np.where(raised, least, largest_remainder(rest, sizes * free, most * free))
        if (dealt >= least).all():
            return dealt
        raised |= dealt < least


class Selection:
    """The samples to read in an epoch: an exact top-k of the gates, and some of the pruned.

    Args:
        num_samples: N.
        keep_ratio: r, the ratio wanted in the end.
        seed: orders the exploration of samples that have waited equally long.
        labels: int64 ``[N]``; given, every class keeps its proportional share.
        held_out: int64 indices that are never trained on.
        explore: share of N of pruned samples to read in each epoch, in [0, 1].

    Attributes:
        mask: bit mask of the samples kept by the last top-k (all at the start).
        explored: int64, the pruned samples that this epoch reads besides.
    """

    def __init__(
        self,
        num_samples: int,
        keep_ratio: float,
        *,
        seed: int = 0,
        labels: Tensor | None = None,
        held_out: Tensor | None = None,
        explore: float = 0.02,
    ) -> None:
        self.num_samples = num_samples
        self.keep_ratio = check_keep_ratio(keep_ratio, num_samples)
        self.seed = seed
        self.explore = explore
        self.held_out = np.zeros(num_samples, dtype=bool)
        if held_out is not None:
            self.held_out[held_out.numpy()] = True
        self._classes = 1
        classes = np.zeros(num_samples, dtype=np.int64)
        if labels is not None:
            classes = labels.numpy()
            self._classes = int(classes.max()) + 1
        # Segment = class, then the same again for those held out.
        segments = classes + self._classes * self.held_out
        self._segments = None
        if labels is not None or held_out is not None:
            width = np.min_scalar_type(-2 * self._classes)
            self._segments = torch.from_numpy(segments.astype(width))
        self._sizes = np.bincount(segments, minlength=2 * self._classes)
        self.mask = pack(np.ones(num_samples, dtype=bool))
        self.explored = torch.zeros(0, dtype=torch.int64)

    @property
    def kept_count(self) -> int:
        """How many samples :attr:`mask` keeps."""
        return int(unpack(self.mask, self.num_samples).sum())

    def kept_indices(self) -> Tensor:
        """int64, ascending: what :attr:`mask` keeps."""
        return torch.from_numpy(np.flatnonzero(unpack(self.mask, self.num_samples)))

    def reads(self) -> np.ndarray:
        """Bools ``[N]``: what the epoch trains on, kept and explored, nothing held out."""
        reads = unpack(self.mask, self.num_samples) & ~self.held_out
        reads[self.explored.numpy()] = True
        return reads

    def select(self, gates: Gates, ratio: float, slope: float) -> None:
        """Keep the exact top-k at ``ratio``, and bring the gates' sums to ``slope``.

        Raises:
            ValueError: fewer samples can be read than are to be kept in the end.
        """
        if self._segments is None:
            readable = gates.integer("population")
            count = self._clip(keep_count(ratio, self.num_samples), readable)
            self.mask, sums = ops.topk_mask(gates.logits, count, slope)
        else:
            quotas = torch.from_numpy(self.quotas(gates, ratio))
            segments = self._segments.to(gates.logits.device)
            self.mask, sums = ops.segmented_topk(gates.logits, segments, quotas, slope)
        gates.use_sums(slope, sums)

    def quotas(self, gates: Gates, ratio: float) -> np.ndarray:
        """How many of each segment a selection at ``ratio`` keeps, int64 ``[2·classes]``."""
        assert self._segments is not None
        closed = torch.nonzero(gates.logits == -torch.inf).flatten().cpu()
        lost = np.bincount(self._segments[closed].numpy(), minlength=len(self._sizes))
        available = self._sizes - lost
        half = self._classes
        count = self._clip(keep_count(ratio, self.num_samples), int(available.sum()))
        trained, held_out = self._sizes[:half], self._sizes[half:]
        of_class = largest_remainder(count, trained + held_out, available[:half] + available[half:])
        # What the readable training samples of a class cannot fill, those held out must.
        least = np.maximum(of_class - available[:half], 0)
        most = np.minimum(of_class, available[half:])
        share = keep_count(ratio, int(held_out.sum()))
        share = min(max(share, int(least.sum())), int(most.sum()))
        of_held_out = _largest_remainder_within(share, held_out, least, most)
        return np.concatenate([of_class - of_held_out, of_held_out])

    def _clip(self, count: int, readable: int) -> int:
        """A count on the way down is cut to what can be read; the final one must be met."""
        wanted = keep_count(self.keep_ratio, self.num_samples)
        if wanted > readable:
            raise ValueError(
                f"keep_ratio {self.keep_ratio} of {self.num_samples} samples asks for {wanted}, "
                f"and only {readable} of them can be read"
            )
        return min(count, readable)

    def explore_pruned(self, gates: Gates, epoch: int) -> None:
        """Choose the pruned samples that the coming epoch reads: those unvisited the longest, equal
        ones in the order of a seeded hash."""
        limit = int(self.explore * self.num_samples)
        pruned = np.flatnonzero(
            ~unpack(self.mask, self.num_samples)
            & ~self.held_out
            & (gates.logits != -torch.inf).cpu().numpy()
        )
        if len(pruned) > limit:
            age = gates.age.cpu().numpy()[pruned]
            tie = _hash(pruned, self.seed, epoch)
            pruned = np.sort(pruned[np.lexsort((tie, -age.astype(np.int16)))[:limit]])
        self.explored = torch.from_numpy(pruned)


def _hash(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A well-mixed uint64 of each index (the finaliser of SplitMix64)."""
    start = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    x = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
