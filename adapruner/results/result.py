"""The result of a pruning run: kept indices, gate logits, and the record of the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from adapruner._util.checks import check_same_dataset
from adapruner._util.files import pack_texts, read_file, unpack_texts, write_file
from adapruner.errors import FileFormatError
from adapruner.results.checks import check_content, check_tensors

if TYPE_CHECKING:
    from adapruner.data.sources.base import Source
    from adapruner.results.suspects import Suspects


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
        config: the settings of the run. ``balance`` is what the kept set was drawn with: "class",
            "floor", None, or "neighbours" if each sample was compared with its neighbours in the
            dataset.
        dataset: kind and number of samples; root folder and class names where known.
        history: one entry per epoch, in order: ``epoch``, ``phase`` ("warm-up" or "prune"),
            ``samples_read`` (training samples given to a loss), ``samples_skipped`` (the other
            samples that the epoch was to train on), ``samples_evaluated`` (held-out samples),
            ``kept``, ``explored``, ``keep_ratio`` (scheduled), ``slope``, ``mean_gate``,
            ``open_share`` (share of gates with m > 0), ``training_loss``, ``validation_loss`` (or
            None), ``decision`` of the controller ("warm-up", "advance", "pause", "back off"),
            ``seconds``. Epochs of the method "sampled" after the warm-up also have ``fitted``, the
            share of samples whose last loss is below a tenth of the mean loss of the first epoch,
            ``chance``, how much the kept set would be a random draw: 1 if it were one, and
            ``neighbours``, the correlation of the gate logits of neighbours in the dataset, minus
            that of samples further apart, with the means of known classes taken out.
        selected_epoch: the epoch whose selection was chosen on held-out data. None if the last
            selection was taken: the top-k of ``gate_logits``, or a draw by them.
        forced: whether the run ended before it trained an epoch at the keep ratio, so that the last
            selection was cut to size. The controller paused too often, or there were too few
            epochs.
        partial: whether the result was made before the end of the run. The kept set is then that of
            a run that ended at this moment, and ``saved`` compares with as many epochs.
        sample_losses: last loss of every sample, float32 ``[N]``, NaN where no loss was seen.
        relative_losses: mean over the visits of every sample of its loss divided by the mean loss
            of the epoch so far, float32 ``[N]``; 1 is typical, NaN where no loss was seen.
        visits: number of visits of every sample with a finite loss, int16 ``[N]``. A visit is one
            epoch that read the sample.
        predicted: class that the model predicted at the last visit, int32 ``[N]``, −1 where none is
            known. Only logits ``[B, C]`` predict one class for each sample.
        draw_keys: keys of the final draw, float32 ``[N]``; the kept set has the largest. None for a
            method that does not draw.
        quota_labels: classes with shares or floors of their own, integers ``[N]``, where known.
        held_out: dataset indices of the held-out samples, int64, where some were held out.
        targets: class of every sample, int64 ``[N]``, where known.
        paths: path of every sample relative to the image folder, for an image folder.
        unreadable: (index, reason) of the unreadable samples. They are never kept.
        not_finite: indices of the first samples that had a loss that was not finite.
        warnings: texts of the warnings about the run, its dataset and its kept set.
        saved: savings of the kept set and of the run: ``samples``, ``bytes`` (on disk, where
            known); ``samples_read`` of the run and ``samples_read_full`` of an ordinary run with as
            many epochs; ``seconds`` of the run and ``seconds_full``, an estimate for an ordinary
            run from the run's seconds per sample; ``bytes_read`` from an object store, by all ranks
            and their workers. A resumed run counts the bytes since it was resumed.
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
    partial: bool = False
    sample_losses: Tensor | None = None
    relative_losses: Tensor | None = None
    visits: Tensor | None = None
    predicted: Tensor | None = None
    draw_keys: Tensor | None = None
    quota_labels: Tensor | None = None
    held_out: Tensor | None = None
    targets: Tensor | None = None
    paths: Sequence[str] | None = None
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
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
        told = [entry for entry in self.history if entry.get("fitted") is not None]
        if not told:
            return ""
        text = f"The model has fitted {100 * told[-1]['fitted']:.3g} % of the data."
        if (told[-1].get("chance") or 0.0) >= MOSTLY_CHANCE:
            text += " The selection is mostly chance."
        return text

    @property
    def run_keep_ratio(self) -> float:
        """Keep ratio of the run. It differs from ``keep_ratio`` in a result of :meth:`at`."""
        return float(self.config.get("run_keep_ratio") or self.keep_ratio)

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

    def subset(
        self,
        dataset: Any,
        fingerprint: str | None = None,
        *,
        transform: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The kept samples of ``dataset``.

        Args:
            dataset: the dataset that was pruned, with any transforms. Another form of it with the
                same fingerprint works too: a path or a tuple of arrays is read as a Source.
            fingerprint: identifies ``dataset`` if its content does not: the string that was given
                to the run, or ``result.fingerprint`` if you know that the samples are the same.
            transform: for a path or arrays, applied to each input. Where None, the images of a path
                become tensors in [0, 1]. Images of several sizes need a transform for batches.

        Returns:
            For a Hugging Face dataset, a dataset of that library. For any other dataset, a
            :class:`torch.utils.data.Subset`.

        Raises:
            DatasetMismatchError: ``dataset`` has another fingerprint or another length than the
                dataset that was pruned.
            TypeError, ValueError: ``dataset`` is not a dataset; see
                :func:`adapruner.data.as_source`. Or ``transform`` is given for a dataset that has
                transforms of its own.
        """
        from adapruner.data.loaders.choice import training_source
        from adapruner.data.sources.find import as_source, fitting
        from adapruner.data.sources.hugging_face import is_hugging_face

        is_data = isinstance(dataset, (str, os.PathLike, tuple, list))
        places = fitting(dataset, self.dataset.get("columns"), self.dataset.get("target"))
        if is_data:
            source = training_source(dataset, transform, fingerprint=fingerprint, **places)
        elif transform is not None:
            raise ValueError(
                f"transform is for paths and arrays; found one with a {type(dataset).__name__}, "
                "which can have a transform of its own"
            )
        else:
            source = as_source(dataset, fingerprint=fingerprint, **places)
        self.check_dataset(source)
        if is_hugging_face(dataset):
            return dataset.select(self.indices.numpy())
        return Subset(source if is_data else dataset, self.indices.tolist())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as a safetensors file, atomically.

        Raises:
            ValueError: ``path`` is a file of the dataset.
            OSError: the folder is missing or cannot be written, or the disk is full.
        """
        from adapruner.results.protected import check_replaces_no_data

        check_replaces_no_data(path, self.dataset, self.paths, self.source)
        tensors = {"indices": self.indices, "gate_logits": self.gate_logits}
        known = {name: getattr(self, name) for name in _OPTIONAL}
        tensors |= {name: tensor for name, tensor in known.items() if tensor is not None}
        content = {name: getattr(self, name) for name in (*_IN_JSON, *_NEWER)}
        if self.paths is not None:
            tensors["paths"], content["path_bytes"] = pack_texts(self.paths)
        write_file(path, "result", tensors, content)

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
        try:
            check_tensors(tensors)
            check_content(content, len(tensors["gate_logits"]))
        except FileFormatError as error:
            raise FileFormatError(f"{path} is not a result: {error}") from error
        names = (*_IN_JSON, *_NEWER)
        values: dict[str, Any] = {name: content[name] for name in names if name in content}
        values |= {name: tensors[name] for name in _OPTIONAL if name in tensors}
        values["unreadable"] = [(index, reason) for index, reason in content["unreadable"]]
        if "paths" in tensors:
            paths = unpack_texts(tensors["paths"], content.get("path_bytes", 0))
            if len(paths) != len(tensors["gate_logits"]):
                expected = len(tensors["gate_logits"])
                raise FileFormatError(
                    f"{path} is not a result: expected {expected} paths; found {len(paths)}"
                )
            values["paths"] = paths
        return cls(indices=tensors["indices"], gate_logits=tensors["gate_logits"], **values)

    def to_dataframe(self, source: Source | None = None) -> Any:
        """The table of all samples, as a pandas DataFrame, or a polars one without pandas.

        It has one row for each sample, in the order of the dataset, and these columns:

        =================  ====================================================================
        column             value
        =================  ====================================================================
        index              dataset index
        path               path relative to the image folder, or SHARD.tar/MEMBER
        label, class       class of the sample, and its name
        kept               whether it is in the kept set
        reason             why: "kept", "easy", "does not fit", "low score", "drawn out",
                           "quota", "unreadable" or "never seen" (docs/answers.md)
        score              ranking score, ``gate_logits``
        last_loss          loss at the last visit
        relative_loss      its losses as multiples of the mean loss of their epochs, averaged over
                           all visits; 1 is typical
        epochs_seen        number of visits
        predicted,         class that the model predicted at the last visit, and its name
        predicted_class
        =================  ====================================================================

        A column is left out if no value of it is known. A single value that is not known is
        missing.

        Args:
            source: the dataset that was pruned, for the paths of shards and for results without
                targets. Where None, it is found as in :meth:`export`.

        Raises:
            ImportError: neither pandas nor polars is installed.
            DatasetMismatchError: the dataset is not the dataset that was pruned.

        Example:
            >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
            >>> import adapruner
            >>> model = torch.nn.Linear(5, 3)
            >>> result = adapruner.fast_prune(model, (x, y), 0.5, 3, progress=False)
            >>> len(result.to_dataframe())
            64
        """
        from adapruner.results.export import find_source
        from adapruner.results.table import to_dataframe

        return to_dataframe(self, find_source(self, source, needed="csv"))

    def suspects(self, targets: Any | None = None) -> Suspects:
        """Samples whose labels are likely wrong, the likeliest first.

        A suspect has a predicted class that is not its label, and a relative loss above the average
        of its class. Suspects are ranked by their relative loss plus their last loss as a multiple
        of the mean last loss. No further training or evaluation is needed. docs/answers.md has
        precision and recall.

        Args:
            targets: the class of each sample, whole numbers ``[N]``. None: those of the dataset of
                the run, where it lists them.

        Raises:
            ValueError: the classes of the samples are not known or not ``[N]``, or the result lacks
                the predicted classes or the losses.

        Example:
            >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
            >>> import adapruner
            >>> model = torch.nn.Linear(5, 3)
            >>> result = adapruner.fast_prune(model, (x, y), 0.5, 3, progress=False)
            >>> suspects = result.suspects()
            >>> bool((suspects.labels != suspects.predicted).all())
            True
        """
        from adapruner.results.suspects import find_suspects

        return find_suspects(self, targets)

    def at(self, keep_ratio: float) -> PruneResult:
        """The result at another keep ratio, without training.

        The samples are taken by the scores of this run, or by the keys of its draw, and with its
        quotas. A smaller set is part of the kept set, and a larger set contains it, but for a few
        samples where classes or held-out samples have shares, which are rounded. The set is not the
        set of a run at that ratio: such a run trains on other samples, and a method may rank in
        another way at another ratio. docs/answers.md has the overlaps.

        Args:
            keep_ratio: share of the samples to keep, in (0, 1].

        Raises:
            TypeError: ``keep_ratio`` is not a real number.
            ValueError: ``keep_ratio`` is not in (0, 1], keeps no sample, or many of the samples to
                keep cannot be read.
        """
        from adapruner.results.other_ratio import at

        return at(self, keep_ratio)

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


# Tensors that a result may lack.
_OPTIONAL = (
    *("sample_losses", "relative_losses", "visits", "predicted", "draw_keys"),
    *("quota_labels", "held_out", "targets"),
)
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

# Files of earlier versions lack them.
_NEWER = ("partial", "warnings")
