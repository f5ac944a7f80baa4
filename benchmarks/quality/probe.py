"""What features are worth on a task that they were not learned for: a linear probe on digits."""

from __future__ import annotations

import torch
from torch import Tensor

from .data import normalised
from .networks import Network


def probe_accuracy(network: Network) -> float:
    """Accuracy, %, of a linear probe on the features of ``network`` for 16×16 images in colour.

    A fixed half of scikit-learn's digits trains it, the other half measures it.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, labels = _digits()
    with torch.no_grad():
        parts = images.to(next(network.parameters()).device).permute(0, 3, 1, 2).split(500)
        features = torch.cat([network.eval().features(part) for part in parts]).cpu().numpy()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order.chunk(2)
    probe = make_pipeline(StandardScaler(), RidgeClassifier()).fit(features[train], labels[train])
    return 100 * probe.score(features[test], labels[test])


def _digits() -> tuple[Tensor, Tensor]:
    """Digits in the form of the part of CIFAR-10: ``[1797, 16, 16, 3]``, normalised alike."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    bytes_ = torch.from_numpy(digits.images) * (255 / 16)
    twice = bytes_.repeat_interleave(2, 1).repeat_interleave(2, 2)
    images = normalised(twice[..., None].expand(-1, -1, -1, 3), halved=False)
    return images, torch.from_numpy(digits.target)
