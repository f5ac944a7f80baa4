"""The training losses by which gates step, and which they weigh where the method has them weigh."""

from __future__ import annotations

import torch
from torch import Tensor

from adapruner import ops
from adapruner.arguments import check_tensors
from adapruner.gates import Gates


class Losses:
    """The loss of a batch for the user's own loop: one call for each batch.

    Args:
        gates: what weighs the samples; it steps with every call.
        normalize: whether losses are divided by their running mean in the pressure.
    """

    def __init__(self, gates: Gates, normalize: bool) -> None:
        self.gates = gates
        self._normalize = normalize
        self._evaluated = 0
        self._use_running_scale(normalize)

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        overwrite_logits: bool = False,
    ) -> Tensor:
        """The training loss of a batch: cross entropy, by which the gates take a step.

        Gates weigh it where the method has them weigh (the published one does); otherwise it is the
        plain mean.

        Gates step once for each call with gradients enabled, whatever becomes of the loss; not
        under ``no_grad``, and not when activation checkpointing calls again.

        Args:
            logits: ``[B, C]`` or ``[B, C, ...]``.
            target: ``[B]`` or ``[B, ...]``, integers.
            ids: ``[B]``, dataset indices of the samples; they may be on the CPU.
            weight, ignore_index, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.
            overwrite_logits: see :func:`adapruner.ops.masked_cross_entropy`.

        Returns:
            Scalar, with its graph.
        """
        check_tensors(logits=logits, target=target)
        ids = self._on_device(ids)
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
        self._visit(ids, losses)
        return losses.loss

    def linear_loss(
        self,
        hidden: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        ids: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """:meth:`loss` of the logits of a last linear layer, which are never held whole.

        For large vocabularies, where the logits would be most of the memory of a step. Gates step
        as in :meth:`loss`.

        Args:
            hidden: what the layer takes, ``[B, H]`` or ``[B, ..., H]`` (of a language model
                ``[B, T, H]``).
            linear_weight: ``[C, H]``, for a language model the weight of its head.
            target: ``[B]`` or ``[B, ...]``, integers (of a language model the next tokens).
            ids: ``[B]``, dataset indices of the samples.
            linear_bias: ``[C]``.
            weight, ignore_index, label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.

        Returns:
            Scalar, with its graph on ``hidden``, ``linear_weight`` and ``linear_bias``.

        Example:
            >>> head = torch.nn.Linear(8, 1000)
            >>> hidden, tokens = torch.randn(2, 5, 8), torch.randint(0, 1000, (2, 5))
            >>> pruner = Pruner(64, epochs=2)
            >>> ids = torch.tensor([7, 40])
            >>> loss = pruner.linear_loss(hidden, head.weight, tokens, ids, linear_bias=head.bias)
            >>> loss.backward()
        """
        check_tensors(hidden=hidden, linear_weight=linear_weight, target=target)
        ids = self._on_device(ids)
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
        self._visit(ids, losses)
        return losses.loss

    def weigh(self, sample_loss: Tensor, ids: Tensor) -> Tensor:
        """The training loss of a batch from its per-sample losses, for any task.

        Args:
            sample_loss: ℓ ≥ 0, ``[B]``, unreduced, with its graph.
            ids: ``[B]``, dataset indices of the samples.

        Returns:
            1/B · Σ s_i·ℓ_i, scalar, with its graph; s_i is 1 where gates do not weigh.
        """
        check_tensors(sample_loss=sample_loss)
        ids = self._on_device(ids)
        losses = ops.masked_loss(sample_loss, ids, self.gates.logits, self.gates.state)
        self._visit(ids, losses)
        return losses.loss

    def observe(self, sample_loss: Tensor, ids: Tensor) -> None:
        """Take in losses of an evaluation, of samples that are held out, as a visit of their gates.

        Args:
            sample_loss: ℓ ≥ 0, ``[B]``.
            ids: ``[B]``, dataset indices of the samples.
        """
        check_tensors(sample_loss=sample_loss)
        ids = self._on_device(ids)
        losses = ops.masked_loss(sample_loss.detach(), ids, self.gates.logits, self.gates.state)
        # The epoch's mean is that of its training losses.
        sums = self.gates.slots("loss_sum", "loss_count")
        of_training = sums.clone()
        self.gates.visit(ids, losses)
        sums.copy_(of_training)
        self._evaluated += len(ids)

    def _on_device(self, ids: Tensor) -> Tensor:
        """Ids come from loaders, on the CPU; the gates' device does not wait for them."""
        return torch.as_tensor(ids).to(self.gates.state.device, non_blocking=True)

    def _use_running_scale(self, running: bool) -> None:
        """Have the scale of losses follow their mean, or stay; known here so as not to be read."""
        self._scale_is_running = running
        self.gates.set_integer("scale_running", int(running))

    def _visit(self, ids: Tensor, losses: ops.MaskedLoss) -> None:
        if torch.is_grad_enabled() and not _in_recomputation():
            if self._scale_is_running:
                ops.first_loss_scale(losses.pressure, self.gates.state, losses.sample_loss)
            self.gates.visit(ids, losses)


def _in_recomputation() -> bool:
    """Whether this is activation checkpointing's second call of a forward pass that had gradients.

    Its recomputation runs within a backward pass. The reentrant kind alone runs the first call
    without gradients, so that its second call is the one that counts.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return False
    node = torch._C._current_autograd_node()
    return node is None or "CheckpointFunction" not in node.name()
