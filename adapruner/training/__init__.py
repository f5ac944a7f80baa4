"""Training a model and pruning its data in one call: :func:`adapruner.fast_prune`."""

CHECKPOINT_NAME = "checkpoint.safetensors"
