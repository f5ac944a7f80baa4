"""Pruner: dataset pruning in the user's own training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from adapruner import ops
from adapruner._util.checks import check_loss, check_tensors, check_whole_weight
from adapruner.pruning.constant import CrossEntropy, SampleLoss
from adapruner.pruning.gates import is_visit
from adapruner.pruning.record import logits_of_classes, predicted_classes
from adapruner.pruning.run import Run
from adapruner.pruning.sampler import PrunedBatchSampler
from adapruner.pruning.visits import Batch

if TYPE_CHECKING:
    from adapruner.data.loaders.torch_loader import PrunedLoader
    from adapruner.results.result import PruneResult


class Pruner(Run):
    """Learns which samples to keep while the user's own loop trains the model.

    A loop calls :meth:`loss` (or :meth:`weigh`) once for each batch, :meth:`step` at the end of
    each epoch, and :meth:`result` at the end. An epoch trains on the samples of :meth:`reads`; the
    loader of :meth:`loader` and :class:`adapruner.PrunedSampler` read them. The model and the
    optimiser are never touched.

    Args:
        num_samples: N, the number of samples of the dataset.
        keep_ratio: share of the samples to keep, in (0, 1]; exactly ⌊keep_ratio·N + ½⌋ are kept.
            If fewer can be read, all readable samples are kept, with a warning. If more than 5 % of
            N are missing to that number, it is an error.
        epochs: epochs of the run, at least 1.
        warmup_epochs: epochs at the start that train on everything, unweighted, while the gates do
            not step; 0 for a model that is trained already. About a tenth of ``epochs`` where None.
        method: "sampled" draws samples by their losses; "published" keeps the largest gate logits,
            as the paper does.
        seed: seed of the order, the exploration and the augmentation.
        labels: integers ``[N]``: the class of each sample, or another group, such as the video of
            a frame.
        balance: what ``labels`` do. "class": every group keeps exactly its share. "floor": three
            quarters of the kept set are dealt evenly over the classes
            (:func:`adapruner.pruning.quotas.class_floors`), and the draw decides on the rest; it
            needs the method "sampled". Without ``labels``, classes have floors where the dataset
            of the loader knows its targets. Where neighbours in the dataset are alike, as frames
            of a video are, the method "sampled" compares each sample with its neighbours instead
            of giving floors, and warns.
        held_out: dataset indices that the loop does not train on. They take their losses from
            :meth:`observe` and compete among themselves for their own share.
        explore: each epoch also reads this share of N of pruned samples, so that they can return.
        normalize_loss: divide losses by their running mean in the pressure, for losses that are not
            on the scale of cross entropy. It has no effect on "sampled", which always divides
            losses by their mean in the first epoch.
        track_losses: keep the last loss of every sample, its relative loss, its visits and its
            predicted class (14 bytes a sample). Gates then also step in epochs that do not
            visit them. Without it, a later visit stands for those epochs, short runs select less
            like runs that visit all, "sampled" reads evenly, and the result cannot say why a sample
            was pruned.
        device: device of the gates and the losses, "cpu" or a CUDA device; torch's default where
            None. Errors that a GPU finds in a batch are raised by :meth:`step`.
        process_group: the processes that train on different samples, as a ``torch.distributed``
            process group. Where None, all processes if ``torch.distributed`` is initialised. All of
            them must make the pruner with the same arguments.

    With W ranks and batches of B, the kept set is that of one process with batches of W·B and the
    same losses. A rank calls :meth:`loss` (or :meth:`weigh`) as often as the others: the loader
    gives all ranks the same number of batches. See docs/many-gpus.md.

    Attributes:
        epoch: the current epoch, from 0.
        history: one entry for each epoch that has ended; see :class:`adapruner.PruneResult`.
        ranks: rank and number of the processes that prune together.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value, or another value on another
            rank.

    Example:
        >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
        >>> model = torch.nn.Linear(5, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruner = Pruner(64, keep_ratio=0.5, epochs=4)
        >>> loader = pruner.loader((x, y), batch_size=16)
        >>> for epoch in range(4):
        ...     for inputs, targets, ids in loader:
        ...         loss = pruner.loss(model(inputs), targets, ids)
        ...         loss.backward(); optimizer.step(); optimizer.zero_grad()
        ...     summary = pruner.step()
        >>> len(pruner.result().indices)
        32
    """

    # --- the samples of an epoch

    def batches(
        self, batch_size: int, drop_last: bool = False, block_size: int | None = None
    ) -> Iterator[Tensor]:
        """The batches of the current epoch, as indices, for data that is in memory already.

        The data only needs random access, so it can lie on the device:

        >>> x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
        >>> model, pruner = torch.nn.Linear(5, 3), Pruner(64, epochs=2)
        >>> for ids in pruner.batches(16):
        ...     loss = pruner.loss(model(x[ids]), y[ids], ids)

        Args:
            batch_size: samples in a batch; the last one may have fewer.
            drop_last: leave out a last batch that is not full.
            block_size: see :func:`adapruner.pruning.order.block_order`.

        Returns:
            Dataset indices of this rank's share, int64, on the gates' device, in the order of
            :meth:`loader`.
        """
        sampler = PrunedBatchSampler(self, batch_size, drop_last, block_size=block_size)
        return (self._on_device(ids) for ids in sampler.batches())

    def loader(
        self,
        dataset: Any,
        batch_size: int = 128,
        *,
        transform: Callable[[Any], Any] | None = None,
        columns: tuple[str | Sequence[str], str] | None = None,
        target: str | int | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        pin_memory: bool = False,
        drop_last: bool = False,
        block_size: int | None = None,
        on_error: str = "skip",
    ) -> PrunedLoader:
        """A loader of ``(inputs, targets, ids)`` for the samples that the current epoch reads.

        Items of other forms keep their form, and get the ids as :func:`adapruner.with_ids` adds
        them: a batch of dicts has them at the key "ids". Each rank reads its share. All ranks must
        make the loader.

        Args:
            dataset: anything that :func:`adapruner.data.as_source` takes, of N samples.
            batch_size, num_workers, collate_fn, pin_memory, drop_last: as in
                :class:`torch.utils.data.DataLoader`.
            transform: applied to each input. Where None, the images of a folder, of shards or of a
                Hugging Face dataset become tensors in [0, 1] and must have one size.
            columns, target: where an item has its inputs and its target; see
                :func:`adapruner.data.as_source`.
            block_size: see :func:`adapruner.pruning.order.block_order`.
            on_error: "skip" leaves out unreadable samples and lists them in the result; "raise"
                stops at the first one.

        Raises:
            DatasetMismatchError: the dataset has another length than N.
        """
        from adapruner.data.loaders.choice import training_source
        from adapruner.data.loaders.torch_loader import PrunedLoader

        return PrunedLoader(
            training_source(dataset, transform, collate_fn, columns=columns, target=target),
            self,
            batch_size,
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            drop_last=drop_last,
            block_size=block_size,
            on_error=on_error,
        )

    # --- the losses of a batch

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        weight: Tensor | None = None,
        weighted_mean: bool = False,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        overwrite_logits: bool = False,
    ) -> Tensor:
        """The training loss of a batch: cross entropy. Each call also steps the gates.

        Some methods weight the loss by the gates, as the published method does. For other methods
        the loss is the unweighted mean.

        Gates step once for each call with gradients enabled, also if the loss is not used. They do
        not step under ``no_grad``, nor when activation checkpointing repeats a forward pass.

        Args:
            logits: ``[B, C]`` or ``[B, C, ...]``.
            target: ``[B]`` or ``[B, ...]``, integers.
            ids: ``[B]``, dataset indices of the samples, on any device.
            weight, ignore_index, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
                Gates see the losses with their class weights.
            weighted_mean: divide the loss by the mean weight of the batch
                (:func:`adapruner.ops.mean_weight`), as ``cross_entropy`` does with ``weight``.
                Otherwise the loss is a plain mean of weighted losses. Gates see the losses of the
                samples, which this does not change. Of many ranks, each divides by the mean weight
                of its part, as with ``cross_entropy`` under DDP.
            overwrite_logits: see :func:`adapruner.ops.masked_cross_entropy`.

        Returns:
            Scalar, with its graph: the mean over the batch, multiplied by W·b/Σb where W ranks have
            different numbers b of samples.
        """
        check_tensors(logits=logits, target=target)
        ids, factor = self._own(ids)
        if factor:
            if self._notes_targets():
                by = CrossEntropy(weight, ignore_index, label_smoothing)
                self.constant.note(by, logits.shape, target, ids)
        else:
            logits, target, overwrite_logits = logits[:0], target[:0], False
        predicted = predicted_classes(logits)  # now, since the logits may be overwritten
        losses = ops.masked_cross_entropy(
            logits,
            target,
            ids,
            self.gates.logits,
            self.gates.state,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            overwrite_logits=overwrite_logits,
        )
        loss = self._learned(ids, losses, factor, predicted)
        return _averaged(loss, target, weight, weighted_mean, ignore_index)

    def linear_loss(
        self,
        hidden: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        weighted_mean: bool = False,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """:meth:`loss` of the logits of a last linear layer, without holding all logits at once.

        Use it for large vocabularies, where logits are most of the memory of a step. Gates step as
        in :meth:`loss`.

        Args:
            hidden: inputs of the layer, ``[B, H]`` or ``[B, ..., H]``; ``[B, T, H]`` for a language
                model.
            linear_weight: ``[C, H]``; for a language model the weight of its head.
            target: ``[B]`` or ``[B, ...]``, integers; for a language model the next tokens.
            ids: ``[B]``, dataset indices of the samples.
            linear_bias: ``[C]``.
            weight, ignore_index, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
                Gates see the losses with their class weights.
            weighted_mean: divide the loss by the mean weight of the batch
                (:func:`adapruner.ops.mean_weight`), as ``cross_entropy`` does with ``weight``.
                Otherwise the loss is a plain mean of weighted losses. Gates see the losses of the
                samples, which this does not change. Of many ranks, each divides by the mean weight
                of its part, as with ``cross_entropy`` under DDP.

        Returns:
            Scalar, with its graph on ``hidden``, ``linear_weight`` and ``linear_bias``.

        Raises:
            TypeError: the weight is sharded: by FSDP, tensor parallelism or DeepSpeed ZeRO-3. Pass
                the logits of the model to :meth:`loss` instead.

        Example:
            >>> head = torch.nn.Linear(8, 1000)
            >>> hidden, tokens = torch.randn(2, 5, 8), torch.randint(0, 1000, (2, 5))
            >>> pruner = Pruner(64, epochs=2)
            >>> ids = torch.tensor([7, 40])
            >>> loss = pruner.linear_loss(hidden, head.weight, tokens, ids, linear_bias=head.bias)
            >>> loss.backward()
        """
        check_tensors(hidden=hidden, target=target)
        check_whole_weight("linear_weight", linear_weight)
        if linear_bias is not None:
            check_whole_weight("linear_bias", linear_bias)
        ids, factor = self._own(ids)
        if factor:
            if self._notes_targets():
                by = CrossEntropy(weight, ignore_index, label_smoothing)
                shape = torch.Size((*hidden.shape[:-1], len(linear_weight)))
                self.constant.note(by, shape, target, ids)
        else:
            hidden, target = hidden[:0], target[:0]
        losses = ops.masked_linear_cross_entropy(
            hidden,
            linear_weight,
            linear_bias,
            target,
            ids,
            self.gates.logits,
            self.gates.state,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
        loss = self._learned(ids, losses, factor)
        return _averaged(loss, target, weight, weighted_mean, ignore_index)

    def weigh(self, sample_loss: Tensor, ids: Tensor, logits: Tensor | None = None) -> Tensor:
        """The training loss of a batch from per-sample losses, for any task. Steps the gates.

        Args:
            sample_loss: ℓ ≥ 0, ``[B]``, unreduced, with its graph.
            ids: ``[B]``, dataset indices of the samples.
            logits: ``[B, C]`` of a classifier, where the result should know the predicted classes.

        Returns:
            1/B · Σ s_i·ℓ_i, scalar, with its graph; s_i is 1 for a method without weights.
        """
        check_tensors(sample_loss=sample_loss)
        ids, factor = self._own(ids)
        if not factor:
            sample_loss = sample_loss[:0]
        losses = ops.masked_loss(sample_loss, ids, self.gates.logits, self.gates.state)
        return self._learned(ids, losses, factor, self._predicted(logits, len(ids), factor))

    def custom_loss(self, loss: SampleLoss, outputs: Any, targets: Any, ids: Tensor) -> Tensor:
        """:meth:`weigh` of the losses that a function gives, with a unit that fits the function.

        The method "sampled" measures losses in units of their mean in the first epoch. That mean is
        too large if a new model starts far from the targets and learns their mean first: with
        binary cross entropy of rare labels, or with squared errors of targets that are far from 0.
        So here, as in :meth:`loss`, the unit is at most the mean loss of the best constant
        prediction for the first 1,024 targets, or more. :meth:`weigh` does not know targets. Steps
        that torch.compile compiles whole, or that a CUDA graph replays, note none.

        Args:
            loss: function of (outputs, targets). It returns ℓ ≥ 0, ``[B]``, unreduced. In the first
                epoch it is also called with constant outputs.
            outputs: what the function takes. Constants are known for ``[B]`` and ``[B, C]``; with
                other outputs this is :meth:`weigh`.
            targets: what the function takes. If they are classes, whole numbers ``[B]``, outputs
                ``[B, C]`` are logits, and the result knows the predicted classes.
            ids: ``[B]``, dataset indices of the samples.

        Returns:
            As :meth:`weigh`.

        Raises:
            TypeError: ``loss`` is no function.

        Example:
            >>> from adapruner.training import losses
            >>> outputs = torch.randn(4, 3, requires_grad=True)
            >>> labels, ids = torch.eye(4)[:, :3], torch.arange(4)
            >>> pruner = Pruner(64, epochs=2)
            >>> pruner.custom_loss(losses.multi_label, outputs, labels, ids).backward()
        """
        check_loss(loss)
        own, factor = self._own(ids)
        if factor and isinstance(outputs, Tensor) and self._notes_targets():
            self.constant.note(loss, outputs.shape, targets, own, outputs.dtype)
        return self.weigh(loss(outputs, targets), ids, logits_of_classes(outputs, targets))

    def observe(self, sample_loss: Tensor, ids: Tensor, logits: Tensor | None = None) -> None:
        """Take in losses of held-out samples from an evaluation. Each counts as a visit.

        Args:
            sample_loss: ℓ ≥ 0, ``[B]``.
            ids: ``[B]``, dataset indices of the samples.
            logits: as in :meth:`weigh`.
        """
        check_tensors(sample_loss=sample_loss)
        ids, factor = self._own(ids)
        if not factor:
            sample_loss = sample_loss[:0]
        losses = ops.masked_loss(sample_loss.detach(), ids, self.gates.logits, self.gates.state)
        self._take(Batch(ids, losses, True, self._predicted(logits, len(ids), factor)))

    def share_weight(self, ids: Tensor) -> float:
        """The factor of this rank's part of a batch, for a loss of a batch of your own.

        :meth:`loss`, :meth:`linear_loss` and :meth:`weigh` apply it already. Multiply what you add
        to them by it, so that the mean over ranks weights the samples of all ranks alike.

        Args:
            ids: ``[B]``, dataset indices of the samples.

        Returns:
            W·b/Σb, where W ranks have b samples each in the batch. 1 for a process alone, and 0 if
            the samples only stand in for an empty part.
        """
        if self.ranks.alone:
            return 1.0
        if len(ids) == 0:
            return 0.0
        # Noted for the last batches of an epoch only, so that a GPU seldom waits here.
        return self._share_weights.get(int(ids[0]), 1.0) if self._share_weights else 1.0

    def _predicted(self, logits: Tensor | None, count: int, factor: float) -> Tensor | None:
        """The predicted classes of ``count`` samples; of no sample where ``factor`` is 0."""
        if logits is None:
            return None
        check_tensors(logits=logits)
        if factor and len(logits) != count:
            raise ValueError(
                f"logits must have a row for each of {count} samples; found {list(logits.shape)}"
            )
        return predicted_classes(logits if factor else logits[:0])

    def _notes_targets(self) -> bool:
        """Whether the targets of this batch count for the unit of losses: in the first epoch."""
        if torch.compiler.is_compiling():  # the epoch would be a constant of the graph
            return False
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return False  # a replay of the graph does not come here
        return self.epoch == 0 and self.method.by_first_loss and is_visit()

    def _own(self, ids: Tensor) -> tuple[Tensor, float]:
        """The ids of a batch on the gates' device, and the factor of its mean loss.

        The mean over ranks of these losses is the mean over the global batch. A factor of 0 means
        that the samples only stand in for an empty share, and then there are no ids.
        """
        if ids is None:
            raise TypeError(
                "ids must be the dataset indices of the batch, [B]; found None. A loader of "
                "adapruner.pruned_loader or Pruner.loader yields them"
            )
        if not isinstance(ids, Tensor):
            ids = torch.as_tensor(ids, device="cpu")
        if ids.dim() != 1:
            raise ValueError(f"ids must have shape [B]; found {list(ids.shape)}")
        factor = self.share_weight(ids)
        return self._on_device(ids if factor else ids[:0]), factor

    def _on_device(self, ids: Tensor) -> Tensor:
        """The ids on the gates' device. The copy does not wait for the device."""
        return ids.to(self.gates.state.device, non_blocking=True)

    def _learned(
        self,
        ids: Tensor,
        losses: ops.MaskedLoss,
        factor: float,
        predicted: Tensor | None = None,
    ) -> Tensor:
        if is_visit():
            self._take(Batch(ids, losses, False, predicted))
        return losses.loss if factor in (0, 1) else losses.loss * factor

    # --- the outcome

    def result(self) -> PruneResult:
        """The outcome of the run.

        Before the end of the run, it is the outcome if the run ended now, marked ``partial``. The
        run can go on afterwards. All ranks must call it then.

        Raises:
            RuntimeError: the run has learned nothing yet: no batch was given to it since its
                warm-up.
        """
        from adapruner.results.making import result_of

        return result_of(self)


def _averaged(
    loss: Tensor, target: Tensor, weight: Tensor | None, weighted_mean: bool, ignore_index: int
) -> Tensor:
    """``loss``, divided by the mean class weight of the batch if that is asked for."""
    if weight is None or not weighted_mean or not target.numel():
        return loss
    mean = ops.mean_weight(target, weight, ignore_index)
    return loss / mean.where(mean != 0, 1)  # without weight the loss is 0, and stays so
