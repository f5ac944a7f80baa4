"""Pruning in Hugging Face's Trainer, and in trainers derived from it such as TRL's SFTTrainer.

Written for transformers 5, whose Trainer runs each epoch in a method of its own.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
from torch import Tensor, nn

from adapruner._util.extras import require
from adapruner._util.tensors import to_cpu
from adapruner.data.sources.find import identified
from adapruner.integrations.accelerate import prepare_loader
from adapruner.pruning.pruner import Pruner
from adapruner.results.result import PruneResult
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
            the losses of language models are normalised.

    Attributes:
        pruner: the :class:`adapruner.Pruner`. Its ids are the rows of ``train_dataset`` as the
            trainer holds it. SFTTrainer may have filtered and shuffled the rows.

    Raises:
        TypeError: the trainer has no training set with a length.
        ValueError: an option of the trainer does not fit. The message names it.
    """

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
        if not hasattr(self.train_dataset, "__len__"):
            raise TypeError(
                f"expected a train_dataset with a length; found {type(self.train_dataset).__name__}"
            )
        options = {
            "seed": self.args.seed,
            "device": self.args.device,
            # The loss of a token falls far below that of a class.
            "normalize_loss": _loss_kind(self.model) in ("ForCausalLM", "ForMaskedLM"),
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
        self._fused_head = _linear_head(self.model)
        self._head_checked = False
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
            TypeError: the model is of another kind than the class names above.
        """
        labels = inputs.pop("labels")
        unwrapped = self.accelerator.unwrap_model(model)
        kind = _loss_kind(unwrapped)
        if kind == "ForCausalLM":
            return self._causal_loss(model, inputs, labels, ids)
        if kind not in _CLASSES:
            raise TypeError(
                "expected a model for classification, a masked or a causal language model; found "
                f"{type(unwrapped).__name__}. Override pruned_loss for another task"
            )
        logits = model(**inputs).logits
        problem = getattr(unwrapped.config, "problem_type", None)
        if problem == "multi_label_classification":
            losses = nn.functional.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="none"
            )
            return self.pruner.weigh(losses.flatten(1).mean(1), ids)
        if problem == "regression" or logits.shape[-1] == 1:
            errors = (logits.flatten(1) - labels.to(logits.dtype).reshape(len(ids), -1)).square()
            return self.pruner.weigh(errors.mean(1), ids)
        return self._cross_entropy(logits, labels, ids)

    def _causal_loss(
        self, model: nn.Module, inputs: dict[str, Any], labels: Tensor, ids: Tensor
    ) -> Tensor:
        """The loss of next tokens. Logits are not held whole where the head is a linear layer."""
        length, target = labels.shape[1], labels[:, 1:]
        head = self._fused_head
        if head is None:
            logits = model(**inputs).logits[:, -length:-1]  # without the virtual tokens of a prompt
            return self._cross_entropy(logits, target, ids)
        outputs = model(**inputs, output_hidden_states=True, logits_to_keep=1)
        hidden = outputs.hidden_states[-1]
        if not self._head_checked:
            self._head_checked = True
            if not _gives(head, hidden[:, -1:], outputs.logits):
                self._fused_head = None  # the model does more to its logits
                return self._causal_loss(model, inputs, labels, ids)
        with self.accelerator.autocast():
            return self.pruner.linear_loss(
                hidden[:, -length:-1],
                head.weight,
                target,
                ids,
                linear_bias=head.bias,
                label_smoothing=self.args.label_smoothing_factor,
            )

    def _cross_entropy(self, logits: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        return self.pruner.loss(
            logits.movedim(-1, 1),
            target,
            ids,
            label_smoothing=self.args.label_smoothing_factor,
        )

    def _end_epoch(self) -> None:
        """Step the pruner if the epoch was trained to its end; an early stop leaves it as it is."""
        if self._trained_batches >= len(self._sampler):
            self.pruner.step()
            self._trained_batches = 0

    def _save_pruner(self, folder: str) -> None:
        # All ranks meet in state_dict, and one writes.
        state = {"pruner": self.pruner.state_dict(), "trained_batches": self._trained_batches}
        if self.args.should_save:
            save_checkpoint(folder, to_cpu(state))


class PrunedTrainer(PruningMixin, transformers.Trainer):
    """:class:`transformers.Trainer` that prunes its training set; see :class:`PruningMixin`."""


class _EpochEnd(transformers.TrainerCallback):
    """Steps the pruner before the Trainer saves, and saves the pruner beside the model."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._end_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name = f"{transformers.trainer_utils.PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self._trainer._save_pruner(os.path.join(args.output_dir, name))


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


def _loss_kind(model: Any) -> str | None:
    """The task of a model, as transformers names it: "ForCausalLM", "ForTokenClassification" …"""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if type(base).__name__ in causal.values():
        return "ForCausalLM"
    kind: str | None = getattr(base, "loss_type", None)
    return kind


def _linear_head(model: Any) -> nn.Linear | None:
    """The last layer of a causal language model, if its logits are a linear map of hidden states.

    None for a model that scales or caps its logits, or that cannot leave them out.
    """
    if _loss_kind(model) != "ForCausalLM":
        return None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(head) is not nn.Linear:
        return None
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return None
    text = base.config.get_text_config().to_dict()
    # A cap changes small logits too little for a comparison to show it.
    return None if any("softcap" in name and value for name, value in text.items()) else head


def _gives(head: nn.Linear, hidden: Tensor, logits: Tensor) -> bool:
    """Whether ``head`` makes ``logits`` of ``hidden``, but for the rounding of mixed precision."""
    with torch.no_grad():
        found = head(hidden.to(head.weight.dtype)).float()
        error = (found - logits.float()).abs().max()
        return bool(error <= 0.02 * logits.float().abs().max())
