"""Models and transforms for images: any timm model, also for small images (extra "vision")."""

from adapruner.vision.models import create_model
from adapruner.vision.transforms import (
    MEAN,
    STD,
    ImageTransform,
    evaluation_transform,
    guess_image_size,
    to_tensor,
    training_transform,
)

__all__ = [
    "MEAN",
    "STD",
    "ImageTransform",
    "create_model",
    "evaluation_transform",
    "guess_image_size",
    "to_tensor",
    "training_transform",
]
