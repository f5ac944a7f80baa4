"""One call that trains a model and prunes its data: :func:`adapruner.fast_prune`."""

CHECKPOINT_NAME = "checkpoint.safetensors"
