"""The result of a pruning run: kept indices, gate logits, and the record of the run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from adapruner._util.checks import check_same_dataset
from adapruner._util.files import read_file, write_file
from adapruner.errors import FileFormatError

if TYPE_CHECKING:
    from adapruner.data.sources.base import Source


# A kept set with at least this `chance` in the history is called mostly chance.
MOSTLY_CHANCE = 0.9


@dataclass(frozen=True, eq=False)
class PruneResult:
    """The outcome of a pruning run.

    Attributes:
        indices: kept dataset indices, int64 ``[K]``, ascending.
        gate_logits: ranking score of every sample at the end, float32 ``[N]``; larger is better.
            The method "published" uses the gate logits. The method "sampled" uses 1 minus the
            distance between the sample's mean pressure and the target range (docs/method.md).
            −inf marks an unreadable sample, −1000 a sample that never had a finite loss.
        keep_ratio: the keep ratio of the run; ``K = floor(keep_ratio * N + 0.5)``, or the number of
            readable samples if that is less.
        fingerprint: SHA-256 that identifies the samples of the dataset.
        config: the settings of the run.
        dataset: kind and number of samples; root folder and class names where known.
        history: one entry per epoch, in order: ``epoch``, ``phase`` ("warm-up" or "prune"),
            ``samples_read`` (training samples read), ``samples_evaluated`` (held-out samples),
            ``kept``, ``explored``, ``keep_ratio`` (scheduled), ``slope``, ``mean_gate``,
            ``open_share`` (share of gates with m > 0), ``training_loss``, ``validation_loss`` (or
            None), ``decision`` of the controller ("warm-up", "advance", "pause", "back off"),
            ``seconds``. Epochs of the method "sampled" after the warm-up also have ``fitted``, the
            share of samples whose last loss is below a tenth of the mean loss of the first epoch,
            and ``chance``, how much the kept set would be a random draw: 1 if it were one.
        selected_epoch: the epoch whose selection was chosen on held-out data. None if the last
            selection was taken: the top-k of ``gate_logits``, or a draw by them.
        forced: whether the run ended before it trained an epoch at the keep ratio, so that the last
            selection was cut to size. The controller paused too often, or there were too few
            epochs.
        sample_losses: last loss of every sample, float32 ``[N]``, NaN where no loss was seen.
        targets: class of every sample, int64 ``[N]``, where known.
        unreadable: (index, reason) of the unreadable samples. They are never kept.
        not_finite: indices of the first samples that had a loss that was not finite.
        saved: savings of the kept set and of the run: ``samples``, ``bytes`` (on disk, where
            known); ``samples_read`` of the run and ``samples_read_full`` of an ordinary run with as
            many epochs; ``seconds`` of the run and ``seconds_full``, an estimate for an ordinary
            run from the run's seconds per sample.
        versions: versions of adapruner, torch and Python.
        source: the dataset, if the result was made in this process. It is never saved.
    """

    indices: Tensor
    gate_logits: Tensor
    keep_ratio: float
    fingerprint: str
    config: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    selected_epoch: int | None = None
    forced: bool = False
    sample_losses: Tensor | None = None
    targets: Tensor | None = None
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    source: Source | None = None

    @property
    def num_samples(self) -> int:
        """N, the number of samples of the dataset."""
        return self.gate_logits.numel()

    @property
    def kept(self) -> Tensor:
        """Bool ``[N]``: True where a sample is kept."""
        mask = torch.zeros(self.num_samples, dtype=torch.bool, device="cpu")
        mask[self.indices] = True
        return mask

    @property
    def fit(self) -> str:
        """How much of the data the model has fitted, in a sentence.

        A second sentence says if the kept set is little more than a random draw. Empty if the
        history does not tell.
        """
        told = [entry for entry in self.history if "fitted" in entry]
        if not told:
            return ""
        text = f"The model has fitted {100 * told[-1]['fitted']:.3g} % of the data."
        if told[-1].get("chance", 0.0) >= MOSTLY_CHANCE:
            text += " The selection is mostly chance."
        return text

    def __repr__(self) -> str:
        return (
            f"PruneResult(kept {self.indices.numel()} of {self.num_samples}, "
            f"keep_ratio={self.keep_ratio}, fingerprint={self.fingerprint[:12]})"
        )

    def check_dataset(self, dataset: Source | str) -> None:
        """Raise unless ``dataset`` is the dataset that was pruned.

        Args:
            dataset: a fingerprint, or a Source. The length of a Source is compared, and its
                fingerprint unless the result has none.

        Raises:
            DatasetMismatchError: it is another dataset.
        """
        owner = "this result"
        if isinstance(dataset, str):
            check_same_dataset(owner, "fingerprint", self.fingerprint, dataset)
            return
        if self.fingerprint:  # a Pruner that never saw its dataset leaves none
            check_same_dataset(owner, "fingerprint", self.fingerprint, dataset.fingerprint())
        check_same_dataset(owner, "number of samples", self.num_samples, len(dataset))

    def subset(self, dataset: Any, fingerprint: str | None = None) -> Subset[Any]:
        """The kept samples of ``dataset`` as a :class:`torch.utils.data.Subset`.

        Args:
            dataset: the dataset that was pruned, with any transforms. Another form of it with the
                same fingerprint works too: a path or a tuple of arrays is read as a Source.
            fingerprint: identifies ``dataset`` if its content does not: the string that was given
                to the run, or ``result.fingerprint`` if you know that the samples are the same.

        Raises:
            DatasetMismatchError: ``dataset`` has another fingerprint or another length than the
                dataset that was pruned.
            TypeError, ValueError: ``dataset`` is not a dataset; see
                :func:`adapruner.data.as_source`.
        """
        from adapruner.data.sources.find import as_source

        source = as_source(dataset, fingerprint=fingerprint)
        self.check_dataset(source)
        is_data = isinstance(dataset, (str, os.PathLike, tuple))
        return Subset(source if is_data else dataset, self.indices.tolist())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as a safetensors file, atomically.

        Raises:
            OSError: the folder is missing or cannot be written, or the disk is full.
        """
        tensors = {"indices": self.indices, "gate_logits": self.gate_logits}
        if self.sample_losses is not None:
            tensors["sample_losses"] = self.sample_losses
        if self.targets is not None:
            tensors["targets"] = self.targets
        write_file(path, "result", tensors, {name: getattr(self, name) for name in _IN_JSON})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruneResult:
        """Read a result that :meth:`save` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            FileFormatError: the file is cut off, altered, of another version, or not a result.
        """
        tensors, content = read_file(path, "result")
        missing = {"indices", "gate_logits"} - set(tensors) | set(_IN_JSON) - set(content)
        if missing:
            raise FileFormatError(
                f"{path} is not a whole result; not found: {', '.join(sorted(missing))}"
            )
        content["unreadable"] = [(index, reason) for index, reason in content["unreadable"]]
        return cls(
            indices=tensors["indices"],
            gate_logits=tensors["gate_logits"],
            sample_losses=tensors.get("sample_losses"),
            targets=tensors.get("targets"),
            **{name: content[name] for name in _IN_JSON},
        )

    def export(
        self, destination: str | os.PathLike[str], to: str, source: Source | None = None
    ) -> None:
        """Write the kept set for other tools: see :func:`adapruner.results.export.export`."""
        from adapruner.results.export import export

        export(self, destination, to=to, source=source)

    def report(self, path: str | os.PathLike[str], source: Source | None = None) -> None:
        """Write a self-contained HTML report: see :func:`adapruner.report.write_report`."""
        from adapruner.report import write_report

        write_report(self, path, source=source)


_IN_JSON = (
    "keep_ratio",
    "fingerprint",
    "config",
    "dataset",
    "history",
    "selected_epoch",
    "forced",
    "unreadable",
    "not_finite",
    "saved",
    "versions",
)
