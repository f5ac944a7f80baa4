"""Pruning with Hugging Face Accelerate: a prepared loader that reads what a pruner chooses."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from adapruner._util.extras import require
from adapruner.data.loaders.user_loader import pruned_loader
from adapruner.pruning.pruner import Pruner


def prepare_loader(accelerator: Any, loader: DataLoader[Any], pruner: Pruner) -> Any:
    """``accelerator.prepare`` of :func:`adapruner.pruned_loader`, for one or several processes.

    The loader moves its batches to the accelerator's device, and ``accelerator.accumulate`` steps
    the optimiser on the last batch of each epoch, however long the epoch is. In several processes
    the sampler gives each process its share, so Accelerate does not share batches out again.

    To resume, load the state of the pruner first. For the middle of an epoch, pass the loader to
    ``accelerate.skip_first_batches`` with the number of batches that were trained.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        loader: the ordinary DataLoader of the training set. It is not prepared.
        pruner: the pruner of its samples.

    Returns:
        A loader of batches with ids, for all epochs of the run.

    Raises:
        DatasetMismatchError, TypeError, ValueError: as :func:`adapruner.pruned_loader`.
        ValueError: ``split_batches`` of the accelerator is on, or the processes that share one
            model, by tensor parallelism for example, would read different samples.
    """
    if accelerator.split_batches:
        raise ValueError(
            "split_batches must be off, since batch_size is that of each process; found True. "
            "Divide batch_size by the number of processes"
        )
    parts = _processes_of_a_model(accelerator)
    if parts > 1 and parts * pruner.ranks.size != accelerator.num_processes:
        raise ValueError(
            f"the pruner must have {accelerator.num_processes // parts} ranks, since each model is "
            f"shared by {parts} of the {accelerator.num_processes} processes, which read the same "
            f"samples; found {pruner.ranks.size}. Pass the data-parallel group to Pruner as "
            "process_group"
        )
    accelerate = require("accelerate.data_loader", extra="accelerate")
    prepared = accelerate.prepare_data_loader(
        pruned_loader(loader, pruner),
        device=accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
    )
    prepared.set_epoch(pruner.epoch)  # Accelerate counts epochs itself
    # gather_for_metrics would cut the last batch to the remainder of the whole dataset.
    prepared.dataset.total_dataset_length = 0
    return prepared


def _processes_of_a_model(accelerator: Any) -> int:
    """The number of processes that share one batch, by tensor, context or sequence parallelism."""
    config = getattr(accelerator, "parallelism_config", None)
    parts = 1 if config is None else config.non_data_parallel_size
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return int(parts)
    tensor = plugin.deepspeed_config.get("tensor_parallel") or {}
    return max(int(parts), int(tensor.get("autotp_size", 1)))
