"""The losses of transformers' models: their task, their last layer, and what they add to a loss."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from adapruner._util.extras import require
from adapruner._util.tensors import missing_part

transformers: Any = require("transformers", extra="transformers")

IGNORED = -100
# Positions of a causal language model whose losses are compared with the model's own loss. Few, so
# that a model with a large vocabulary makes few logits.
COMPARED = 8


def base_of(model: Any) -> Any:
    """The model without the adapters of PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def loss_kind(model: Any) -> str | None:
    """The task of a model, as transformers names it: "ForCausalLM", "ForTokenClassification" …"""
    base = base_of(model)
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if type(base).__name__ in causal.values():
        return "ForCausalLM"
    kind: str | None = getattr(base, "loss_type", None)
    return kind


def problem_type(model: Any, logits: Tensor, labels: Tensor) -> str:
    """The kind of labels of a classifier, by transformers' own rules and names.

    ``config.problem_type`` decides. Without it, a single logit means "regression", integer labels
    mean "single_label_classification", and other labels mean "multi_label_classification".
    """
    known: str | None = getattr(base_of(model).config, "problem_type", None)
    if known is not None:
        return known
    if logits.shape[-1] == 1:
        return "regression"
    whole = not labels.is_floating_point()
    return "single_label_classification" if whole else "multi_label_classification"


def takes_labels(model: Any) -> bool:
    """Whether the forward of a model can compute the model's own loss."""
    parameters = inspect.signature(base_of(model).forward).parameters
    return "labels" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def output_layer(model: Any) -> Any:
    """The layer that makes the logits of a language model, or None."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def linear_head(model: Any) -> nn.Linear | None:
    """The last layer of a causal language model, if its logits are a linear map of hidden states.

    None for a model that caps its logits, or that cannot leave them out.
    """
    if loss_kind(model) != "ForCausalLM":
        return None
    head, base = output_layer(model), base_of(model)
    if type(head) is not nn.Linear:
        return None
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return None
    text = base.config.get_text_config().to_dict()
    # A cap changes small logits too little for a comparison to show it.
    return None if any("softcap" in name and value for name, value in text.items()) else head


def shards_later(model: nn.Module, head: nn.Linear) -> bool:
    """Whether only a part of the head lies here after a forward: of FSDP1 and of DeepSpeed ZeRO-3.

    FSDP2 may keep the head whole. :func:`is_whole` tells after a forward.
    """
    if any(hasattr(parameter, "ds_id") for parameter in head.parameters()):
        return True
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def is_whole(head: nn.Linear) -> bool:
    """Whether the weights of a layer lie here whole, outside of its forward."""
    return all(missing_part(parameter) is None for parameter in head.parameters())


def gives(head: nn.Linear, hidden: Tensor, logits: Tensor) -> bool:
    """Whether ``head`` makes ``logits`` of ``hidden``, but for the rounding of mixed precision."""
    # Not by a call of the head: FSDP2 takes calls for parts of a forward of the model.
    with torch.no_grad():
        found = nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias).float()
        error = (found - logits.float()).abs().max()
        return bool(error <= 0.02 * logits.float().abs().max())


def has_virtual_tokens(model: Any) -> bool:
    """Whether PEFT puts virtual tokens before each row, so that labels and logits must be whole."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def last_positions(labels: Tensor) -> int:
    """Number of last positions that hold the last labelled token and up to 7 before it.

    Args:
        labels: ``[B, T]``, with -100 for tokens without a label.
    """
    length = labels.shape[1]
    labelled = (labels != IGNORED).any(0).nonzero()
    last = int(labelled[-1]) if len(labelled) else length - 1
    return min(length, length - 1 - last + COMPARED)


def auxiliary_loss(model: Any, outputs: Any, coefficient: float | None = None) -> Tensor | None:
    """The load-balancing loss of a mixture of experts, as its forward adds it to its loss.

    Args:
        model: the model.
        outputs: its outputs, with an ``aux_loss`` where ``output_router_logits`` is on.
        coefficient: taken in place of the model's own.

    Returns:
        Scalar, with its graph, or None for a model without such a loss.
    """
    loss = getattr(outputs, "aux_loss", None)
    if not isinstance(loss, Tensor):
        return None
    base = base_of(model)
    for place in (base, base.config.get_text_config()):
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            if coefficient is None:
                coefficient = getattr(place, name, None)
    return None if not coefficient else coefficient * loss.mean()  # of one part for each GPU


def check_own_loss(model: Any, outputs: Any, mean: Tensor) -> bool:
    """Compare the loss that a model gives itself with the mean of the losses of its samples.

    Args:
        model: the model.
        outputs: its outputs for a batch with labels.
        mean: the mean of the losses in the batch, as the task of the model has them.

    Returns:
        Whether there was a loss to compare: not without labels.

    Raises:
        TypeError: they differ, so the model adds something to its loss, or has another one.
    """
    own, logits = getattr(outputs, "loss", None), outputs.logits
    if own is None or logits is None:
        return True
    added = auxiliary_loss(model, outputs)
    expected = float((mean if added is None else mean + added).detach())
    found = float(own.detach())
    if not (abs(found) < float("inf") and abs(expected) < float("inf")):
        return False
    exact = {own.dtype, logits.dtype} <= {torch.float32, torch.float64}
    if abs(found - expected) > (1e-4 if exact else 2e-2) * max(abs(found), abs(expected), 1e-2):
        raise TypeError(
            f"expected the loss of {type(base_of(model)).__name__} to be the mean of its samples' "
            f"losses, {expected:.6g}; found {found:.6g}. Override pruned_loss to compute both the "
            "losses of the samples and what the model adds to them"
        )
    return True
