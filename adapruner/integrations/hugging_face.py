"""Pruning in Hugging Face's Trainer, and in trainers derived from it such as TRL's SFTTrainer.

Written for transformers 5, whose Trainer runs each epoch in a method of its own.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from adapruner._util.extras import require
from adapruner._util.tensors import to_cpu
from adapruner.data.sources.find import identified
from adapruner.integrations import model_losses
from adapruner.integrations.accelerate import prepare_loader
from adapruner.pruning.pruner import Pruner
from adapruner.results.result import PruneResult
from adapruner.training import losses
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint

transformers: Any = require("transformers", extra="transformers")
_Mixin: Any = object  # the trainer that a class with the mixin also derives from

_CLASSES = (
    *("ForSequenceClassification", "ForImageClassification", "ForVideoClassification"),
    *("ForAudioClassification", "ForTokenClassification", "ForMaskedLM"),
)


class PruningMixin(_Mixin):
    """Makes a trainer prune its training set while it trains: ``class T(PruningMixin, Trainer)``.

    The trainer reads the samples of the pruner's epoch, computes the loss of each sample, and steps
    the pruner at the end of each epoch. Evaluation, logging and saving stay those of the trainer.
    The learning rate follows the planned optimiser steps, so it ends where the run ends. A
    checkpoint also holds the state of the pruner, and ``resume_from_checkpoint`` continues in the
    middle of an epoch.

    The loss of a batch is the mean over its samples, and the loss of a sample is the mean over its
    tokens. (The Trainer alone takes the mean over the tokens of a batch.) Models for sequence,
    image, audio, video and token classification, masked and causal language models work. For
    another task, override :meth:`pruned_loss`.

    Args:
        keep_ratio: share of the training set to keep.
        pruner_options: further arguments of :class:`adapruner.Pruner`, by name. ``epochs`` is
            ``args.num_train_epochs``. By default ``seed`` and ``device`` are those of ``args``, and
            ``normalize_loss`` is set for language models, whose losses the published method
            needs on the scale of a classifier's.

    Attributes:
        pruner: the :class:`adapruner.Pruner`. Its ids are the rows of ``train_dataset`` as the
            trainer holds it. SFTTrainer may have filtered and shuffled the rows.

    A trainer trains one run: a second call of ``train`` must resume from a checkpoint.

    Raises:
        TypeError: the trainer has no training set with a length.
        ValueError: an option of the trainer does not fit. The message names it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if transformers.Trainer in order[: order.index(PruningMixin)]:
            raise TypeError(
                f"expected PruningMixin before the trainer, class {cls.__name__}(PruningMixin, "
                "Trainer); found it after the trainer, whose methods would not prune"
            )

    def __init__(
        self,
        *args: Any,
        keep_ratio: float = 0.7,
        pruner_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(super(), "_run_epoch"):
            raise TypeError(
                "expected a Trainer of transformers 5, which has _run_epoch; found one of "
                f"transformers {transformers.__version__}"
            )
        _check_arguments(self.args)
        _check_loss(type(self))
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func must be None, since it gives no losses of samples; found "
                f"{self.compute_loss_func}. Override pruned_loss instead"
            )
        if not hasattr(self.train_dataset, "__len__"):
            raise TypeError(
                f"expected a train_dataset with a length; found {type(self.train_dataset).__name__}"
            )
        options = {
            "seed": self.args.seed,
            "device": self.args.device,
            # The loss of a token falls far below that of a class.
            "normalize_loss": model_losses.loss_kind(self.model) in ("ForCausalLM", "ForMaskedLM"),
        }
        self.pruner = Pruner(
            len(self.train_dataset),
            keep_ratio,
            int(self.args.num_train_epochs),
            **options | (pruner_options or {}),
        )
        self.pruner.note_samples(identified(self.train_dataset))
        # The loss of a batch is a mean, which the Trainer divides by the accumulated batches.
        self.loss_is_scaled_for_ga: bool | None = False
        self._fused_head = model_losses.linear_head(self.model)
        # In the first batch. The parts of a batch on several GPUs have mean losses of their own,
        # and Liger's kernels give no logits with a loss.
        self._head_checked = False
        self._loss_checked = self.args.n_gpu > 1 or self.args.use_liger_kernel
        self._trained_batches = 0  # of the current epoch
        self._sampler: Any = None  # PrunedBatchSampler
        self.add_callback(_EpochEnd(self))

    def pruned_result(self) -> PruneResult:
        """The result of the run. Its indices are rows of ``train_dataset``."""
        result: PruneResult = self.pruner.result()
        return result

    # --- hooks of the Trainer

    def get_train_dataloader(self) -> Any:
        """The trainer's own loader, reading the samples of the pruner's epoch, with ids."""
        loader = prepare_loader(self.accelerator, super().get_train_dataloader(), self.pruner)
        self._sampler = loader.batch_sampler
        return loader

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """The Trainer's values, with the planned number of optimiser steps of the run."""
        values = list(super().set_initial_training_values(args, dataloader))
        planned = self._sampler.planned_batches(args.gradient_accumulation_steps)
        if args.max_steps > planned:
            raise ValueError(
                f"max_steps must be at most {planned}, the planned optimiser steps of "
                f"{self.pruner.epochs} epochs; found {args.max_steps}. Raise num_train_epochs"
            )
        values[0] = self.pruner.epochs
        values[3] = self._sampler.planned_samples()
        values[-1] = args.max_steps if args.max_steps > 0 else planned
        return tuple(values)

    def _init_training_state(
        self, max_steps: int, steps: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        if checkpoint is None and (self.pruner.epoch or self._trained_batches):
            raise RuntimeError(
                "a run starts with samples that were not pruned yet; found a trainer that has "
                f"trained {self.pruner.epoch} epochs. Make a new one, or pass "
                "resume_from_checkpoint"
            )
        self._find_head_again()
        place = super()._init_training_state(max_steps, steps, epochs, checkpoint, trial)
        if checkpoint is None:
            return place
        state = load_checkpoint(checkpoint)
        if state is None:
            raise FileNotFoundError(f"{checkpoint} holds no state of a pruner")
        self.pruner.load_state_dict(state["pruner"])
        self._trained_batches = state["trained_batches"]
        if self._trained_batches == len(self._sampler):
            self._end_epoch()
        return self.pruner.epoch, self._trained_batches

    def _find_head_again(self) -> None:
        """Take the last layer of the model anew if it was replaced since the trainer was made.

        ``model_init`` makes another model when the run starts, and a model may get more tokens.
        """
        head = self._fused_head
        if head is not None and model_losses.output_layer(self.model) is not head:
            self._fused_head, self._head_checked = model_losses.linear_head(self.model), False

    def _run_epoch(self, **kwargs: Any) -> None:
        # Lengths change from epoch to epoch, and the Trainer would take those of the first.
        batches, group = len(self._sampler), self.args.gradient_accumulation_steps
        kwargs["steps_in_epoch"] = batches
        kwargs["num_update_steps_per_epoch"] = -(-batches // group)
        super()._run_epoch(**kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self._trained_batches += 1
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """:meth:`pruned_loss` for training batches, which have ids; else the Trainer's loss."""
        if "ids" not in inputs:
            return super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch=num_items_in_batch
            )
        ids = inputs.pop("ids")
        loss = self.pruned_loss(model, inputs, ids)
        return (loss, None) if return_outputs else loss

    def pruned_loss(self, model: nn.Module, inputs: dict[str, Any], ids: Tensor) -> Tensor:
        """The loss of a training batch. Each call steps the gates of its samples.

        Override it for a task of your own: compute the loss of each sample and return
        ``self.pruner.weigh(sample_loss, ids)``.

        Args:
            model: the wrapped model.
            inputs: inputs of the model, with ``labels``.
            ids: int64 ``[B]``, rows of ``train_dataset``.

        Raises:
            TypeError: the model is of another kind than the class names above, or it has a loss of
                its own.
            ValueError: a batch has no labels.
        """
        unwrapped = self.accelerator.unwrap_model(model)
        kind = model_losses.loss_kind(unwrapped)
        if kind != "ForCausalLM" and kind not in _CLASSES:
            raise TypeError(
                "expected a model for classification, a masked or a causal language model; found "
                f"{type(unwrapped).__name__}. Override pruned_loss for another task"
            )
        if "labels" not in inputs:
            raise ValueError(f"expected labels in each batch; found {', '.join(inputs)} alone")
        labels = inputs.pop("labels")
        if getattr(self, "aux_loss_enabled", False):  # of TRL; some models read the argument alone
            inputs["output_router_logits"] = True
        task_loss = self._causal_loss if kind == "ForCausalLM" else self._class_loss
        loss, outputs = task_loss(model, inputs, labels, ids)
        added = model_losses.auxiliary_loss(
            unwrapped, outputs, getattr(self, "router_aux_loss_coef", None)
        )
        # It is of the batch, not of a sample, so the selection does not see it.
        if added is not None:
            loss = loss + self.pruner.share_weight(ids) * added.to(loss.device)
        return loss

    def _class_loss(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, ids: Tensor
    ) -> tuple[Tensor, Any]:
        """The loss of classes, of tokens with a class each, of several labels, or of numbers."""
        unwrapped = self.accelerator.unwrap_model(model)
        compare = not self._loss_checked and model_losses.takes_labels(unwrapped)
        if unwrapped.config.problem_type == "multi_label_classification":
            labels = labels.float()
        outputs = model(**inputs, labels=labels) if compare else model(**inputs)
        logits = outputs.logits
        problem = model_losses.problem_type(unwrapped, logits, labels)
        if problem == "single_label_classification":
            if compare:
                mean = nn.functional.cross_entropy(logits.movedim(-1, 1), labels)
                self._loss_checked = model_losses.check_own_loss(unwrapped, outputs, mean)
            return self._cross_entropy(logits, labels, ids), outputs
        labels = labels.to(logits.dtype).reshape(logits.shape)
        loss = losses.squared_error if problem == "regression" else losses.multi_label
        if compare:
            mean = loss(logits, labels).mean()
            self._loss_checked = model_losses.check_own_loss(unwrapped, outputs, mean)
        return self.pruner.custom_loss(loss, logits, labels, ids), outputs

    def _causal_loss(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, ids: Tensor
    ) -> tuple[Tensor, Any]:
        """The loss of next tokens. Logits are not held whole where the head is a linear layer."""
        length, target, head = labels.shape[1], labels[:, 1:], self._fused_head
        if not self._head_checked and head is not None and model_losses.shards_later(model, head):
            head = self._fused_head = None
        compared = 0 if self._loss_checked else self._compared_positions(model, labels)
        if compared:
            inputs = {**inputs, "labels": labels[:, -compared:].contiguous()}
        if head is None:
            outputs = model(**inputs)
        else:
            kept = 0 if compared == length else max(compared, 1)  # 0 keeps all
            outputs = model(**inputs, output_hidden_states=True, logits_to_keep=kept)
        if compared:
            with torch.no_grad():
                mean = nn.functional.cross_entropy(
                    outputs.logits[:, -compared:-1].movedim(-1, 1).float(),
                    labels[:, -compared:][:, 1:],
                )
            unwrapped = self.accelerator.unwrap_model(model)
            self._loss_checked = model_losses.check_own_loss(unwrapped, outputs, mean)
        if head is None:
            logits = outputs.logits[:, -length:-1]  # without the virtual tokens of a prompt
            return self._cross_entropy(logits, target, ids), outputs
        hidden = outputs.hidden_states[-1]
        if not self._head_checked:
            self._head_checked = True
            kept = outputs.logits.shape[1]
            whole = model_losses.is_whole(head)
            if not (whole and model_losses.gives(head, hidden[:, -kept:], outputs.logits)):
                self._fused_head = None  # it is sharded, or the model does more to its logits
                inputs.pop("labels", None)
                return self._causal_loss(model, inputs, labels, ids)
        with self.accelerator.autocast():
            loss = self.pruner.linear_loss(
                hidden[:, -length:-1],
                head.weight,
                target,
                ids,
                linear_bias=head.bias,
                label_smoothing=self.args.label_smoothing_factor,
            )
        return loss, outputs

    def _compared_positions(self, model: nn.Module, labels: Tensor) -> int:
        """The number of last positions whose loss is compared with the model's own loss."""
        unwrapped = self.accelerator.unwrap_model(model)
        if not model_losses.takes_labels(unwrapped):
            return 0
        if self._fused_head is None or model_losses.has_virtual_tokens(unwrapped):
            return labels.shape[1]
        return model_losses.last_positions(labels)

    def _cross_entropy(self, logits: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        return self.pruner.loss(
            logits.movedim(-1, 1),
            target,
            ids,
            label_smoothing=self.args.label_smoothing_factor,
        )

    def _end_epoch(self, cut: bool = False) -> None:
        """Step the pruner if the epoch was trained to its end, or was cut short alone.

        A stop of the run leaves the pruner as it is.
        """
        if cut or self._trained_batches >= len(self._sampler):
            self.pruner.step()
            self._trained_batches = 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint of the Trainer, with the state of the pruner.

        The Trainer saves one at the end of its steps, and where a signal stops it.
        """
        super()._save_checkpoint(model, trial)
        name = f"{transformers.trainer_utils.PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._save_pruner(os.path.join(self._get_output_dir(trial), name))

    def _save_pruner(self, folder: str) -> None:
        # All ranks meet in state_dict, and one writes.
        state = {"pruner": self.pruner.state_dict(), "trained_batches": self._trained_batches}
        if self.args.should_save:
            save_checkpoint(folder, to_cpu(state))


class PrunedTrainer(PruningMixin, transformers.Trainer):
    """:class:`transformers.Trainer` that prunes its training set; see :class:`PruningMixin`."""


class _EpochEnd(transformers.TrainerCallback):
    """Steps the pruner before the Trainer saves."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._end_epoch(control.should_epoch_stop and not control.should_training_stop)


def _check_loss(trainer: type) -> None:
    """Raise if the loss of a trainer is left out: neither known here nor given by pruned_loss."""
    order = trainer.__mro__
    below = order[order.index(PruningMixin) + 1 :]
    owner = next(kind for kind in below if "compute_loss" in vars(kind))
    known = owner is transformers.Trainer or owner.__name__ == "SFTTrainer"
    if not known and trainer.pruned_loss is PruningMixin.pruned_loss:  # type: ignore[attr-defined]
        raise TypeError(
            f"expected the loss of Trainer or SFTTrainer; found {owner.__name__}.compute_loss, "
            "which would be left out. Override pruned_loss to compute the losses of samples"
        )


def _check_arguments(args: Any) -> None:
    """Raise for options of the Trainer that would change the samples behind the pruner's back."""
    if args.num_train_epochs != int(args.num_train_epochs) or args.num_train_epochs < 1:
        raise ValueError(
            f"num_train_epochs must be a whole number, at least 1; found {args.num_train_epochs}"
        )
    refused = {
        "auto_find_batch_size": "it starts the run again with other batches",
        "ignore_data_skip": "a resumed epoch would read samples a second time",
        "packing": "a packed row holds several samples",
        "padding_free": "a batch is one row, so samples have no loss of their own",
    }
    for name, why in refused.items():
        if getattr(args, name, False):
            raise ValueError(f"{name} must be off, since {why}; found {getattr(args, name)}")
    loss_type = getattr(args, "loss_type", "nll")  # of TRL
    if loss_type != "nll":
        raise ValueError(
            f"loss_type must be 'nll', the loss that pruned_loss computes; found {loss_type!r}. "
            "For another one, keep 'nll' and override pruned_loss"
        )
